"""SIGTERM with much to do, and clients that hold on: accepted crops are read, the others are told to go elsewhere."""

import queue
import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from clip4str_service.pb import recognition_pb2 as pb
from clip4str_service.pb.recognition_pb2_grpc import RecognitionServiceStub
from clip4str_service.samples import Sample
from samples.demo import RunningService, running_service
from tests.e2e.observed import FRONT_END, PATIENT, WORKER, alive, children, ready, until
from tests.e2e.traffic import OWN_CONNECTION, WAYS, Burst, in_flight, reason

GRACE = 120.0
"""Seconds that this service grants accepted crops."""

CLOSING = 8.0
"""Seconds for everything after: answers on the wire, processes."""

SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


@dataclass
class Stopped:
    """What was seen of a service that was stopped."""

    code: int
    seconds: float
    burst: Burst
    late: dict[str, list[str]]  # what those were told who came after the signal
    live: int
    watched: list[int]  # health, each time that it changed
    open_stream: list[str]  # answers of one that had nothing under way, and the code of its end
    upload: bytes  # the answer to one that was not finished
    processes: list[int]


@pytest.fixture(scope="module")
def stopped(samples: list[Sample]) -> Iterator[Stopped]:
    with (
        running_service(
            CLIP4STR_DEFAULT_TIMEOUT_MS=str(round(1000 * PATIENT)),
            CLIP4STR_DRAIN_TIMEOUT_MS=str(round(1000 * GRACE)),
        ) as service,
        ThreadPoolExecutor(2) as pool,
        grpc.insecure_channel(service.grpc, OWN_CONNECTION) as channel,
        half_sent(service) as upload,
    ):
        processes = [*children(service, FRONT_END), *children(service, WORKER)]
        watched: list[int] = []
        watching = pool.submit(watch, channel, watched)
        until(lambda: watched == [SERVING])
        answered: queue.Queue[None] = queue.Queue()
        open_stream = pool.submit(keep_open, channel, samples[0], answered)
        answered.get(timeout=PATIENT)
        with in_flight(service, samples) as burst:
            service.process.send_signal(signal.SIGTERM)
            signalled = time.monotonic()
            until(lambda: not ready(service))
            late = {name: ask(service, [samples[0].content]).outcomes for name, ask in WAYS.items()}
            live = httpx.get(f"{service.http}/livez").status_code
        code = service.process.wait(GRACE + CLOSING)
        seconds = time.monotonic() - signalled
        watching.result(PATIENT)
        yield Stopped(
            code, seconds, burst, late, live, watched, open_stream.result(PATIENT), rest_of(upload), processes
        )


def test_every_accepted_request_is_answered(stopped: Stopped) -> None:
    stopped.burst.check()


def test_it_ends_well_and_in_time(stopped: Stopped) -> None:
    assert stopped.code == 0
    assert stopped.seconds < GRACE + CLOSING
    assert not any(alive(process) for process in stopped.processes)


def test_who_comes_later_is_told_to_go_elsewhere(stopped: Stopped) -> None:
    assert stopped.late == {way: ["draining"] for way in WAYS}
    assert stopped.live == httpx.codes.OK  # nobody should kill it for that


def test_health_watchers_hear_of_it(stopped: Stopped) -> None:
    assert stopped.watched == [SERVING, NOT_SERVING]


def test_open_stream_is_told_to_go_elsewhere(stopped: Stopped, samples: list[Sample]) -> None:
    assert stopped.open_stream == [samples[0].text, "draining"]


def test_unfinished_upload_does_not_hold_it_up(stopped: Stopped) -> None:
    assert stopped.upload.startswith(b"HTTP/1.1 503 ")
    assert b'"code":"draining"' in stopped.upload


def watch(channel: grpc.Channel, watched: list[int]) -> None:
    """Adds each health that the service tells, until it ends."""
    stub = health_pb2_grpc.HealthStub(channel)
    try:
        for answer in stub.Watch(health_pb2.HealthCheckRequest()):  # type: ignore[attr-defined]  # not in the stubs
            watched.append(answer.status)
    except grpc.RpcError:
        pass


def keep_open(channel: grpc.Channel, sample: Sample, answered: queue.Queue[None]) -> list[str]:
    """Sends a crop on a stream that it does not end; what it hears."""
    heard: list[str] = []
    over: Future[None] = Future()

    def requests() -> Iterator[pb.RecognizeStreamRequest]:
        yield pb.RecognizeStreamRequest(crops=[pb.Crop(content=sample.content)])
        over.result(3 * PATIENT)

    try:
        for response in RecognitionServiceStub(channel).RecognizeStream(requests()):
            heard += [result.recognition.text for result in response.results]
            answered.put(None)
    except grpc.RpcError as error:
        heard.append(reason(error))
    finally:
        over.set_result(None)
    return heard


def half_sent(service: RunningService) -> socket.socket:
    """A connection whose request lacks a part of its body."""
    host, _, port = service.http.removeprefix("http://").partition(":")
    connection = socket.create_connection((host, int(port)), timeout=PATIENT)
    connection.sendall(b"POST /v1/recognize HTTP/1.1\r\nHost: a\r\nContent-Length: 99\r\n")
    connection.sendall(b"Content-Type: image/jpeg\r\n\r\nhalf")
    return connection


def rest_of(connection: socket.socket) -> bytes:
    """What there is to read until the connection ends."""
    received = b""
    while piece := connection.recv(1 << 16):
        received += piece
    return received
