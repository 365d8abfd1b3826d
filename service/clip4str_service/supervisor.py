"""The composition root: takes the ports, keeps front ends and workers, and stops them in order.

Start: ports are taken (a taken one ends the start at once), front ends answer (alive, not ready), the model is loaded
and warmed up, ready. Reload: another generation of the model is loaded beside the one that answers, then calls go to
it and the old one answers what it has. Stop: not ready, accepted crops are read to their end, front ends send what is
on the wire, workers go.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import signal
from functools import partial

from clip4str_service.auth import KeyRing, KeysError
from clip4str_service.batcher import Bounds
from clip4str_service.child import side_by_side
from clip4str_service.descriptors import with_descriptors
from clip4str_service.dispatcher import Dispatcher
from clip4str_service.errors import DrainingError, NotReadyError
from clip4str_service.frontends import FrontEnd
from clip4str_service.generation import Care, Generation
from clip4str_service.limits import Limits
from clip4str_service.logs import SUPERVISOR
from clip4str_service.metric_files import MetricFiles, count_as
from clip4str_service.metrics import HubMetrics
from clip4str_service.observation import Observation
from clip4str_service.ports import Ports, listening_socket, reserved_port, taking
from clip4str_service.settings import Settings, unknown_variables
from clip4str_service.status import StatusServer
from clip4str_service.tracing import BatchTracing, Tracing
from clip4str_service.wire import Frontend, Load, Phase, Reload, State
from clip4str_service.workers import WORKER, WorkerProcess, WorkerStartError

log = logging.getLogger(__name__)

_CLOSE_SECONDS = 3.0  # for answers that are on the wire when the crops are done


class Supervisor:
    """One service. `ports` holds once started; `reload_wanted` is set when the model cannot be read with any more."""

    def __init__(self, settings: Settings, worker: str = WORKER) -> None:
        """`worker`: the module that workers' processes run. Raises KeysError or MetricFilesError."""
        self._worker = worker
        self.ports = Ports(0, 0, 0)
        self._settings = settings
        self._keys = None if settings.api_keys_file is None else KeyRing(settings.api_keys_file)
        self._limits = Limits()
        self._set_limits()
        with contextlib.ExitStack() as closing:
            files = MetricFiles()
            closing.callback(files.close)
            count_as(SUPERVISOR)
            tracing = Tracing(settings.otlp_endpoint, SUPERVISOR)
            closing.callback(tracing.close)
            self._closing = closing.pop_all()
        self._metrics = HubMetrics(files, self)
        self._observation = Observation(self._metrics, BatchTracing(tracing.tracer))
        self._dispatcher = Dispatcher(self._limits)
        self._front_ends: list[FrontEnd] = []
        self._generation: Generation | None = None
        self._numbers = itertools.count(1)
        self._draining = False
        self._loading = False
        self.reload_wanted = asyncio.Event()
        self._retiring: dict[Generation, asyncio.Task[None]] = {}

    @property
    def phase(self) -> Phase:
        """What the service is doing."""
        if self._draining:
            return Phase.DRAINING
        if self._generation is None:
            return Phase.STARTING
        if self._generation.up and any(front_end.up for front_end in self._front_ends):
            return Phase.READY
        return Phase.FAILED if self._generation.hopeless else Phase.RESTARTING

    async def start(self) -> None:
        """Takes the ports and answers on them: alive, not ready. Raises PortError or FrontEndError."""
        settings = self._settings
        status = StatusServer(self, self._metrics.exposition)
        self._closing.callback(status.stop)
        with taking(settings, "metrics_port"):
            await status.start(settings.host, settings.metrics_port)
        with taking(settings, "http_port"):
            http = self._closing.enter_context(listening_socket(settings.host, settings.http_port))
        with taking(settings, "grpc_port"):
            grpc = self._closing.enter_context(reserved_port(settings.host, settings.grpc_port))
        self.ports = Ports(http.getsockname()[1], grpc.getsockname()[1], status.port)
        document = settings.model_dump_json().encode()
        for number in range(settings.frontends):
            order = Frontend(f"frontend-{number}", document, http.fileno(), self.ports.grpc)
            silence = settings.hang_timeout_ms / 1000
            self._front_ends.append(FrontEnd(order, self._dispatcher, self._tell, silence=silence))
        self._tell()
        await side_by_side(front_end.start() for front_end in self._front_ends)
        log.info("listening", extra={"host": settings.host, "ports": self.ports._asdict()})

    async def load(self) -> None:
        """Loads the model; ready when it returns. Raises WorkerStartError."""
        self._use(await self._load())

    async def reload(self) -> None:
        """Loads the model's file again and goes over to it; the model that answers stays when it cannot be loaded.

        Key and certificate files are read again as well.
        """
        self.reload_files()
        log.info("loading the model again")
        self._loading = True
        try:
            generation = await self._load()
        except WorkerStartError as error:
            log.error("the model stays as it is", extra={"why": str(error)})
            return
        finally:
            self._loading = False
        before = self._generation
        self._use(generation)
        if before is not None:
            task = asyncio.create_task(self._retire(before))
            self._retiring[before] = task
            task.add_done_callback(lambda _: self._retiring.pop(before))
            self._changed()

    def reload_files(self) -> None:
        """Reads key and certificate files again; those that are wrong stay as they were."""
        if self._keys is not None:
            try:
                self._keys.reload()
                self._set_limits()
            except KeysError as error:
                log.error("the API keys stay as they are", extra={"why": str(error)})
        for front_end in self._front_ends:
            front_end.send(Reload())

    async def stop(self) -> bool:
        """Drains and closes, whatever of it was started. False when accepted crops were given up."""
        self._draining = True
        self._dispatcher.refuse(DrainingError("the service is about to stop and takes no more requests"))
        self._tell()
        generations = self._generations
        retiring = list(self._retiring.values())
        drained = True
        try:
            async with asyncio.timeout(self._settings.drain_timeout_ms / 1000):
                await asyncio.gather(*(generation.drained() for generation in generations))
        except TimeoutError:
            drained = False
            for generation in generations:
                generation.batcher.stop()
        await asyncio.gather(*(front_end.stop(_CLOSE_SECONDS) for front_end in self._front_ends))
        if self._generation is not None:
            await self._generation.stop()
        await asyncio.gather(*retiring)
        self._closing.close()
        log.log(logging.INFO if drained else logging.ERROR, "stopped", extra={"drained": drained})
        return drained

    def check_ready(self) -> None:
        """Raises NotReadyError or DrainingError unless crops are accepted."""
        match self.phase:
            case Phase.READY:
                return
            case Phase.DRAINING:
                raise DrainingError("the service is about to stop")
            case phase:
                raise NotReadyError(f"the service is {phase}")

    def check_started(self) -> None:
        """Raises NotReadyError until the model was loaded and warmed up."""
        if self._generation is None:
            raise NotReadyError("the model is still being loaded")

    def check_alive(self) -> None:
        """Raises NotReadyError when only a new service helps."""
        if self.phase is Phase.FAILED:
            raise NotReadyError("the model's process ends again and again; see the log")

    @property
    def queued(self) -> int:
        """Crops accepted and in no batch yet, of all generations."""
        return sum(generation.batcher.queued for generation in self._generations)

    @property
    def running(self) -> int:
        """Crops in running batches, of all generations."""
        return sum(generation.batcher.running for generation in self._generations)

    @property
    def capacity(self) -> int:
        """Crops that may be queued or running."""
        return self._settings.queue_crops

    @property
    def ready(self) -> bool:
        """True while crops are accepted."""
        return self.phase is Phase.READY

    @property
    def workers(self) -> int:
        """Workers that are up, of all generations."""
        return sum(len(generation.up) for generation in self._generations)

    @property
    def load_seconds(self) -> float:
        """How long the last loading of the model took, also that of a worker started again; 0 before the first."""
        return 0.0 if self._generation is None else self._generation.load_seconds

    @property
    def _generations(self) -> list[Generation]:
        return [*self._retiring, *([] if self._generation is None else [self._generation])]

    def _set_limits(self) -> None:
        if self._keys is not None:
            self._limits.configure(self._keys.keys.allowances)

    async def _load(self) -> Generation:
        settings = self._settings
        bounds = Bounds(
            max_batch=settings.max_batch,
            max_delay=settings.max_delay_ms / 1000,
            max_items=settings.queue_crops,
            max_bytes=settings.queue_bytes,
            cache_bytes=settings.cache_bytes,
        )
        silence = settings.hang_timeout_ms / 1000
        care = Care(
            partial(WorkerProcess, silence=silence, module=self._worker),
            settings.batch_timeout_ms / 1000,
            self._changed,
        )
        generation = Generation(next(self._numbers), care, bounds, self._observation)
        await generation.load([self._order(device) for device in settings.devices])
        return generation

    def _order(self, device: str) -> Load:
        settings = self._settings
        return Load(
            name=f"worker-{device}",
            model=settings.model,
            device=None if device == "auto" else device,
            precision=settings.precision,
            threads=settings.threads,
            processes=settings.cpu_processes,
            max_batch=settings.max_batch,
            log_level=settings.log_level,
        )

    def _use(self, generation: Generation) -> None:
        """From now on calls are read with this generation."""
        self._generation = generation
        for front_end in self._front_ends:
            front_end.add(generation)
        if not self._draining:
            self._dispatcher.accept(generation)
        model = generation.model
        self._metrics.loaded(model)
        log.info(
            "loaded",
            extra={
                "model": model.name,
                "revision": model.revision,
                "device": model.device,
                "dtype": model.dtype,
                "seconds": round(generation.load_seconds, 3),
            },
        )
        self._tell()

    async def _retire(self, generation: Generation) -> None:
        """Waits until a generation has answered what it accepted, and gives it up."""
        await generation.drained()
        await generation.stop()
        for front_end in self._front_ends:
            front_end.remove(generation)

    def _changed(self) -> None:
        """Helps those whose crops no worker can read any more, as the model's file is another one now."""
        for generation in list(self._retiring):
            if generation.stale and not generation.up:
                generation.batcher.stop()  # their callers are told to ask again
        current = self._generation
        if current is not None and current.stale and not current.up and not self._loading:
            self.reload_wanted.set()
        self._tell()

    def _tell(self) -> None:
        """Lets everybody know what the service is doing."""
        phase = self.phase
        seconds = self.load_seconds if phase is Phase.RESTARTING else 1.0
        for front_end in self._front_ends:
            front_end.state(State(phase, round(seconds * 1000)))


