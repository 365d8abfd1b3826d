"""One RecognizeStream: crops in as they come, outcomes out as they are ready, a bounded number of them between.

Three tasks share the work: one reads the client's messages, as long as there is room for crops in flight; one gets
their crops places, together what has gathered meanwhile, and waits while the service is full; one writes what is
ready. A client that does not read its answers fills the room between, and then nothing more is read of it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from itertools import groupby
from operator import itemgetter
from typing import NamedTuple

from clip4str_service.engine import Call, Caller, Engine
from clip4str_service.errors import (
    ClientGoneError,
    DrainingError,
    InvalidRequestError,
    NotReadyError,
    OverloadedError,
    ServiceError,
    Violation,
)
from clip4str_service.hub import Outcome, Times
from clip4str_service.messages import check_id, options_of, result, stream_response
from clip4str_service.options import MAX_ID_LENGTH, Options
from clip4str_service.pb import recognition_pb2 as pb
from clip4str_service.readings import ModelInfo
from clip4str_service.settings import Settings

Write = Callable[[pb.RecognizeStreamResponse], Awaitable[None]]


_CHUNK = 32  # crops that get their places together
_LONGEST_PAUSE = 0.25  # seconds between two tries to get them


class _Crop(NamedTuple):
    """A crop of the stream. `arrived`: a time of the event loop."""

    id: str
    content: bytes | ServiceError
    arrived: float


class CropStream:
    """A stream, from its first message to its last answer."""

    def __init__(
        self, engine: Engine, settings: Settings, caller: Caller, deadline: float | None, write: Write
    ) -> None:
        self._count = 0  # of crops that came
        self._engine = engine
        self._settings = settings
        self._caller = caller
        self._deadline = deadline
        self._write = write
        self._options: Options | None = None
        self._waiting: deque[_Crop] = deque()  # for places
        self._ready: list[tuple[ModelInfo | None, pb.Result]] = []
        self._in_flight = 0  # came, and their answers have not left
        self._ended = False  # nothing more is read
        self._failure: ServiceError | None = None
        self._room, self._came, self._moved = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def run(self, requests: AsyncIterator[pb.RecognizeStreamRequest]) -> None:
        """Answers the whole stream. Raises ServiceError when it ends otherwise, after what could be answered."""
        try:
            async with asyncio.TaskGroup() as group:
                reading = group.create_task(self._read(requests))
                draining = group.create_task(self._stop_at_drain(reading))
                group.create_task(self._admit(group))
                await group.create_task(self._answer())
                draining.cancel()
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from None
        if self._failure is not None:
            raise self._failure

    async def _read(self, requests: AsyncIterator[pb.RecognizeStreamRequest]) -> None:
        try:
            async for request in requests:
                if self._options is None:
                    self._options = options_of(request.options)
                elif request.HasField("options"):
                    raise InvalidRequestError(
                        Violation("options", "only the stream's first message may have any")
                    )
                now = asyncio.get_running_loop().time()
                for crop in request.crops:
                    self._waiting.append(_crop(self._count, crop, now))
                    self._count += 1
                self._in_flight += len(request.crops)
                self._came.set()
                while self._in_flight >= self._settings.stream_crops:
                    self._room.clear()
                    await self._room.wait()
        finally:
            self._ended = True
            self._came.set()
            self._moved.set()

    async def _stop_at_drain(self, reading: asyncio.Task[None]) -> None:
        await self._engine.draining.wait()
        self._failure = DrainingError("the service is about to stop; send again what was not answered")
        reading.cancel()

    async def _admit(self, group: asyncio.TaskGroup) -> None:
        while self._waiting or not self._ended:
            await self._came.wait()
            self._came.clear()
            while self._waiting:
                chunk = [self._waiting.popleft() for _ in range(min(_CHUNK, len(self._waiting)))]
                call = await self._begin(chunk)
                if call is not None:
                    group.create_task(call.finish())

    async def _begin(self, crops: Sequence[_Crop]) -> Call | None:
        """Gets places for crops, as soon as there are any; None when there are none in time."""
        loop = asyncio.get_running_loop()
        options = self._options or Options()
        timeout_ms = options.timeout_ms or self._settings.default_timeout_ms
        call: Call | None = None

        def deliver(index: int, outcome: Outcome, _: Times) -> None:
            self._answered(crops[index], outcome, None if call is None else call.model)

        while True:
            try:
                call = await self._engine.begin(
                    [crop.content for crop in crops],
                    options,
                    self._caller,
                    deliver,
                    arrived=crops[0].arrived,
                    deadline=self._deadline,
                )
            except (OverloadedError, NotReadyError) as full:
                left = crops[0].arrived + timeout_ms / 1000 - loop.time()
                if left > 0:
                    await asyncio.sleep(min(left, _LONGEST_PAUSE, (full.retry_after_ms or 0) / 1000))
                    continue
                failure: ServiceError = full
            except DrainingError as over:
                self._failure = over
                self._in_flight -= len(crops)
                self._moved.set()
                return None
            except ServiceError as refused:
                failure = refused
            else:
                return call
            for crop in crops:
                self._engine.count(failure)
                self._answered(crop, failure, None)
            return None

    def _answered(self, crop: _Crop, outcome: Outcome, model: ModelInfo | None) -> None:
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
                self._room.set()


def _crop(position: int, crop: pb.Crop, now: float) -> _Crop:
    name = crop.id or str(position)
    try:
        check_id(name, f"crops[{position}].id")
    except InvalidRequestError as error:
        return _Crop(name[:MAX_ID_LENGTH], error, now)
    return _Crop(name, crop.content, now)
