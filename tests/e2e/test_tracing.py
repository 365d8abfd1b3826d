"""One trace through all processes, at a real collector: the caller's span, its request, the batch, the stages."""

from collections.abc import Iterator
from itertools import pairwise

import grpc
import httpx
import pytest

from clip4str_service.pb import recognition_pb2 as pb
from clip4str_service.pb.recognition_pb2_grpc import RecognitionServiceStub
from samples.demo import RunningService, Sample, running_service
from tests.service.otlp import Collector, Received, collector

JPEG = {"Content-Type": "image/jpeg"}
METHOD = "clip4str.v1.RecognitionService/Recognize"
PARENT = "00f067aa0ba902b7"


@pytest.fixture(scope="module")
def collected() -> Iterator[Collector]:
    with collector() as made:
        yield made


@pytest.fixture(scope="module")
def traced(collected: Collector) -> Iterator[RunningService]:
    """A service that traces the requests whose callers are traced."""
    with running_service(
        CLIP4STR_OTLP_ENDPOINT=collected.address,
        CLIP4STR_OTLP_SAMPLE_RATIO="0",
        OTEL_BSP_SCHEDULE_DELAY="50",
    ) as running:
        yield running


def spans(collected: Collector, trace_id: str, root: str) -> dict[str, Received]:
    """A trace of one batch, by the names of its spans, once all of it has arrived."""
    whole = {root, "decode", "queue", "batch", "encode", "visual", "cross_modal"}
    collected.wait_until(lambda: whole <= {each.span.name for each in collected.trace(trace_id)})
    return {each.span.name: each for each in collected.trace(trace_id)}


def check(found: dict[str, Received], root: str, crops: int) -> None:
    """Who stands below whom, from which process, and whether the times are in order."""
    request, decode, queue, batch, encode = [
        found[name] for name in (root, "decode", "queue", "batch", "encode")
    ]
    assert request.span.parent_span_id.hex() == PARENT
    for each in (decode, queue, batch):
        assert each.span.parent_span_id == request.span.span_id
    assert encode.span.parent_span_id == batch.span.span_id
    assert batch.links == {request.span.span_id.hex()}
    assert queue.links == {batch.span.span_id.hex()}
    assert request.resource["clip4str.process"] == decode.resource["clip4str.process"] == "frontend-0"
    assert queue.resource["clip4str.process"] == batch.resource["clip4str.process"] == "supervisor"
    assert request.attributes["clip4str.crops"] == crops
    assert str(batch.attributes["clip4str.revision"]).startswith("sha256:")
    assert batch.attributes["clip4str.batch_size"] == queue.attributes["clip4str.crops"] == crops
    slack = 5_000_000  # ns: two processes tell the wall's time from the monotonic one
    times = [
        request.span.start_time_unix_nano,
        decode.span.start_time_unix_nano,
        queue.span.start_time_unix_nano,
    ]
    times += [batch.span.start_time_unix_nano, batch.span.end_time_unix_nano, request.span.end_time_unix_nano]
    assert all(first < second + slack for first, second in pairwise(times))
    assert encode.span.end_time_unix_nano <= batch.span.end_time_unix_nano + slack


def test_rest(traced: RunningService, collected: Collector, exit_sign: Sample) -> None:
    trace_id = "1" * 32
    headers = {**JPEG, "traceparent": f"00-{trace_id}-{PARENT}-01"}
    address = f"{traced.http}/v1/recognize"
    httpx.post(address, content=exit_sign.content, headers=headers).raise_for_status()
    root = "POST /v1/recognize"
    found = spans(collected, trace_id, root)
    check(found, root, crops=1)
    assert found[root].attributes["http.response.status_code"] == httpx.codes.OK


def test_grpc(traced: RunningService, collected: Collector, samples: list[Sample]) -> None:
    trace_id = "2" * 32
    crops = [pb.Crop(content=sample.content) for sample in samples[1:3]]
    with grpc.insecure_channel(traced.grpc) as channel:
        RecognitionServiceStub(channel).Recognize(
            pb.RecognizeRequest(crops=crops),
            metadata=(("traceparent", f"00-{trace_id}-{PARENT}-01"),),
            timeout=60,
        )
    found = spans(collected, trace_id, METHOD)
    check(found, METHOD, crops=2)
    assert found[METHOD].attributes["rpc.response.status_code"] == "OK"


def test_callers_that_are_not_traced_have_no_spans(
    traced: RunningService, collected: Collector, samples: list[Sample]
) -> None:
    unsampled, sampled = "3" * 32, "4" * 32
    address = f"{traced.http}/v1/recognize"
    for trace_id, flags in ((unsampled, "00"), (sampled, "01")):
        headers = {**JPEG, "traceparent": f"00-{trace_id}-{PARENT}-{flags}"}
        httpx.post(address, content=samples[3].content, headers=headers).raise_for_status()
    httpx.post(address, content=samples[4].content, headers=JPEG).raise_for_status()
    collected.wait_until(lambda: bool(collected.trace(sampled)))
    assert not collected.trace(unsampled)
    assert {each.span.trace_id.hex() for each in collected.received} <= {"1" * 32, "2" * 32, sampled}
