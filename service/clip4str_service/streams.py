"""One RecognizeStream: crops in as they come, outcomes out as they are ready, a bounded number of them between.

Three tasks share the work: one reads the client's messages, as long as there is room for crops in flight; one gets
their crops places, together what has gathered meanwhile, and waits while the service is full; one writes what is
ready. A client that does not read its answers fills the room between, and then nothing more is read of it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from functools import partial
from itertools import groupby, islice
from operator import itemgetter
from typing import NamedTuple

from clip4str_service.calls import Call
from clip4str_service.engine import Caller, Engine
from clip4str_service.errors import (
    ClientGoneError,
    DeadlineExceededError,
    DrainingError,
    InvalidRequestError,
    NotReadyError,
    OverloadedError,
    ServiceError,
    TooManyCropsError,
    Violation,
)
from clip4str_service.hub import Outcome, Times
from clip4str_service.intake import Holding
from clip4str_service.messages import check_id, options_of, result, stream_response
from clip4str_service.options import MAX_ID_LENGTH, Options
from clip4str_service.pb import recognition_pb2 as pb
from clip4str_service.readings import ModelInfo
from clip4str_service.settings import Settings

Write = Callable[[pb.RecognizeStreamResponse], Awaitable[None]]

_MOST_TOGETHER = 32  # crops that get their places together
_AS_OLD = 0.05  # parts of their timeout that the oldest and the youngest of them may be apart
_PAUSE = 0.25  # seconds between two tries to get room or places, at most


class _Crop(NamedTuple):
    """A crop of the stream. `arrived`: a time of the event loop."""

    id: str
    content: bytes | ServiceError
    arrived: float

    @property
    def nbytes(self) -> int:
        return 0 if isinstance(self.content, ServiceError) else len(self.content)


class CropStream:
    """A stream, from its first message to its last answer."""

    def __init__(
        self,
        engine: Engine,
        settings: Settings,
        caller: Caller,
        deadline: float | None,
        write: Write,
        holding: Holding,
    ) -> None:
        """`holding` takes the bytes of the crops in flight."""
        self._count = 0  # of crops that came
        self._engine = engine
        self._settings = settings
        self._caller = caller
        self._deadline = deadline
        self._write = write
        self._holding = holding
        self._options: Options | None = None
        self._waiting: deque[_Crop] = deque()  # for places
        self._together = _MOST_TOGETHER  # of them that are tried next
        self._ready: list[tuple[ModelInfo | None, pb.Result]] = []
        self._in_flight = 0  # came, and their answers have not left
        self._ended = False  # nothing more is read
        self._heard_at = asyncio.get_running_loop().time()  # or told
        self._failure: ServiceError | None = None
        self._room, self._came, self._moved = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def run(self, requests: AsyncIterator[pb.RecognizeStreamRequest]) -> None:
        """Answers the whole stream. Raises ServiceError when it ends otherwise, after what could be answered."""
        try:
            async with asyncio.TaskGroup() as group:
                reading = group.create_task(self._read(requests))
                stops = [
                    group.create_task(stop(reading)) for stop in (self._stop_at_drain, self._stop_in_silence)
                ]
                group.create_task(self._admit(group))
                await group.create_task(self._answer())
                for stop in stops:
                    stop.cancel()
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from None
        finally:  # a client that does not read can hold up the end of its call, but no crops
            if self._waiting:
                self._engine.count(self._failure or ClientGoneError("the client left"), len(self._waiting))
            self._waiting.clear()
            self._ready.clear()
        if self._failure is not None:
            raise self._failure

    @property
    def _seconds(self) -> float:
        """What a crop has from its arrival on."""
        options = self._options or Options()
        return (options.timeout_ms or self._settings.default_timeout_ms) / 1000

    async def _read(self, requests: AsyncIterator[pb.RecognizeStreamRequest]) -> None:
        try:
            async for request in requests:
                if self._options is None:
                    self._options = options_of(request.options)
                elif request.HasField("options"):
                    raise InvalidRequestError(
                        Violation("options", "only the stream's first message may have any")
                    )
                crops = self._crops(request)
                if not await self._hold(crops):
                    full = OverloadedError("there was no room for the crop in its time; try again later")
                    crops = [crop._replace(content=full) for crop in crops]
                self._in_flight += len(crops)
                self._waiting.extend(crops)
                self._came.set()
                while self._in_flight >= self._engine.stream_crops:
                    self._room.clear()
                    await self._room.wait()
        finally:
            self._ended = True
            self._came.set()
            self._moved.set()

    def _crops(self, request: pb.RecognizeStreamRequest) -> list[_Crop]:
        if len(request.crops) > self._settings.max_crops:
            raise TooManyCropsError(
                f"a message holds {len(request.crops)} crops; at most {self._settings.max_crops} are read of one"
            )
        now = asyncio.get_running_loop().time()
        crops = [_crop(self._count + index, crop, now) for index, crop in enumerate(request.crops)]
        self._count += len(crops)
        return crops

    async def _hold(self, crops: Sequence[_Crop]) -> bool:
        """Waits for room for a message's crops; False when there is none in their time."""
        loop = asyncio.get_running_loop()
        nbytes = sum(crop.nbytes for crop in crops)
        give_up = loop.time() + self._seconds
        while loop.time() < give_up:
            self._heard_at = loop.time()  # as long as it waits here, it is not the client that is silent
            try:
                self._holding.take(nbytes)
            except OverloadedError:
                await _pause(_PAUSE, give_up)
            else:
                return True
        return False

    async def _stop_at_drain(self, reading: asyncio.Task[None]) -> None:
        await self._engine.draining.wait()
        if not reading.done():
            self._failure = DrainingError("the service is about to stop; send again what was not answered")
            reading.cancel()

    async def _stop_in_silence(self, reading: asyncio.Task[None]) -> None:
        """A client that has all its answers, and asks nothing more for long, or never ends a message."""
        loop = asyncio.get_running_loop()
        silence = self._settings.idle_timeout_ms / 1000
        while (rest := self._heard_at + silence - loop.time()) > 0 or self._in_flight:  # noqa: ASYNC110 (time)
            await asyncio.sleep(rest if rest > 0 else silence)
        if not reading.done():
            self._failure = DeadlineExceededError(f"nothing was sent for {silence:g} s; open another stream")
            reading.cancel()

    async def _admit(self, group: asyncio.TaskGroup) -> None:
        while self._waiting or not self._ended:
            await self._came.wait()
            self._came.clear()
            while self._waiting:
                call = await self._begin()
                if call is not None:
                    finishing = group.create_task(call.finish())
                    finishing.add_done_callback(partial(_abandon, call))

    async def _begin(self) -> Call | None:
        """Gets places for the first of the waiting crops, as soon as there are any; None when there are none in time.

        While there are few places, they are asked for by fewer crops at a time.
        """
        options = self._options or Options()
        call: Call | None = None
        refusal: ServiceError = OverloadedError(
            "there was no place for the crop in its time; try again later"
        )

        def deliver(index: int, outcome: Outcome, _: Times) -> None:
            self._answered(crops[index], outcome, None if call is None else call.model)

        while True:
            crops = self._next()
            give_up = crops[0].arrived + self._seconds
            if asyncio.get_running_loop().time() >= give_up:
                crops = crops[:1]
                break
            try:
                call = await self._engine.begin(
                    [crop.content for crop in crops],
                    options,
                    self._caller,
                    deliver,
                    arrived=crops[0].arrived,
                    deadline=self._deadline,
                )
            except (OverloadedError, NotReadyError, TooManyCropsError) as full:
                refusal = full
                if len(crops) > 1:
                    self._together = len(crops) // 2
                elif full.retry_after_ms is not None:
                    await _pause(min(_PAUSE, full.retry_after_ms / 1000), give_up)
                else:
                    break
            except DrainingError as over:
                self._failure = over
                self._engine.count(over, len(crops))
                self._leave(crops)
                self._in_flight -= len(crops)
                self._moved.set()
                return None
            except ServiceError as refused:
                refusal = refused
                break
            else:
                self._together = min(_MOST_TOGETHER, 2 * self._together)
                self._leave(crops)
                return call
        self._leave(crops)
        for crop in crops:
            self._engine.count(refusal)
            self._answered(crop, refusal, None)
        return None

    def _next(self) -> list[_Crop]:
        """The first of the waiting crops that are about as old; they stay where they are."""
        most = min(self._together, self._settings.max_crops)
        youngest = self._waiting[0].arrived + _AS_OLD * self._seconds
        return [crop for crop in islice(self._waiting, most) if crop.arrived <= youngest]

    def _leave(self, crops: Sequence[_Crop]) -> None:
        for _ in crops:
            self._waiting.popleft()

    def _answered(self, crop: _Crop, outcome: Outcome, model: ModelInfo | None) -> None:
        self._holding.give_back(crop.nbytes)
        detail = (self._options or Options()).detail
        self._ready.append((model, result(crop.id, outcome, detail)))
        self._moved.set()

    async def _answer(self) -> None:
        while self._ready or self._in_flight or not self._ended:
            await self._moved.wait()
            self._moved.clear()
            ready, self._ready = self._ready, []
            for model, results in groupby(ready, key=itemgetter(0)):
                response = stream_response(model, [each for _, each in results])
                try:
                    async with asyncio.timeout(self._settings.idle_timeout_ms / 1000):
                        await self._write(response)
                except TimeoutError:
                    raise ClientGoneError("the client does not read its answers") from None
                self._in_flight -= len(response.results)
                self._heard_at = asyncio.get_running_loop().time()
                self._room.set()


def _abandon(call: Call, _: asyncio.Task[None]) -> None:
    """Gives a call's crops up, if any are left: `finish`, cancelled before it began, cannot."""
    call.ticket.abandon("cancelled")


def _crop(position: int, crop: pb.Crop, now: float) -> _Crop:
    name = crop.id or str(position)
    try:
        check_id(name, f"crops[{position}].id")
    except InvalidRequestError as error:
        return _Crop(name[:MAX_ID_LENGTH], error, now)
    return _Crop(name, crop.content, now)


async def _pause(seconds: float, until: float) -> None:
    """Waits, but not beyond `until`, a time of the event loop."""
    await asyncio.sleep(max(0.0, min(until - asyncio.get_running_loop().time(), seconds)))
