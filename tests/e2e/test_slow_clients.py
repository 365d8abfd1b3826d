"""Clients that send a byte now and then, close half of a connection, or never read: others do not notice."""

import json
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from itertools import count
from pathlib import Path

import grpc
import pytest

from clip4str_service.pb import recognition_pb2 as pb
from clip4str_service.pb.recognition_pb2_grpc import RecognitionServiceStub
from clip4str_service.samples import Sample
from samples.demo import RunningService, running_service
from tests.e2e.observed import FRONT_END, PATIENT, children, metrics, resident, total, until
from tests.e2e.traffic import as_json, by_rest, steady

HEAD_SECONDS, BODY_SECONDS, IDLE_SECONDS = 3.0, 4.0, 3.0
LATE = 60.0
"""Seconds that a limit may be kept too late, on a busy machine; a body would take its clients four times as long."""

MANY = 1024
"""Crops of a request whose answer has a megabyte."""

MOST_UNREAD = 20
"""Such answers, of which the system never has room for all."""

SLOW = 100
"""Slow clients of each kind."""

MEMORY = 64 << 20
"""Bytes by which a front end may grow with all of them."""

HEAD = b"POST /v1/recognize HTTP/1.1\r\nHost: a\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n"
SMALL_WINDOWS = [
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.http2.lookahead_bytes", 1 << 14),
    ("grpc.http2.bdp_probe", 0),
]


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("slow") / "log"


@pytest.fixture(scope="module")
def service(log: Path) -> Iterator[RunningService]:
    with running_service(
        output=log,
        CLIP4STR_HEAD_TIMEOUT_MS=str(round(1000 * HEAD_SECONDS)),
        CLIP4STR_BODY_TIMEOUT_MS=str(round(1000 * BODY_SECONDS)),
        CLIP4STR_IDLE_TIMEOUT_MS=str(round(1000 * IDLE_SECONDS)),
        CLIP4STR_MAX_CROPS=str(MANY),
    ) as running:
        yield running


def place(address: str) -> tuple[str, int]:
    host, _, port = address.removeprefix("http://").partition(":")
    return host, int(port)


def connected(address: str) -> socket.socket:
    return socket.create_connection(place(address), timeout=PATIENT)


def received(connection: socket.socket) -> bytes:
    """All that comes until the connection ends."""
    pieces = []
    try:
        while piece := connection.recv(1 << 16):
            pieces.append(piece)
    except ConnectionResetError:
        pass
    return b"".join(pieces)


def until_nothing_is_held(service: RunningService) -> None:
    held = ("clip4str_queued_crops", "clip4str_inflight_crops", "clip4str_open_connections")
    until(lambda: not sum(total(metrics(service), name) for name in held))


def cancelled(service: RunningService, method: str) -> float:
    return total(metrics(service), "clip4str_requests_total", "cancelled", method)


def test_slow_loris(service: RunningService, samples: list[Sample]) -> None:
    (front_end,) = children(service, FRONT_END)
    before = resident(front_end)
    content = samples[0].content
    with ExitStack() as stack:
        heads = [stack.enter_context(closing(connected(service.http))) for _ in range(SLOW)]
        bodies = [stack.enter_context(closing(connected(service.http))) for _ in range(SLOW)]
        for connection in bodies:
            connection.sendall(HEAD % len(content))
        over = threading.Event()
        slow = threading.Thread(target=drip, args=({HEAD: heads, content: bodies}, over))
        started = time.monotonic()
        slow.start()
        with steady(service, samples) as traffic:
            traffic.until_more(12)
            answers = [received(connection) for connection in [*heads, *bodies]]
        seconds = time.monotonic() - started
        over.set()
        slow.join()
    traffic.check()
    for limit, refused in (("3 s", answers[:SLOW]), ("4 s", answers[SLOW:])):
        for answer in refused:
            assert answer.startswith(b"HTTP/1.1 400 ")
            assert f"within {limit}".encode() in answer
    assert seconds < BODY_SECONDS + LATE
    until_nothing_is_held(service)
    assert resident(front_end) - before < MEMORY


