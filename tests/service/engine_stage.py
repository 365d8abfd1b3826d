"""An engine before a supervisor's dispatcher and a worker that reads pixels, all in this process."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from prometheus_client import CollectorRegistry

from clip4str_service import wire
from clip4str_service.batcher import Bounds
from clip4str_service.channel import Channel, open_channel, send_descriptor
from clip4str_service.dispatcher import Dispatcher, Peer
from clip4str_service.engine import Answer, Engine
from clip4str_service.errors import DrainingError, ServiceError
from clip4str_service.generation import Care, Generation
from clip4str_service.hub import Hub
from clip4str_service.limits import Limits
from clip4str_service.metric_files import MetricFiles
from clip4str_service.metrics import FrontEndMetrics, HubMetrics
from clip4str_service.observation import Observation
from clip4str_service.readings import Reading
from clip4str_service.settings import Settings
from clip4str_service.tracing import BatchTracing
from clip4str_service.wire import FromFrontend, Load, Phase, State
from tests.service.pixel_worker import PixelWorker, settings

_ORDER = Load("worker", "pixels", None, "auto", None, 1, 64, "info")


class Stage:
    """A front end's engine, the supervisor's part for it, its worker, and the metrics of both sides."""

    ready = True
    workers = 0
    load_seconds = 0.0

    def __init__(self, limits: Settings | None = None, **changes: Any) -> None:
        self.settings = limits or settings(**changes)
        self.capacity = self.settings.queue_crops
        self.worker = PixelWorker()
        self._closing = contextlib.ExitStack()
        files = MetricFiles()
        self._closing.callback(files.close)
        self.metrics = FrontEndMetrics()
        self.hub_metrics = HubMetrics(files, self)
        observation = Observation(self.hub_metrics, BatchTracing(None))
        self.limits = Limits()
        self.dispatcher = Dispatcher(self.limits)
        self.hub = Hub(self._pair())
        self.engine = Engine(self.hub, self.settings, self.metrics)
        bounds = Bounds(
            max_batch=self.settings.max_batch,
            max_delay=self.settings.max_delay_ms / 1000,
            max_items=self.settings.queue_crops,
            max_bytes=self.settings.queue_bytes,
        )
        self.generation = Generation(1, Care(lambda _: self.worker, 10.0, lambda: None), bounds, observation)

    def _pair(self) -> socket.socket:
        self._descriptors, theirs = socket.socketpair()
        self._closing.callback(self._descriptors.close)
        self._closing.callback(theirs.close)
        return theirs

    async def connect(self) -> None:
        """Front end and supervisor hear each other; no model is loaded."""
        ours, theirs = socket.socketpair()
        connecting = asyncio.create_task(self.hub.connect(theirs))
        self._channel: Channel[FromFrontend] = await open_channel(
            ours, FromFrontend, self._told, lambda: None
        )
        self.peer = Peer(self.dispatcher, self._channel.send)
        self._channel.send(wire.Frontend("frontend-0", b"", 0, 0))
        await connecting

    async def load(self) -> None:
        """The model is loaded; calls are accepted."""
        await self.generation.load([_ORDER])
        slots = self.generation.slots
        send_descriptor(self._descriptors, slots.descriptor)
        self._channel.send(wire.Generation(1, self.generation.model, slots.count, self.generation.at_once))
        self.dispatcher.accept(self.generation)
        await self.say(Phase.READY)

    async def say(self, phase: Phase) -> None:
        """The front end knows that the service is in this phase."""
        self._channel.send(State(phase, 700))
        while self.hub.phase is not phase:  # noqa: ASYNC110 (one message is on its way)
            await asyncio.sleep(0.001)

    async def drain(self) -> None:
        """As the supervisor: no more crops, and those accepted to their end."""
        self.dispatcher.refuse(DrainingError("the service is about to stop"))
        await self.say(Phase.DRAINING)
        await self.generation.drained()

    async def stop(self) -> None:
        """Gives everything up."""
        if hasattr(self.generation, "batcher"):
            await self.generation.stop()
        self.engine.stop()
        self._channel.close()
        self._closing.close()

    def _told(self, message: FromFrontend) -> None:
        assert isinstance(message, wire.Admit | wire.Submit | wire.Withdraw)
        self.peer.told(message)

    @property
    def queued(self) -> int:
        return self.generation.batcher.queued

    @property
    def running(self) -> int:
        return self.generation.batcher.running

    def value(self, name: str, **labels: str) -> float:
        """A count of either side."""
        registries: list[CollectorRegistry] = [self.metrics.registry, self.hub_metrics.registry]
        found = [registry.get_sample_value(f"clip4str_{name}", labels) for registry in registries]
        return sum(value for value in found if value is not None)

    async def until_running(self, crops: int) -> None:
        """Returns when so many crops are in running batches."""
        while self.running != crops:  # noqa: ASYNC110 (the batcher raises no event)
            await asyncio.sleep(0.001)

    async def until_prepared(self, crops: int) -> None:
        """Returns when so many crops, of all, wait or were run."""
        while self.value("stage_duration_seconds_count", stage="preprocess") != crops:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.02)

    async def until_queued(self, crops: int) -> None:
        """Returns when so many crops are accepted and in no batch yet."""
        while self.queued != crops:  # noqa: ASYNC110
            await asyncio.sleep(0.001)


@asynccontextmanager
async def started(limits: Settings | None = None, **changes: Any) -> AsyncIterator[Stage]:
    stage = Stage(limits, **changes)
    await stage.connect()
    await stage.load()
    try:
        yield stage
    finally:
        stage.worker.gate.set()
        await stage.stop()


def said(answer: Answer) -> list[str | type[ServiceError]]:
    """The text of each crop, or the kind of its error."""
    return [outcome.text if isinstance(outcome, Reading) else type(outcome) for outcome in answer.outcomes]
