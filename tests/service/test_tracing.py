"""Traces: which requests have one, and what it holds."""

import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from clip4str_service import span_export
from clip4str_service.tracing import (
    NO_SPAN,
    BatchTracing,
    RequestTracing,
    TracedCrop,
    Tracing,
    check_endpoint,
    current_span,
    remote_parent,
)
from tests.service.otlp import Collector, Received, collector

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = "00f067aa0ba902b7"
SAMPLED = f"00-{TRACE}-{PARENT}-01"
UNSAMPLED = f"00-{TRACE}-{PARENT}-00"

BATCH: dict[str, str | int] = {"batch_size": 3, "device": "cpu", "revision": "sha256:1"}
STAGES = {"encode": 0.25, "visual": 0.5, "inference": 1.0}


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is sent at the end arrives, however busy the machine is."""
    monkeypatch.setattr(span_export, "_CLOSE_SECONDS", 20)


class Process:
    """The traces of one process: those of front ends, and those of the supervisor."""

    def __init__(self, endpoint: str | None, ratio: float = 1.0) -> None:
        self.tracing = Tracing(endpoint, "frontend-0")
        self.requests = RequestTracing(self.tracing.tracer, ratio)
        self.batches = BatchTracing(self.tracing.tracer)


@pytest.fixture
def collected() -> Iterator[Collector]:
    with collector() as made:
        yield made


@pytest.fixture
def process(collected: Collector) -> Iterator[Process]:
    process = Process(collected.address)
    yield process
    process.tracing.close()


def seconds(received: Received) -> float:
    return (received.span.end_time_unix_nano - received.span.start_time_unix_nano) / 1e9


def test_request_to_rest(process: Process, collected: Collector) -> None:
    span = process.requests.http("POST", "https", SAMPLED)
    span.end_http("/v1/recognize", 200, "ok", 3)
    process.tracing.close()
    received = collected.span("POST /v1/recognize")
    assert received.span.kind == Span.SpanKind.SPAN_KIND_SERVER
    assert received.span.trace_id.hex() == TRACE
    assert received.span.parent_span_id.hex() == PARENT
    assert received.attributes == {
        "http.request.method": "POST",
        "url.scheme": "https",
        "http.route": "/v1/recognize",
        "url.path": "/v1/recognize",
        "http.response.status_code": 200,
        "clip4str.code": "ok",
        "clip4str.crops": 3,
    }
    assert received.span.status.code == Status.StatusCode.STATUS_CODE_UNSET
    assert received.resource["service.name"] == "clip4str-service"
    assert received.resource["clip4str.process"] == "frontend-0"
    assert 0 <= seconds(received) < 10
    assert abs(received.span.end_time_unix_nano / 1e9 - time.time()) < 10


def test_call_of_grpc(process: Process, collected: Collector) -> None:
    method = "clip4str.v1.RecognitionService/Recognize"
    process.requests.rpc(method, None).end_rpc("OK", "ok", 1)
    process.tracing.close()
    received = collected.span(method)
    assert received.span.parent_span_id == b""
    assert received.attributes == {
        "rpc.system.name": "grpc",
        "rpc.method": method,
        "rpc.response.status_code": "OK",
        "clip4str.code": "ok",
        "clip4str.crops": 1,
    }


@pytest.mark.parametrize(
    ("status", "code", "fault"),
    [
        (200, "ok", False),
        (422, "undecodable_image", False),
        (500, "internal", True),
        (503, "not_ready", True),
    ],
)
def test_faults_of_the_service_are_errors(
    process: Process, collected: Collector, status: int, code: str, fault: bool
) -> None:
    process.requests.http("POST", "http", None).end_http("/a", status, code, 0)
    process.tracing.close()
    received = collected.span("POST /a")
    assert (received.span.status.code == Status.StatusCode.STATUS_CODE_ERROR) == fault
    assert received.attributes.get("error.type") == (code if fault else None)


@pytest.mark.parametrize(
    ("status", "fault"),
    [("OK", False), ("INVALID_ARGUMENT", False), ("CANCELLED", False), ("INTERNAL", True)],
)
def test_faults_of_calls_are_errors(process: Process, collected: Collector, status: str, fault: bool) -> None:
    process.requests.rpc("a/B", None).end_rpc(status, "a_code", 0)
    process.tracing.close()
    error = collected.span("a/B").span.status.code == Status.StatusCode.STATUS_CODE_ERROR
    assert error == fault


def test_path_that_is_not_served_is_not_told(process: Process, collected: Collector) -> None:
    process.requests.http("GET", "http", None).end_http(None, 404, "not_found", 0)
    process.requests.http("SECRET", "http", None).end_http(None, 405, "method_not_allowed", 0)
    process.tracing.close()
    assert "url.path" not in collected.span("GET").attributes
    assert collected.span("HTTP").attributes["http.request.method"] == "_OTHER"


@pytest.mark.parametrize(
    ("traceparent", "ratio", "sampled"),
    [
        (SAMPLED, 0.0, True),
        (UNSAMPLED, 1.0, False),
        (None, 1.0, True),
        (None, 0.0, False),
        ("nonsense", 1.0, True),
        ("nonsense", 0.0, False),
    ],
)
def test_callers_decide_first_then_the_ratio(
    collected: Collector, traceparent: str | None, ratio: float, sampled: bool
) -> None:
    process = Process(collected.address, ratio)
    span = process.requests.http("POST", "http", traceparent)
    assert (span is not NO_SPAN) == sampled
    assert bool(span.traceparent) == sampled
    process.tracing.close()


def test_ratio_is_a_ratio(collected: Collector) -> None:
    process = Process(collected.address, 0.25)
    sampled = sum(bool(process.requests.rpc("a/B", None).traceparent) for _ in range(2000))
    process.tracing.close()
    assert 400 < sampled < 600  # 500 ± 5 standard deviations


def test_without_an_endpoint_nothing_is_traced_or_loaded() -> None:
    script = """