def drip(connections: dict[bytes, list[socket.socket]], over: threading.Event) -> None:
    """Sends each connection its content, a byte at a time."""
    for position in count():
        for content, receivers in connections.items():
            for connection in receivers:
                with suppress(OSError):  # the service has closed it
                    connection.send(content[position : position + 1])
        if over.wait(0.05):
            return


@pytest.mark.parametrize("part", ["a part of the head", "a part of the body", "the whole request"])
def test_half_closed_connection_is_given_up_at_once(
    service: RunningService, exit_sign: Sample, part: str
) -> None:
    before = cancelled(service, "/v1/recognize")
    whole = HEAD % len(exit_sign.content) + exit_sign.content
    with closing(connected(service.http)) as connection:
        connection.sendall(
            {"a part of the head": HEAD[:30], "a part of the body": whole[:-1]}.get(part, whole)
        )
        connection.shutdown(socket.SHUT_WR)
        closed = time.monotonic()
        received(connection)
        assert time.monotonic() - closed < HEAD_SECONDS
    until_nothing_is_held(service)
    if part != "a part of the head":
        assert cancelled(service, "/v1/recognize") == before + 1
    assert by_rest(service, [exit_sign.content]).outcomes == [exit_sign.text]


def test_half_closed_connection_to_grpc(service: RunningService) -> None:
    with closing(connected(service.grpc)) as connection:
        connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + b"\x04" + bytes(5))
        connection.shutdown(socket.SHUT_WR)
        received(connection)


def test_client_that_never_reads_its_rest_answers(service: RunningService, samples: list[Sample]) -> None:
    body = as_json([samples[0].content] * MANY, top_k=5)
    request = HEAD.replace(b"image/jpeg", b"application/json") % len(body) + body
    asked = 0

    def answered() -> float:
        return total(metrics(service), "clip4str_requests_total", "ok", "/v1/recognize")

    def answered_or_given_up() -> bool:
        return answered() == before + asked or not metrics(service)["clip4str_open_connections", "rest"]

    with closing(socket.socket()) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 12)
        connection.settimeout(PATIENT)
        connection.connect(place(service.http))
        before = answered()
        with suppress(ConnectionResetError, BrokenPipeError):
            while asked < MOST_UNREAD:
                connection.sendall(request)
                asked += 1
                until(answered_or_given_up)
        with steady(service, samples) as traffic:
            traffic.until_more(3)
    traffic.check()
    assert 1 < asked < MOST_UNREAD  # the buffers were full
    until_nothing_is_held(service)


def test_client_that_never_reads_its_stream(
    service: RunningService, log: Path, samples: list[Sample]
) -> None:
    """The last test here: it ends the service."""
    (front_end,) = children(service, FRONT_END)
    before, seen = resident(front_end), cancelled(service, "RecognizeStream")
    sent = 0

    def requests() -> Iterator[pb.RecognizeStreamRequest]:
        nonlocal sent
        yield pb.RecognizeStreamRequest(options=pb.Options(top_k=5))
        while True:
            sent += 1
            yield pb.RecognizeStreamRequest(crops=[pb.Crop(content=samples[0].content)])

    with grpc.insecure_channel(service.grpc, SMALL_WINDOWS) as channel:
        call = RecognitionServiceStub(channel).RecognizeStream(requests())
        with steady(service, samples) as traffic:
            until(lambda: cancelled(service, "RecognizeStream") > seen)
            traffic.until_more(3)
        last = sent
        until_nothing_is_held(service)
        assert sent == last  # nothing more is taken of it
        assert resident(front_end) - before < MEMORY
        # Its last answers are still in its way; that must not be in the way of the service's end.
        service.process.send_signal(signal.SIGTERM)
        assert service.process.wait(PATIENT) == 0
        call.cancel()
    traffic.check()
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    faults = [line for line in lines if line["level"] in ("ERROR", "CRITICAL")]
    assert faults == []  # whatever clients did