async def serve(settings: Settings, worker: str = WORKER) -> bool:
    """Serves until SIGTERM or SIGINT; loads again at SIGHUP. False when accepted crops were given up at the end.

    `worker`: as of `Supervisor`.

    Raises:
        PortError, FrontEndError, WorkerStartError, KeysError, MetricFilesError: the service cannot start.
    """
    for name in unknown_variables(os.environ):
        log.warning("%s is not a setting", name)
    loop = asyncio.get_running_loop()
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    supervisor = Supervisor(with_descriptors(settings), worker)
    loop.add_signal_handler(signal.SIGHUP, supervisor.reload_wanted.set)
    stop = asyncio.create_task(stopping.wait())
    work = asyncio.create_task(_work(supervisor))
    try:
        await asyncio.wait([stop, work], return_when=asyncio.FIRST_COMPLETED)
        if work.done():
            await work
    finally:
        for task in (stop, work):
            task.cancel()
        await asyncio.wait([stop, work])
        drained = await supervisor.stop()
    return drained


async def _work(supervisor: Supervisor) -> None:
    """Starts the service, and loads again whenever it is asked to; one load at a time."""
    await supervisor.start()
    await supervisor.load()
    while True:
        await supervisor.reload_wanted.wait()
        supervisor.reload_wanted.clear()
        await supervisor.reload()