import sys
from clip4str_service.tracing import NO_SPAN, BatchTracing, RequestTracing, TracedCrop, Tracing
tracing = Tracing(None, "frontend-0")
span = RequestTracing(tracing.tracer, 1.0).http("POST", "http", sys.argv[1])
assert span is NO_SPAN
span.record("decode", 0.0, 1.0, 1)
span.end_http("/", 200, "ok", 1)
span.end_rpc("OK", "ok", 1)
BatchTracing(tracing.tracer).record(
    [TracedCrop(sys.argv[1], 0.0)], sealed_at=1.0, finished_at=2.0, attributes={}, stages={}
)
tracing.close()
assert not [name for name in sys.modules if name.startswith(("opentelemetry.sdk", "requests"))]
"""
    subprocess.run([sys.executable, "-c", script, SAMPLED], check=True)


def test_nobodys_span_is_the_current_one() -> None:
    assert current_span.get() is NO_SPAN


def test_part_of_a_request_has_its_own_times(process: Process, collected: Collector) -> None:
    span = process.requests.http("POST", "http", None)
    now = time.monotonic()
    span.record("decode", now - 1.5, now - 0.5, 2)
    span.end_http("/a", 200, "ok", 2)
    process.tracing.close()
    request, decode = collected.span("POST /a"), collected.span("decode")
    assert decode.span.parent_span_id == request.span.span_id
    assert decode.span.trace_id == request.span.trace_id
    assert decode.attributes == {"clip4str.crops": 2}
    assert seconds(decode) == pytest.approx(1, abs=1e-6)
    assert request.span.end_time_unix_nano / 1e9 - decode.span.end_time_unix_nano / 1e9 == pytest.approx(
        0.5, abs=0.2
    )


def test_batch_of_two_requests(process: Process, collected: Collector) -> None:
    spans = [process.requests.http("POST", "http", None) for _ in range(2)]
    first, second = [span.traceparent for span in spans]
    now = time.monotonic()
    process.batches.record(
        [TracedCrop(first, now - 3), TracedCrop(second, now - 4), TracedCrop(first, now - 5)],
        sealed_at=now - 2,
        finished_at=now - 0.5,
        attributes=BATCH,
        stages=STAGES,
    )
    process.tracing.close()
    batch = collected.span("batch")
    assert batch.links == {first.split("-")[2], second.split("-")[2]}
    assert (batch.span.trace_id.hex(), batch.span.parent_span_id.hex()) == tuple(first.split("-")[1:3])
    assert batch.attributes == {f"clip4str.{name}": value for name, value in BATCH.items()}
    assert seconds(batch) == pytest.approx(1.5, abs=1e-6)
    queues = {each.span.parent_span_id.hex(): each for each in collected.spans("queue")}
    waited = {first.split("-")[2]: (2, 3.0), second.split("-")[2]: (1, 2.0)}
    assert queues.keys() == waited.keys()
    for span_id, (crops, lasted) in waited.items():
        queue = queues[span_id]
        assert queue.links == {batch.span.span_id.hex()}
        assert queue.attributes == {"clip4str.crops": crops}
        assert seconds(queue) == pytest.approx(lasted, abs=1e-6)
        assert queue.span.end_time_unix_nano == batch.span.start_time_unix_nano


def test_stages_of_a_batch_follow_each_other(process: Process, collected: Collector) -> None:
    now = time.monotonic()
    process.batches.record(
        [TracedCrop(SAMPLED, now - 3)], sealed_at=now - 2, finished_at=now, attributes=BATCH, stages=STAGES
    )
    process.tracing.close()
    batch, encode, visual = [collected.span(name) for name in ("batch", "encode", "visual")]
    assert not collected.spans("inference")
    assert encode.span.parent_span_id == visual.span.parent_span_id == batch.span.span_id
    assert encode.span.start_time_unix_nano == batch.span.start_time_unix_nano
    assert encode.span.end_time_unix_nano == visual.span.start_time_unix_nano
    assert seconds(encode) == pytest.approx(0.25, abs=1e-6)
    assert seconds(visual) == pytest.approx(0.5, abs=1e-6)


def test_batch_that_failed_is_an_error(process: Process, collected: Collector) -> None:
    process.batches.record(
        [TracedCrop(SAMPLED, 1.0)],
        sealed_at=2.0,
        finished_at=3.0,
        attributes=BATCH,
        stages={},
        failure="worker_died",
    )
    process.tracing.close()
    batch = collected.span("batch")
    assert batch.span.status.code == Status.StatusCode.STATUS_CODE_ERROR
    assert batch.attributes["error.type"] == "worker_died"


def test_batch_without_traced_requests_has_no_span(process: Process, collected: Collector) -> None:
    process.batches.record([], sealed_at=2.0, finished_at=3.0, attributes=BATCH, stages=STAGES)
    process.tracing.close()
    assert not collected.received


def test_traceparent_leads_from_process_to_process(process: Process) -> None:
    span = process.requests.http("POST", "http", SAMPLED)
    parent = remote_parent(span.traceparent)
    assert parent is not None
    assert (f"{parent.trace_id:032x}", parent.trace_flags.sampled) == (TRACE, True)


@pytest.mark.parametrize("endpoint", ["http://collector:4318", "https://[::1]:4318/otlp", "http://collector"])
def test_endpoint(endpoint: str) -> None:
    assert check_endpoint(endpoint) == endpoint


@pytest.mark.parametrize(
    ("endpoint", "reason"),
    [
        ("collector:4317", "http://"),
        ("grpc://collector:4317", "http://"),
        ("http://", "http://"),
        ("http://collector:4318?a=b", "http://"),
        ("http://user:password@collector", "OTEL_EXPORTER_OTLP_HEADERS"),
        ("http://collector:99999", "[Pp]ort"),
        ("http://[::1", "IPv6"),
    ],
)
def test_what_is_no_endpoint(endpoint: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason) as caught:
        check_endpoint(endpoint)
    assert "\n" not in str(caught.value)
    assert "password@" not in str(caught.value)
