"""The one door for both front ends: crops in, readings or errors out.

A crop is decoded and prepared on a pool thread, where all that can fail for one caller fails; then it waits
in the batcher for the worker. What the worker is, the engine does not know.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import Enum
from time import perf_counter
from typing import Any, NamedTuple

from clip4str_service.batcher import (
    Admission,
    Batcher,
    BatcherClosedError,
    BatcherFullError,
    Bounds,
    ItemExpiredError,
    ItemWithdrawnError,
    Place,
)
from clip4str_service.errors import (
    ClientGoneError,
    DeadlineExceededError,
    DrainingError,
    InternalError,
    InvalidRequestError,
    NotReadyError,
    OverloadedError,
    ServiceError,
    TooManyCropsError,
    Violation,
)
from clip4str_service.images import ImageLimits, decode
from clip4str_service.metrics import Metrics
from clip4str_service.options import Options, Priority
from clip4str_service.readings import ModelInfo, Reading
from clip4str_service.settings import Settings
from clip4str_service.worker import Job, Worker

log = logging.getLogger(__name__)

_LOADING = "the model is still being loaded"
_CHUNK = 8  # crops that one pool thread prepares before the next thread may have its turn


class Phase(Enum):
    """Where the engine is in its life."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"


class Timing(NamedTuple):
    """Where a request's time went, in milliseconds; each figure is that of its slowest crop in that stage."""

    decode_ms: float
    queue_ms: float
    inference_ms: float


@dataclass(frozen=True, slots=True)
class Answer:
    """One outcome for each crop, in order, and what read them."""

    model: ModelInfo
    outcomes: Sequence[Reading | ServiceError]
    timing: Timing


