"""The one door for both front ends: crops in, readings or errors out.

A call's crops first get their places from the supervisor, or are refused before any work is spent on them. Then each
is decoded and prepared on a pool thread, straight into its slot of shared memory, where all that can fail for one
caller fails; then it waits for a worker.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from time import monotonic, perf_counter
from typing import NamedTuple, TypeAlias

from PIL import Image

from clip4str.image import prepare_into
from clip4str_service.calls import Call
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
from clip4str_service.hub import Deliver, Hub, Outcome, Ticket, Times
from clip4str_service.images import ImageLimits, loaded, opened, quick
from clip4str_service.metrics import FrontEndMetrics
from clip4str_service.options import Options, Priority
from clip4str_service.readings import ModelInfo
from clip4str_service.refusals import Asked, RefusalMemory
from clip4str_service.settings import Settings
from clip4str_service.tracing import RequestSpan, current_span
from clip4str_service.wire import Phase, Wanted

log = logging.getLogger(__name__)

Encoded: TypeAlias = bytes | ServiceError
"""A crop as it came, or why the front end has none."""

_CHUNK = 8  # crops that one pool thread prepares before the next thread may have its turn
_FEW = 4  # crops of a call that may be prepared on the event loop, each
_SMALL_BYTES = 32 << 10  # of so many bytes
_SMALL_PIXELS = 1 << 16  # and pixels: about as long as to hand it to a thread and to hear from that
_DIGEST_BYTES = 16
_WAY_BACK, _LONGEST_WAY_BACK = 0.05, 0.05  # of a call's time, and seconds: for the answer to reach its caller


class Timing(NamedTuple):
    """Where a request's time went, in milliseconds; each figure is that of its slowest crop in that stage."""

    decode_ms: float
    queue_ms: float
    inference_ms: float


