"""Clients of a running service, by every way there is to ask: one request, many at once, or one after another."""

import base64
import itertools
import json
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import monotonic

import grpc
import httpx
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from clip4str_service.pb import recognition_pb2 as pb
from clip4str_service.pb.recognition_pb2_grpc import RecognitionServiceStub
from clip4str_service.samples import Sample
from samples.demo import RunningService
from tests.e2e.observed import PATIENT, metrics, until

JPEG = {"Content-Type": "image/jpeg"}
OWN_CONNECTION = [("grpc.use_local_subchannel_pool", 1)]

_numbers = itertools.count()


@dataclass(frozen=True)
class Answer:
    """What came back: for each crop its text, or an error's code; what read them, "" if nothing did."""

    outcomes: list[str]
    revision: str = ""


Ask = Callable[[RunningService, Sequence[bytes]], Answer]


def crops(samples: Sequence[Sample], count: int) -> tuple[list[bytes], list[str]]:
    """So many crops that are like no other by their bytes, so that each is read; and what they say."""
    chosen = list(itertools.islice(itertools.cycle(samples), count))
    return [unlike(sample.content) for sample in chosen], [sample.text for sample in chosen]


def unlike(content: bytes) -> bytes:
    """The JPEG with a comment that no other has."""
    comment = str(next(_numbers)).encode()
    return content[:2] + b"\xff\xfe" + struct.pack(">H", len(comment) + 2) + comment + content[2:]


def as_json(contents: Sequence[bytes], **options: object) -> bytes:
    """The body of a REST request."""
    encoded = [{"content": base64.b64encode(content).decode()} for content in contents]
    return json.dumps({"crops": encoded, "options": options}).encode()


def by_rest(service: RunningService, contents: Sequence[bytes]) -> Answer:
    """One JSON request on a connection of its own. Raises httpx.TransportError."""
    headers = {"Content-Type": "application/json"}
    address = f"{service.http}/v1/recognize"
    response = httpx.post(address, content=as_json(contents), headers=headers, timeout=PATIENT)
    body = response.json()
    if response.status_code != httpx.codes.OK:
        return Answer([body["code"]] * len(contents))
    outcomes = [each["error"]["code"] if "error" in each else each["text"] for each in body["results"]]
    return Answer(outcomes, body["model"]["revision"])


def by_grpc(service: RunningService, contents: Sequence[bytes], timeout: float | None = PATIENT) -> Answer:
    """One unary call on a connection of its own. Raises grpc.RpcError where no code of ours came."""
    request = pb.RecognizeRequest(crops=[pb.Crop(content=content) for content in contents])
    with grpc.insecure_channel(service.grpc, OWN_CONNECTION) as channel:
        try:
            response = RecognitionServiceStub(channel).Recognize(request, timeout=timeout)
        except grpc.RpcError as error:
            return Answer([reason(error)] * len(contents))
    return Answer([_outcome(result) for result in response.results], response.model.revision)


def by_stream(service: RunningService, contents: Sequence[bytes], timeout: float | None = PATIENT) -> Answer:
    """One stream, a crop a message, on a connection of its own. Raises grpc.RpcError where no code of ours came."""
    requests = (pb.RecognizeStreamRequest(crops=[pb.Crop(content=content)]) for content in contents)
    outcomes = ["unanswered"] * len(contents)
    revision = ""
    with grpc.insecure_channel(service.grpc, OWN_CONNECTION) as channel:
        try:
            for response in RecognitionServiceStub(channel).RecognizeStream(requests, timeout=timeout):
                revision = response.model.revision or revision
                for result in response.results:
                    outcomes[int(result.id)] = _outcome(result)
        except grpc.RpcError as error:
            code = reason(error)
            outcomes = [code if outcome == "unanswered" else outcome for outcome in outcomes]
    return Answer(outcomes, revision)


WAYS: dict[str, Ask] = {"REST": by_rest, "gRPC": by_grpc, "stream": by_stream}


def reason(error: grpc.RpcError) -> str:
    """The code of ours that a failed call carries; raises the error again where it has none."""
    status = rpc_status.from_call(error)  # type: ignore[arg-type]  # an RpcError that is a Call as well
    if status is None:
        raise error
    return _reason(status)


@dataclass
class Burst:
    """Requests that were all accepted, of which many are not answered yet."""

    expected: dict[Future[Answer], list[str]]

    def check(self) -> None:
        """Every crop of every request is answered, and with what it says."""
        for asked, texts in self.expected.items():
            assert asked.result(PATIENT).outcomes == texts


@contextmanager
def in_flight(service: RunningService, samples: Sequence[Sample], size: int = 64) -> Iterator[Burst]:
    """Has twelve requests of `size` crops under way, by every way to ask: their crops are decoded and wait."""
    before = prepared(service)
    requests = 4 * len(WAYS)
    with ThreadPoolExecutor(requests) as pool:
        expected = {}
        for ask in [*WAYS.values()] * 4:
            contents, texts = crops(samples, size)
            expected[pool.submit(ask, service, contents)] = texts
        until(lambda: prepared(service) - before >= requests * size)
        assert metrics(service)["clip4str_queued_crops",] >= size, "the service is too fast for this burst"
        yield Burst(expected)


@dataclass
class Heard:
    """An answer that a steady client had, and when it asked (CLOCK_MONOTONIC)."""

    asked_at: float
    outcomes: list[str]
    expected: list[str]
    revision: str


@dataclass
class Steady:
    """Clients that ask again as soon as they are answered."""

    heard: list[Heard] = field(default_factory=list)
    clients: list[Future[None]] = field(default_factory=list)

    def since(self, moment: float) -> list[Heard]:
        """Answers to what was asked after a moment."""
        return [each for each in list(self.heard) if each.asked_at > moment]

    def until_more(self, count: int) -> None:
        """Returns when so many more requests were asked and answered, from now on."""
        now = monotonic()
        until(lambda: len(self.since(now)) >= count or any(client.done() for client in self.clients))
        for client in self.clients:
            if client.done():
                client.result()

    def check(self) -> None:
        """Every crop was read, and right."""
        for each in self.heard:
            assert each.outcomes == each.expected


@contextmanager
def steady(
    service: RunningService,
    samples: Sequence[Sample],
    ways: Sequence[Ask] = tuple(WAYS.values()),
    size: int = 4,
) -> Iterator[Steady]:
    """One client for each way to ask, `size` crops a request. What a client raises, this raises at the end."""
    traffic = Steady()
    over = threading.Event()

    def client(ask: Ask) -> None:
        while not over.is_set():
            contents, texts = crops(samples, size)
            asked_at = monotonic()
            answer = ask(service, contents)
            traffic.heard.append(Heard(asked_at, answer.outcomes, texts, answer.revision))

    with ThreadPoolExecutor(len(ways)) as pool:
        traffic.clients += [pool.submit(client, ask) for ask in ways]
        try:
            yield traffic
        finally:
            over.set()
        for each in traffic.clients:
            each.result()


def _outcome(result: pb.Result) -> str:
    return _reason(result.error) if result.HasField("error") else result.recognition.text


def _reason(status: status_pb2.Status) -> str:
    info = error_details_pb2.ErrorInfo()
    assert any(detail.Unpack(info) for detail in status.details), status
    code: str = info.reason
    return code


def prepared(service: RunningService) -> float:
    """Crops that were decoded and prepared so far."""
    return metrics(service).get(("clip4str_stage_duration_seconds_count", "preprocess"), 0.0)