class Engine:
    """Reads crops with a worker, in dynamic batches."""

    def __init__(self, worker: Worker, settings: Settings, metrics: Metrics) -> None:
        self._worker = worker
        self._settings = settings
        self._metrics = metrics
        self._limits = ImageLimits(settings.max_crop_bytes, settings.max_crop_pixels)
        self._phase = Phase.STARTING
        self._model: ModelInfo | None = None
        self._pool = ThreadPoolExecutor(settings.decode_threads, thread_name_prefix="decode")
        bounds = Bounds(
            max_batch=settings.max_batch,
            max_delay=settings.max_delay_ms / 1000,
            max_items=settings.queue_crops,
            max_bytes=settings.queue_bytes,
        )
        self._batcher: Batcher[Job, Reading] = Batcher(self._read_batch, bounds, metrics)
        metrics.watch(self._batcher, settings.queue_crops, lambda: self.ready)

    @property
    def ready(self) -> bool:
        """True while crops are accepted and batches are run."""
        return self._phase is Phase.READY and self._batcher.serving

    @property
    def model(self) -> ModelInfo:
        """What is loaded. Raises NotReadyError before it is."""
        if self._model is None:
            raise NotReadyError(_LOADING)
        return self._model

    async def start(self) -> None:
        """Loads and warms up the model, then accepts crops. Raises WorkerStartError."""
        await self._worker.start()
        self._model = self._worker.model
        self._metrics.loaded(self._model)
        self._batcher.start()
        self._phase = Phase.READY

    def check_ready(self) -> None:
        """Raises NotReadyError or DrainingError unless crops are accepted."""
        if self._phase is Phase.DRAINING:
            raise DrainingError("the service is about to stop and takes no more requests")
        if self._phase is Phase.STARTING:
            raise NotReadyError(_LOADING)
        self.check_alive()

    def check_alive(self) -> None:
        """Raises NotReadyError when batches should be run and are not: only a new process helps."""
        if self._phase is Phase.READY and not self._batcher.serving:
            raise NotReadyError("the loop that runs the batches has died; the service must be restarted")

    async def drain(self) -> bool:
        """Takes no more crops; waits for those accepted. False when its time ran out and some were given up."""
        self._phase = Phase.DRAINING
        self._batcher.close()
        try:
            async with asyncio.timeout(self._settings.drain_timeout_ms / 1000):
                await self._batcher.drained()
        except TimeoutError:
            await self._batcher.stop()
            return False
        return True

    async def stop(self) -> None:
        """Gives the model and the threads up; one that is busy ends by itself. For use after `drain`."""
        self._phase = Phase.DRAINING
        await self._batcher.stop()
        await self._worker.stop()
        self._pool.shutdown(wait=False, cancel_futures=True)  # to wait would block the event loop

    async def recognize(
        self, crops: Sequence[bytes | ServiceError], options: Options, deadline: float | None = None
    ) -> Answer:
        """Reads encoded crops. One that fails, or already failed in the front end, has its error as outcome.

        The crops that are not read within the options' timeout fail with it, alone.

        Args:
            deadline: of the call as a whole, as a time of the event loop.

        Raises:
            ServiceError: the request fails as a whole.
        """
        arrived = asyncio.get_running_loop().time()
        self.check_ready()
        self._check_count(len(crops))
        timeout_ms = options.timeout_ms or self._settings.default_timeout_ms
        give_up = arrived + timeout_ms / 1000
        if deadline is not None:
            give_up = min(give_up, deadline)
        admission = self._admit(crops, options, give_up)
        errors: dict[int, ServiceError] = {}
        try:
            async with asyncio.timeout_at(give_up):
                await self._prepare_all(crops, errors, admission, options)
                await admission.settled()
        except TimeoutError:
            admission.withdraw_all("deadline")
            if give_up == deadline:
                self._metrics.failed(DeadlineExceededError.code, len(crops))
                raise DeadlineExceededError("the deadline of the call passed") from None
        except asyncio.CancelledError:
            self._metrics.failed(ClientGoneError.code, len(crops))
            raise
        finally:
            admission.withdraw_all("cancelled")  # nothing is left to, but when this is left early
        outcomes = [errors.get(index) or _outcome(place) for index, place in enumerate(admission.places)]
        self._count(outcomes)
        return Answer(self.model, outcomes, _timing(arrived, admission.places))

    def _check_count(self, count: int) -> None:
        if not count:
            raise InvalidRequestError(Violation("crops", "there must be at least one"))
        if count > self._settings.max_crops:
            raise TooManyCropsError(
                f"the request holds {count} crops; at most {self._settings.max_crops} are read"
            )

    def _admit(
        self, crops: Sequence[bytes | ServiceError], options: Options, deadline: float
    ) -> Admission[Job, Reading]:
        sizes = [0 if isinstance(crop, ServiceError) else len(crop) for crop in crops]
        urgent = options.priority is Priority.INTERACTIVE
        try:
            return self._batcher.admit(sizes, urgent=urgent, deadline=deadline)
        except BatcherFullError as full:
            self._metrics.dropped("shed", len(crops))
            self._metrics.failed(OverloadedError.code, len(crops))
            raise OverloadedError(f"{full}; try again later") from None

    async def _prepare_all(
        self,
        crops: Sequence[bytes | ServiceError],
        errors: dict[int, ServiceError],
        admission: Admission[Job, Reading],
        options: Options,
    ) -> None:
        """Submits what can be prepared; the error of what cannot goes into `errors`, by the crop's index."""
        wanted = options.read_options()

        async def prepare(indices: Sequence[int]) -> None:
            contents = [crops[index] for index in indices]
            prepared = await asyncio.get_running_loop().run_in_executor(self._pool, self._prepare, contents)
            for index, crop in zip(indices, prepared, strict=True):
                if isinstance(crop, ServiceError):
                    errors[index] = crop
                    admission.withdraw(index)
                else:
                    admission.submit(index, Job(crop, wanted))

        if len(crops) <= _CHUNK:
            await prepare(range(len(crops)))
        else:
            chunks = [range(len(crops))[start : start + _CHUNK] for start in range(0, len(crops), _CHUNK)]
            async with asyncio.TaskGroup() as group:
                for chunk in chunks:
                    group.create_task(prepare(chunk))

    def _prepare(self, crops: Sequence[bytes | ServiceError]) -> list[Any | ServiceError]:
        """On a pool thread: encoded crops to what the worker takes, each or its error."""
        return [crop if isinstance(crop, ServiceError) else self._prepare_one(crop) for crop in crops]

    def _prepare_one(self, content: bytes) -> Any | ServiceError:
        started = perf_counter()
        try:
            image = decode(content, self._limits)
        except ServiceError as error:
            return error
        decoded = perf_counter()
        try:
            prepared = self._worker.prepare(image)
        except Exception:
            log.exception("a decoded crop could not be prepared")
            return InternalError("the image could not be prepared")
        self._metrics.stage("decode", decoded - started)
        self._metrics.stage("preprocess", perf_counter() - decoded)
        return prepared

    async def _read_batch(self, jobs: list[Job]) -> Sequence[Reading]:
        started = perf_counter()
        try:
            readings = await self._worker.read(jobs)
        except Exception:
            log.exception("a batch of %d crops failed", len(jobs))
            raise
        self._metrics.stage("inference", perf_counter() - started)
        return readings

    def _count(self, outcomes: Sequence[Reading | ServiceError]) -> None:
        for outcome in outcomes:
            if isinstance(outcome, Reading):
                self._metrics.read(outcome)
            else:
                self._metrics.failed(outcome.code)


def _outcome(place: Place[Job, Reading]) -> Reading | ServiceError:
    outcome = place.outcome
    if isinstance(outcome, Reading):
        if math.isfinite(outcome.confidence):
            return outcome
        log.error("the model's answer is not finite")
    if isinstance(outcome, BatcherClosedError):
        return DrainingError("the service stopped before the crop was read")
    if isinstance(outcome, (ItemExpiredError, ItemWithdrawnError)):
        return DeadlineExceededError("the crop was not read in time")
    return InternalError("the crop could not be read")


def _timing(arrived: float, places: Sequence[Place[Job, Reading]]) -> Timing:
    prepared = [place for place in places if place.submitted_at]
    run = [place for place in places if place.finished_at]
    return Timing(
        _slowest(place.submitted_at - arrived for place in prepared),
        _slowest(place.sealed_at - place.submitted_at for place in run),
        _slowest(place.finished_at - place.sealed_at for place in run),
    )


def _slowest(seconds: Iterable[float]) -> float:
    """The longest time, in milliseconds to the microsecond."""
    return round(1000 * max(seconds, default=0.0), 3)
