"""Ways to have crops read by a server: what is sent, and what its answer amounts to.

A way sends its requests round and round: a crop comes again when all others have been sent, so that there are never
two of it in flight.
"""

from __future__ import annotations

import base64
import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from enum import Enum
from typing import Generic, NamedTuple, TypeVar
from urllib.parse import urlsplit

import grpc
import orjson

from bench.serve_http import BrokenAnswerError, HttpClient, Response
from clip4str_service.pb import recognition_pb2 as pb

A = TypeVar("A")

_RECOGNIZE = f"/{pb.DESCRIPTOR.services_by_name['RecognitionService'].full_name}/Recognize"


class Verdict(Enum):
    """What became of a request."""

    READ = "read"  # all of it
    REFUSED = "refused"  # at once: too much is going on
    HELD_BACK = "held back"  # not sent: the stream takes no more
    LATE = "late"  # given up, by the server or by the client
    FAILED = "failed"


class Outcome(NamedTuple):
    """What a request came to: how many of its crops were read, and whether a refusal says when to come back."""

    verdict: Verdict
    crops: int = 0
    retry_after: bool = False


_HTTP_VERDICTS = {408: Verdict.LATE, 429: Verdict.REFUSED, 503: Verdict.REFUSED, 504: Verdict.LATE}
GRPC_VERDICTS = {
    code.value[0]: verdict  # by number, as google.rpc.Status has it
    for code, verdict in (
        (grpc.StatusCode.RESOURCE_EXHAUSTED, Verdict.REFUSED),
        (grpc.StatusCode.UNAVAILABLE, Verdict.REFUSED),
        (grpc.StatusCode.DEADLINE_EXCEEDED, Verdict.LATE),
    )
}


class Way(ABC, Generic[A]):
    """Requests of `crops` crops each, and their answers, A."""

    def __init__(self, requests: Sequence[bytes], crops: int) -> None:
        self.crops = crops
        self.requests = requests
        self._numbers = itertools.cycle(range(len(requests)))

    async def send(self) -> Outcome:
        """Send the next request."""
        try:
            return self.judge(await self.ask(next(self._numbers)))
        except (OSError, BrokenAnswerError):
            return Outcome(Verdict.FAILED)
        except grpc.aio.AioRpcError as error:
            return _refusal(error)

    async def open(self) -> None:
        """Make ready to send."""

    @abstractmethod
    async def ask(self, number: int) -> A:
        """The answer to the request of this number."""

    @abstractmethod
    def judge(self, answer: A) -> Outcome:
        """What it amounts to."""

    @abstractmethod
    def texts(self, answer: A) -> list[str]:
        """What was read, crop by crop. Raises ValueError or LookupError where something was not."""

    @abstractmethod
    async def close(self) -> None:
        """Hang up."""


class HttpWay(Way[Response]):
    """Ready HTTP requests. `read` finds the texts in an answer's JSON."""

    def __init__(
        self, url: str, requests: Sequence[bytes], crops: int, read: Callable[[Response], list[str]]
    ) -> None:
        super().__init__(requests, crops)
        self._client = HttpClient(url)
        self._read = read

    async def ask(self, number: int) -> Response:
        """The answer to the request of this number."""
        return await self._client.send(self.requests[number])

    def judge(self, answer: Response) -> Outcome:
        """By its status; of an answer with several results, those without an error count."""
        if answer.status == 200:
            failed = answer.body.count(b'"error":{')
            verdict = Verdict.LATE if failed else Verdict.READ
            return Outcome(verdict, self.crops - failed)
        retry_after = b"\r\nretry-after:" in answer.head
        return Outcome(_HTTP_VERDICTS.get(answer.status, Verdict.FAILED), 0, retry_after)

    def texts(self, answer: Response) -> list[str]:
        """What was read, crop by crop."""
        if answer.status != 200:
            raise ValueError(f"status {answer.status}: {answer.body[:200]!r}")
        return self._read(answer)

    async def close(self) -> None:
        """Hang up."""
        self._client.close()


def post(url: str, content_type: str, body: bytes) -> bytes:
    """An HTTP request with all its bytes."""
    parts = urlsplit(url)
    target = f"{parts.path}?{parts.query}" if parts.query else parts.path
    head = f"POST {target} HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Type: {content_type}\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def rest(url: str, crops: Sequence[bytes], timeout_ms: int) -> HttpWay:
    """One crop a request: its bytes are the body."""
    target = f"{url}/v1/recognize?timeout_ms={timeout_ms}"
    return HttpWay(url, [post(target, "image/jpeg", crop) for crop in crops], 1, _rest_texts)


def rest_batches(url: str, crops: Sequence[bytes], timeout_ms: int, size: int) -> HttpWay:
    """`size` crops a request, in JSON."""
    requests = []
    for batch in _batches(crops, size):
        body = {
            "crops": [{"content": base64.b64encode(crop).decode()} for crop in batch],
            "options": {"timeout_ms": timeout_ms},
        }
        requests.append(post(f"{url}/v1/recognize", "application/json", orjson.dumps(body)))
    return HttpWay(url, requests, size, _rest_texts)


def _rest_texts(answer: Response) -> list[str]:
    return [result["text"] for result in orjson.loads(answer.body)["results"]]


class GrpcWay(Way[pb.RecognizeResponse]):
    """`size` crops a call, serialised before."""

    def __init__(self, address: str, crops: Sequence[bytes], timeout_ms: int, size: int = 1) -> None:
        options = pb.Options(timeout_ms=timeout_ms)
        requests = [
            pb.RecognizeRequest(crops=[pb.Crop(content=crop) for crop in batch], options=options)
            for batch in _batches(crops, size)
        ]
        super().__init__([request.SerializeToString() for request in requests], size)
        self._address = address

    async def open(self) -> None:
        """Connect."""
        self._channel = grpc.aio.insecure_channel(self._address)
        self._call: grpc.aio.UnaryUnaryMultiCallable[bytes, pb.RecognizeResponse] = self._channel.unary_unary(
            _RECOGNIZE, response_deserializer=pb.RecognizeResponse.FromString
        )

    async def ask(self, number: int) -> pb.RecognizeResponse:
        """The answer to the call of this number."""
        return await self._call(self.requests[number])

    def judge(self, answer: pb.RecognizeResponse) -> Outcome:
        """Results without an error count."""
        read = sum(result.HasField("recognition") for result in answer.results)
        return Outcome(Verdict.READ if read == self.crops else Verdict.LATE, read)

    def texts(self, answer: pb.RecognizeResponse) -> list[str]:
        """What was read, crop by crop."""
        return [text_of(result) for result in answer.results]

    async def close(self) -> None:
        """Hang up."""
        await self._channel.close()


def _batches(crops: Sequence[bytes], size: int) -> list[Sequence[bytes]]:
    """All of them whole."""
    return [crops[start : start + size] for start in range(0, len(crops) - size + 1, size)]


def text_of(result: pb.Result) -> str:
    """What was read. Raises ValueError where nothing was."""
    if not result.HasField("recognition"):
        raise ValueError(f"a crop was not read: {result.error.message}")
    return result.recognition.text


def _refusal(error: grpc.aio.AioRpcError) -> Outcome:
    """A call's status. Its details are looked at as bytes: a refusal should cost the client no work."""
    details = dict(error.trailing_metadata()).get("grpc-status-details-bin", b"")
    retry_after = isinstance(details, bytes) and b"google.rpc.RetryInfo" in details
    return Outcome(GRPC_VERDICTS.get(error.code().value[0], Verdict.FAILED), 0, retry_after)
