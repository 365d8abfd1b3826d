"""The stream, as a way: crops are pushed into one call as they come, answers matched by id.

A stream refuses nothing: it holds back who sends too fast. A client whose crops come anyhow then has a queue at whose
end every answer is late; this one drops what comes while it is held back.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence

import grpc

from bench.serve_ways import GRPC_VERDICTS, Outcome, Verdict, Way, text_of
from clip4str_service.pb import recognition_pb2 as pb
from clip4str_service.pb.recognition_pb2_grpc import RecognitionServiceStub

_AT_ONCE = 64  # crops of one message, at most: those that wait while the one before is written
_HELD_BACK = 0.05  # parts of a crop's timeout that a message takes to be written, when it is held back


class HeldBackError(Exception):
    """The stream takes no crops at the moment."""


class StreamWay(Way[pb.Result]):
    """One crop a request, all in one stream."""

    def __init__(self, address: str, crops: Sequence[bytes], timeout_ms: int) -> None:
        super().__init__(crops, 1)
        self._address = address
        self._options = pb.Options(timeout_ms=timeout_ms)
        self._patience = _HELD_BACK * timeout_ms / 1000
        self._ids = itertools.count()
        self._asked: dict[str, asyncio.Future[pb.Result]] = {}
        self._pushed: list[pb.Crop] = []
        self._some = asyncio.Event()
        self._writing_since: float | None = None

    async def open(self) -> None:
        """Begin the stream."""
        self._channel = grpc.aio.insecure_channel(self._address)
        self._call = RecognitionServiceStub(self._channel).RecognizeStream()
        self._tasks = [asyncio.create_task(self._write()), asyncio.create_task(self._read())]

    async def send(self) -> Outcome:
        """Send the next crop, unless the stream holds back."""
        try:
            return await super().send()
        except HeldBackError:
            return Outcome(Verdict.HELD_BACK)

    async def ask(self, number: int) -> pb.Result:
        """The answer to the crop of this number. Raises HeldBackError."""
        now = asyncio.get_running_loop().time()
        if self._writing_since is not None and now - self._writing_since > self._patience:
            raise HeldBackError
        name = str(next(self._ids))
        answer: asyncio.Future[pb.Result] = asyncio.get_running_loop().create_future()
        self._asked[name] = answer
        self._pushed.append(pb.Crop(id=name, content=self.requests[number]))
        self._some.set()
        try:
            return await answer
        finally:
            self._asked.pop(name, None)

    def judge(self, answer: pb.Result) -> Outcome:
        """By its error's code, where it has one."""
        if answer.HasField("recognition"):
            return Outcome(Verdict.READ, 1)
        verdict = GRPC_VERDICTS.get(answer.error.code, Verdict.FAILED)
        return Outcome(verdict, 0, any("RetryInfo" in detail.type_url for detail in answer.error.details))

    def texts(self, answer: pb.Result) -> list[str]:
        """What was read."""
        return [text_of(answer)]

    async def close(self) -> None:
        """End the stream."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._channel.close()

    async def _write(self) -> None:
        options: pb.Options | None = self._options
        while True:
            await self._some.wait()
            crops, self._pushed = self._pushed[:_AT_ONCE], self._pushed[_AT_ONCE:]
            if not self._pushed:
                self._some.clear()
            self._writing_since = asyncio.get_running_loop().time()
            await self._call.write(pb.RecognizeStreamRequest(options=options, crops=crops))
            self._writing_since = None
            options = None  # of the first message only

    async def _read(self) -> None:
        """Hand answers out, until the stream ends: then whoever waits has why."""
        end: Exception = ConnectionError("the stream ended")
        try:
            async for response in self._call:
                for result in response.results:
                    asked = self._asked.get(result.id)
                    if asked is not None and not asked.done():
                        asked.set_result(result)
        except grpc.aio.AioRpcError as error:
            end = error
        for asked in self._asked.values():
            if not asked.done():
                asked.set_exception(end)