@dataclass(frozen=True, slots=True)
class Answer:
    """One outcome for each crop, in order, and what read them."""

    model: ModelInfo
    outcomes: Sequence[Outcome]
    timing: Timing


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks: the name of the API key, "" without keys; the trace that the call is part of, "" for none."""

    tenant: str = ""
    traceparent: str = ""


class Engine:
    """Reads crops by way of the supervisor."""

    def __init__(self, hub: Hub, settings: Settings, metrics: FrontEndMetrics) -> None:
        self._hub = hub
        self._settings = settings
        self._metrics = metrics
        self._limits = ImageLimits(settings.max_crop_bytes, settings.max_crop_pixels)
        self._memory = RefusalMemory()
        self._pool = ThreadPoolExecutor(settings.decode_threads, thread_name_prefix="decode")

    @property
    def model(self) -> ModelInfo:
        """What is loaded. Raises NotReadyError before it is."""
        model = self._hub.model
        if model is None:
            raise self._not_ready("the model is still being loaded")
        return model

    def check_ready(self) -> None:
        """Raises NotReadyError or DrainingError unless crops are accepted."""
        match self._hub.phase:
            case Phase.STARTING:
                raise self._not_ready("the model is still being loaded")
            case Phase.RESTARTING:
                raise self._not_ready("the model is loaded again, after its process ended")
            case Phase.DRAINING:
                raise DrainingError("the service is about to stop and takes no more requests")
        self.check_alive()

    def check_alive(self) -> None:
        """Raises NotReadyError when only a new service helps."""
        if self._hub.phase is Phase.FAILED:
            raise self._not_ready("the model cannot be loaded again; the service must be restarted")

    @property
    def stream_crops(self) -> int:
        """Crops of one stream that may be in flight: enough for the next batches while the last ones are read."""
        return self._settings.stream_crops or max(1, 2 * self._hub.at_once)

    @property
    def draining(self) -> asyncio.Event:
        """Set when the service is about to stop."""
        return self._hub.draining

    def count(self, error: ServiceError, crops: int = 1) -> None:
        """Counts crops that were refused before they had places."""
        self._metrics.failed(error.code, crops)
        if isinstance(error, OverloadedError):
            self._metrics.refused("limited" if error.limited else "shed", crops)

    def stop(self) -> None:
        """Gives the threads up; one that is busy ends by itself."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def recognize(
        self,
        crops: Sequence[Encoded],
        options: Options,
        caller: Caller = Caller(),
        deadline: float | None = None,
    ) -> Answer:
        """Reads encoded crops. One that fails, or already failed in the front end, has its error as outcome.

        The crops that are not read within the options' timeout fail with it, alone.

        Args:
            deadline: of the call as a whole, as a time of the event loop.

        Raises:
            ServiceError: the request fails as a whole.
        """
        arrived = asyncio.get_running_loop().time()
        outcomes: list[Outcome] = [DeadlineExceededError("the crop was not read in time")] * len(crops)
        times = [Times()] * len(crops)

        def deliver(index: int, outcome: Outcome, when: Times) -> None:
            outcomes[index] = outcome
            times[index] = when

        try:
            call = await self.begin(crops, options, caller, deliver, deadline=deadline)
        except ServiceError as error:
            self.count(error, len(crops))
            raise
        except asyncio.CancelledError:
            self.count(ClientGoneError("the client left"), len(crops))
            raise
        await call.finish()
        return Answer(call.model, outcomes, _timing(arrived, times))

    async def begin(
        self,
        crops: Sequence[Encoded],
        options: Options,
        caller: Caller,
        deliver: Deliver,
        *,
        arrived: float | None = None,
        deadline: float | None = None,
    ) -> Call:
        """As `recognize`, up to where the crops have their places; `deliver` gets each outcome once there is one.

        Args:
            arrived: when the options' timeout began, as a time of the event loop; now.
        """
        loop = asyncio.get_running_loop()
        self.check_ready()
        self._check_count(len(crops))
        now = loop.time()
        give_up = (arrived or now) + (options.timeout_ms or self._settings.default_timeout_ms) / 1000
        if deadline is not None:
            give_up = min(give_up, deadline)
        if give_up <= now:
            raise DeadlineExceededError("the deadline of the call passed")
        call = Call(len(crops), deliver, give_up, deadline, self._metrics)
        span = current_span.get()
        asked = Asked(caller.tenant, options.priority is Priority.INTERACTIVE, len(crops), give_up - now)
        self._memory.check(asked, now)
        try:
            ticket = call.ticket = await self._hub.admit(
                [0 if isinstance(crop, ServiceError) else len(crop) for crop in crops],
                Wanted(options.top_k, options.charset),
                call.deliver,
                urgent=asked.urgent,
                deadline=give_up - min(_WAY_BACK * asked.patience, _LONGEST_WAY_BACK),
                tenant=caller.tenant,
                traceparent=caller.traceparent,
            )
        except OverloadedError as refusal:
            self._memory.keep(asked, refusal, loop.time())
            raise
        for start in range(0, len(crops), _CHUNK):
            chunk = range(start, min(start + _CHUNK, len(crops)))
            preparing = self._prepared(ticket, chunk, [crops[index] for index in chunk], len(crops))
            preparing.add_done_callback(partial(_submit, ticket, chunk, span, monotonic()))
        return call

    def _not_ready(self, detail: str) -> NotReadyError:
        return NotReadyError(detail, retry_after=self._hub.retry_after_ms / 1000)

    def _check_count(self, count: int) -> None:
        if not count:
            raise InvalidRequestError(Violation("crops", "there must be at least one"))
        if count > self._settings.max_crops:
            raise TooManyCropsError(
                f"the request holds {count} crops; at most {self._settings.max_crops} are read"
            )

    def _prepared(
        self, ticket: Ticket, chunk: Sequence[int], contents: Sequence[Encoded], crops: int
    ) -> asyncio.Future[list[bytes | ServiceError]]:
        """A call's crops, in their slots: on a pool thread, or at once, where that takes less than to ask one."""
        loop = asyncio.get_running_loop()
        images = [self._opened_if_small(content) for content in contents] if crops <= _FEW else [None]
        if None in images:
            return loop.run_in_executor(self._pool, self._prepare, ticket, chunk, contents)
        done: asyncio.Future[list[bytes | ServiceError]] = loop.create_future()
        done.set_result(self._prepare(ticket, chunk, contents, images))
        return done

    def _opened_if_small(self, content: Encoded) -> Image.Image | ServiceError | None:
        if isinstance(content, ServiceError):
            return content
        if len(content) > _SMALL_BYTES or not quick(content):
            return None
        try:
            image = opened(content, self._limits)
        except ServiceError as error:
            return error
        return image if image.width * image.height <= _SMALL_PIXELS else None

    def _prepare(
        self,
        ticket: Ticket,
        chunk: Sequence[int],
        contents: Sequence[Encoded],
        images: Sequence[Image.Image | ServiceError | None] = (),
    ) -> list[bytes | ServiceError]:
        """Crops into their slots; the digest of each one's bytes, or its error. Safe to call from several threads.

        `images` has what is opened already, or found to be none.
        """
        return [
            self._prepare_one(ticket, index, content, image)
            for index, content, image in zip(chunk, contents, images or [None] * len(chunk), strict=True)
        ]

    def _prepare_one(
        self, ticket: Ticket, index: int, content: Encoded, image: Image.Image | ServiceError | None
    ) -> bytes | ServiceError:
        if isinstance(content, ServiceError):
            return content
        if isinstance(image, ServiceError):
            return image
        if ticket.abandoned:
            return b""
        started = perf_counter()
        try:
            pixels = loaded(image or opened(content, self._limits))
            decoded = perf_counter()
            prepare_into(pixels, ticket.loaded.crops.pixels[ticket.slots[index]])
        except ServiceError as error:
            return error
        except Exception:
            log.exception("a crop could not be prepared")
            return InternalError("the image could not be prepared")
        self._metrics.stage("decode", decoded - started)
        self._metrics.stage("preprocess", perf_counter() - decoded)
        return blake2b(content, digest_size=_DIGEST_BYTES).digest()


def _submit(
    ticket: Ticket,
    chunk: Sequence[int],
    span: RequestSpan,
    started: float,
    preparing: asyncio.Future[list[bytes | ServiceError]],
) -> None:
    if preparing.cancelled():  # the pool was given up, and so is the front end
        return
    span.record("decode", started, monotonic(), len(chunk))
    fault = preparing.exception()
    if fault is not None:
        log.error("crops could not be prepared", exc_info=fault)
    results = [InternalError("the image could not be prepared")] * len(chunk) if fault else preparing.result()
    ready: list[int] = []
    digests: list[bytes] = []
    for index, result in zip(chunk, results, strict=True):
        if isinstance(result, ServiceError):
            ticket.fail(index, result)
        else:
            ready.append(index)
            digests.append(result)
    if ready:
        ticket.submit(ready, digests)


def _timing(arrived: float, times: Sequence[Times]) -> Timing:
    prepared = [when for when in times if when.submitted]
    run = [when for when in times if when.finished]
    return Timing(
        _slowest(when.submitted - arrived for when in prepared),
        _slowest(when.sealed - when.submitted for when in run),
        _slowest(when.finished - when.sealed for when in run),
    )


def _slowest(seconds: Iterable[float]) -> float:
    """The longest time, in milliseconds to the microsecond."""
    return round(1000 * max(seconds, default=0.0), 3)
