"""Clients that ask again as the service tells them to, and remember what the first try came to.

To read a crop twice does no harm, so whatever could be better the next time is asked again: what was refused with a
time to come back at that time, what was cut off or had nobody to answer it after a pause that doubles.
"""

from __future__ import annotations

import asyncio
import itertools
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import NamedTuple

import grpc
import httpx
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from clip4str_service.pb import recognition_pb2 as pb
from clip4str_service.pb.recognition_pb2_grpc import RecognitionServiceStub
from clip4str_service.samples import Sample

PATIENCE = 30.0  # seconds after which no new try is begun
_TRY_SECONDS = 10.0
_PAUSE, _LONGEST_PAUSE = 0.05, 1.0  # seconds, where nobody said how long

_HTTP_AGAIN = {HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.BAD_GATEWAY, HTTPStatus.SERVICE_UNAVAILABLE}
_GRPC_AGAIN = {grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE}


class Try(NamedTuple):
    """What one try came to: a text, or a code; whether it is worth another, and after how many seconds, if known."""

    text: str | None
    code: str = ""
    again: bool = False
    after: float | None = None


@dataclass(frozen=True, slots=True)
class Asked:
    """A request with all its tries. Times of the event loop.

    Attributes:
        begun: when it was due.
        first_ended: when its first try was over.
        ended: when the last one was.
        first: the code of the first try, empty if the crop was read right.
        last: likewise of the last one.
    """

    begun: float
    first_ended: float
    ended: float
    first: str
    last: str


class Client(ABC):
    """Asks one address."""

    @abstractmethod
    async def attempt(self, content: bytes) -> Try:
        """Try to have a crop read, once."""

    @abstractmethod
    async def close(self) -> None:
        """Hang up."""

    async def ask(self, sample: Sample, begun: float) -> Asked:
        """Try until the crop is read, cannot be, or PATIENCE is over."""
        now = asyncio.get_running_loop().time
        codes: list[str] = []
        for number in itertools.count():
            tried = await self.attempt(sample.content)
            codes.append("wrong" if tried.text not in (None, sample.text) else tried.code)
            if number == 0:
                first_ended = now()
            pause = min(_LONGEST_PAUSE, _PAUSE * 2**number) if tried.after is None else tried.after
            if not tried.again or now() + pause - begun > PATIENCE:
                break
            await asyncio.sleep(pause)
        return Asked(begun, first_ended, now(), codes[0], codes[-1])


class RestClient(Client):
    """One crop a request: its bytes are the body."""

    def __init__(self, url: str) -> None:
        self._http = httpx.AsyncClient(base_url=url, timeout=_TRY_SECONDS)

    async def attempt(self, content: bytes) -> Try:
        """Try to have a crop read, once."""
        headers = {"Content-Type": "image/jpeg"}
        try:
            response = await self._http.post("/v1/recognize?detail=text", content=content, headers=headers)
        except httpx.TransportError as error:
            return Try(None, type(error).__name__, again=True)
        if response.status_code == HTTPStatus.OK:
            return Try(response.json()["results"][0]["text"])
        ours = response.headers["Content-Type"].startswith("application/problem+json")
        code = response.json()["code"] if ours else f"HTTP {response.status_code}"
        after = response.headers.get("Retry-After")
        return Try(None, code, response.status_code in _HTTP_AGAIN, None if after is None else float(after))

    async def close(self) -> None:
        """Hang up."""
        await self._http.aclose()


class GrpcClient(Client):
    """One crop a call, all over one connection."""

    def __init__(self, address: str) -> None:
        self._channel = grpc.aio.insecure_channel(address)
        self._stub = RecognitionServiceStub(self._channel)

    async def attempt(self, content: bytes) -> Try:
        """Try to have a crop read, once."""
        request = pb.RecognizeRequest(crops=[pb.Crop(content=content)])
        try:
            answer = await self._stub.Recognize(request, timeout=_TRY_SECONDS)
        except grpc.aio.AioRpcError as error:
            return _refusal(error)
        (result,) = answer.results
        if result.HasField("recognition"):
            return Try(result.recognition.text)
        return Try(None, result.error.message)

    async def close(self) -> None:
        """Hang up."""
        await self._channel.close()


def _refusal(error: grpc.aio.AioRpcError) -> Try:
    code, after = error.code().name, None
    status = rpc_status.from_call(error)  # type: ignore[arg-type]  # it has what a Call has
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    for detail in status.details if status else ():
        if detail.Unpack(info):
            code = info.reason
        elif detail.Unpack(retry):
            after = retry.retry_delay.ToMilliseconds() / 1000
    return Try(None, code, error.code() in _GRPC_AGAIN, after)


async def steady(client: Client, samples: Sequence[Sample], rate: float, stop: asyncio.Event) -> list[Asked]:
    """Ask `rate` times a second, whatever became of those before, until told to stop; then await each one's end."""
    loop = asyncio.get_running_loop()
    start = loop.time()
    asked: list[asyncio.Task[Asked]] = []
    async with asyncio.TaskGroup() as group:
        for number, sample in enumerate(itertools.cycle(samples)):
            due = start + number / rate
            await asyncio.sleep(due - loop.time())
            if stop.is_set():
                break
            asked.append(group.create_task(client.ask(sample, due)))
    return [each.result() for each in asked]
