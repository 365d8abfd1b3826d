"""One trace through all processes, at a real collector: the caller's span, its request, the batch, the stages."""

from collections.abc import Iterator
from itertools import pairwise

import grpc
import httpx
import pytest

from clip4str_service.pb import recognition_pb2 as pb
from clip4str_service.pb.recognition_pb2_grpc import RecognitionServiceStub
from clip4str_service.samples import Sample
from samples.demo import RunningService, running_service
from tests.service.otlp import Collector, Received, collector

JPEG = {"Content-Type": "image/jpeg"}
METHOD = "clip4str.v1.RecognitionService/Recognize"
PARENT = "00f067aa0ba902b7"
SLACK = 5_000_000  # ns: each process tells the wall's time from the monotonic one by itself


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


def check(collected: Collector, trace_id: str, root: str, crops: int) -> Received:
    """Who stands below whom, from which process, and whether times are in order. Returns the request's span.

    The crops of a request may be read in several batches.
    """

    def named(name: str) -> list[Received]:
        return [each for each in collected.trace(trace_id) if each.span.name == name]

    def counted(name: str, attribute: str) -> int:
        return sum(int(each.attributes[attribute]) for each in named(name))

    collected.wait_until(
        lambda: (
            named(root) != []
            and counted("batch", "clip4str.batch_size") == counted("decode", "clip4str.crops") == crops
            and len(named("encode")) == len(named("batch")) == len(named("queue"))
        )
    )
    (request,) = named(root)
    assert request.span.parent_span_id.hex() == PARENT
    assert request.resource["clip4str.process"] == "frontend-0"
    assert request.attributes["clip4str.crops"] == crops
    for decode in named("decode"):
        assert decode.span.parent_span_id == request.span.span_id
        assert decode.resource["clip4str.process"] == "frontend-0"
    queues = {span_id: queue for queue in named("queue") for span_id in queue.links}
    stages = {encode.span.parent_span_id.hex(): encode for encode in named("encode")}
    for batch in named("batch"):
        queue, encode = queues[batch.span.span_id.hex()], stages[batch.span.span_id.hex()]
        assert batch.resource["clip4str.process"] == "supervisor"
        assert batch.span.parent_span_id == queue.span.parent_span_id == request.span.span_id
        assert batch.links == {request.span.span_id.hex()}
        assert str(batch.attributes["clip4str.revision"]).startswith("sha256:")
        assert batch.attributes["clip4str.batch_size"] == queue.attributes["clip4str.crops"]
        in_order = [
            request.span.start_time_unix_nano,
            queue.span.start_time_unix_nano,
            batch.span.start_time_unix_nano,
            encode.span.start_time_unix_nano,
            encode.span.end_time_unix_nano,
            batch.span.end_time_unix_nano,
            request.span.end_time_unix_nano,
        ]
        assert all(first < second + SLACK for first, second in pairwise(in_order))
    return request


def test_rest(traced: RunningService, collected: Collector, exit_sign: Sample) -> None:
    trace_id = "1" * 32
    headers = {**JPEG, "traceparent": f"00-{trace_id}-{PARENT}-01"}
    address = f"{traced.http}/v1/recognize"
    httpx.post(address, content=exit_sign.content, headers=headers).raise_for_status()
    request = check(collected, trace_id, "POST /v1/recognize", crops=1)
    assert request.attributes["http.response.status_code"] == httpx.codes.OK


def test_grpc(traced: RunningService, collected: Collector, samples: list[Sample]) -> None:
    trace_id = "2" * 32
    crops = [pb.Crop(content=sample.content) for sample in samples[1:3]]
    with grpc.insecure_channel(traced.grpc) as channel:
        RecognitionServiceStub(channel).Recognize(
            pb.RecognizeRequest(crops=crops),
            metadata=(("traceparent", f"00-{trace_id}-{PARENT}-01"),),
            timeout=60,
        )
    request = check(collected, trace_id, METHOD, crops=2)
    assert request.attributes["rpc.response.status_code"] == "OK"


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
