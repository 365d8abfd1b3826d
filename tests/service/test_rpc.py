"""gRPC before a real engine, on a real socket: answers, rich errors, deadlines, health and reflection."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from google.protobuf.json_format import MessageToDict
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from clip4str_service.engine import Engine
from clip4str_service.metrics import Metrics
from clip4str_service.pb import recognition_pb2 as pb
from clip4str_service.pb.recognition_pb2_grpc import RecognitionServiceStub
from clip4str_service.rpc import SERVICE, RpcServer
from tests.service.pixel_worker import MODEL, PixelWorker, plain, settings
from tests.service.rest_service import Service, body

LIMITS = settings(max_crop_bytes=2000, max_request_bytes=10_000, max_crops=4, queue_crops=4)


class RpcService:
    """A gRPC server and a client for it. Not started: its engine."""

    def __init__(self) -> None:
        self.metrics = Metrics()
        self.worker = PixelWorker()
        self.engine = Engine(self.worker, LIMITS, self.metrics)
        self.server = RpcServer(self.engine, LIMITS, self.metrics)
        self.channel = grpc.aio.insecure_channel(f"127.0.0.1:{self.server.bind('127.0.0.1', 0)}")
        self.stub = RecognitionServiceStub(self.channel)

    async def recognize(self, *crops: bytes, **options: Any) -> pb.RecognizeResponse:
        request = pb.RecognizeRequest(
            crops=[pb.Crop(content=crop) for crop in crops], options=pb.Options(**options)
        )
        return await self.stub.Recognize(request)

    async def raw(self, method: str, message: bytes) -> None:
        """Sends bytes that no stub would send."""
        call: Any = self.channel.unary_unary(f"/{SERVICE}/{method}")
        await call(message)

    async def health(self, name: str) -> int:
        stub: Any = health_pb2_grpc.HealthStub(self.channel)
        answer: health_pb2.HealthCheckResponse = await stub.Check(health_pb2.HealthCheckRequest(service=name))
        return answer.status

    def count(self, method: str, code: str) -> float | None:
        labels = {"protocol": "grpc", "method": method, "code": code}
        return self.metrics.registry.get_sample_value("clip4str_requests_total", labels)


@pytest.fixture
async def cold_rpc() -> AsyncIterator[RpcService]:
    service = RpcService()
    await service.server.start()
    yield service
    service.worker.gate.set()
    await service.channel.close()
    await service.engine.drain()
    await service.server.stop(0)
    await service.engine.stop()


@pytest.fixture
async def rpc(cold_rpc: RpcService) -> RpcService:
    await cold_rpc.engine.start()
    await cold_rpc.server.set_serving(True)
    return cold_rpc


class Failure:
    """How a call failed: its status code, and the details of its rich status by type."""

    def __init__(self, error: grpc.aio.AioRpcError) -> None:
        self.code = error.code()
        self.trailers = dict(error.trailing_metadata() or ())
        status = status_pb2.Status.FromString(self.trailers["grpc-status-details-bin"])
        assert (status.code, status.message) == (self.code.value[0], error.details())
        self.info = unpacked(status, error_details_pb2.ErrorInfo)
        self.bad_request = unpacked(status, error_details_pb2.BadRequest)
        self.retry = unpacked(status, error_details_pb2.RetryInfo)
        self.request = unpacked(status, error_details_pb2.RequestInfo)


def unpacked(status: status_pb2.Status, kind: Any) -> Any:
    """The detail of a kind, or None."""
    found = kind()
    return found if any(detail.Unpack(found) for detail in status.details) else None


async def failure(call: Any) -> Failure:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return Failure(caught.value)


async def test_crops_are_read_in_order(rpc: RpcService) -> None:
    crops = [pb.Crop(id="a", content=plain("#1A2B3C")), pb.Crop(content=plain("#444444"))]
    response = await rpc.stub.Recognize(pb.RecognizeRequest(crops=crops))
    assert (response.model.name, response.model.revision) == (MODEL.name, MODEL.revision)
    assert [result.id for result in response.results] == ["a", "1"]
    first, second = [result.recognition for result in response.results]
    assert (first.text, first.agreement, first.confidence) == ("1A2B3C", False, 0.9**7)
    assert (second.text, second.agreement) == ("444444", True)
    assert response.timing.decode_ms > 0


@pytest.mark.parametrize("detail", ["text", "characters"])
async def test_answer_is_that_of_rest_field_by_field(rpc: RpcService, service: Service, detail: str) -> None:
    crop = plain("#1A2B3C")
    response = await service.recognize(json=body(crop, top_k=2, charset="digits", detail=detail))
    by_rest = response.json()["results"][0]
    answer = await rpc.recognize(crop, top_k=2, charset="digits", detail=f"DETAIL_{detail.upper()}")
    by_grpc = MessageToDict(
        answer.results[0].recognition,
        preserving_proto_field_name=True,
        always_print_fields_with_no_presence=True,
    )
    if detail == "text":
        for branch in by_grpc["branches"].values():
            assert branch.pop("characters") == []
    assert {"id": "0", **by_grpc} == by_rest


async def test_bad_crops_fail_alone(rpc: RpcService) -> None:
    response = await rpc.recognize(plain(), b"", b"text", bytes(2001))
    assert response.results[0].recognition.text == "ABCDEF"
    reasons = []
    for result in response.results[1:]:
        assert result.error.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
        assert result.error.message
        info = unpacked(result.error, error_details_pb2.ErrorInfo)
        assert info.domain == "clip4str"
        reasons.append(info.reason)
    assert reasons == ["undecodable_image", "unsupported_media_type", "image_too_large"]


@pytest.mark.parametrize(
    ("crops", "options", "field"),
    [
        ([], {}, "crops"),
        ([b""], {"top_k": 6}, "options.top_k"),
        ([b""], {"top_k": -1}, "options.top_k"),
        ([b""], {"charset": ""}, "options.charset"),
        ([b""], {"charset": "é"}, "options.charset"),
        ([b""], {"timeout_ms": 0}, "options.timeout_ms"),
        ([b""], {"detail": 9}, "options.detail"),
        ([b""], {"priority": 9}, "options.priority"),
    ],
)
async def test_wrong_request_names_the_field(
    rpc: RpcService, crops: list[bytes], options: dict[str, Any], field: str
) -> None:
    failed = await failure(rpc.recognize(*crops, **options))
    assert (failed.code, failed.info.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "invalid_request")
    assert [each.field for each in failed.bad_request.field_violations] == [field]


async def test_long_id_is_refused(rpc: RpcService) -> None:
    crops = [pb.Crop(id="x" * 128, content=plain()), pb.Crop(id="x" * 129)]
    failed = await failure(rpc.stub.Recognize(pb.RecognizeRequest(crops=crops)))
    assert failed.bad_request.field_violations[0].field == "crops[1].id"


async def test_too_many_crops(rpc: RpcService) -> None:
    failed = await failure(rpc.recognize(*[b""] * 5))
    assert (failed.code, failed.info.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "too_many_crops")


async def test_too_large_message_is_told_the_limit(rpc: RpcService) -> None:
    failed = await failure(rpc.raw("Recognize", bytes(10_001)))
    assert (failed.code, failed.info.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "payload_too_large")
    assert rpc.count("Recognize", "payload_too_large") == 1
    at_limit = await failure(rpc.raw("Recognize", b"\xff" * 10_000))
    assert at_limit.info.reason == "invalid_request"


async def test_far_too_large_message_is_refused_by_grpc_itself(rpc: RpcService) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await rpc.recognize(bytes(5 << 20))
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_message_that_cannot_be_parsed(rpc: RpcService) -> None:
    failed = await failure(rpc.raw("Recognize", b"\xff\xff\xff"))
    assert (failed.code, failed.info.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "invalid_request")


async def test_unknown_method(rpc: RpcService) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await rpc.raw("Nothing", b"")
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_get_model(rpc: RpcService) -> None:
    model = await rpc.stub.GetModel(pb.GetModelRequest())
    assert (model.name, model.revision, model.variant) == (MODEL.name, MODEL.revision, MODEL.variant)
    assert (model.charset, model.max_length, model.parameters) == (MODEL.charset, 25, 1)
    assert (model.image_size.height, model.image_size.width) == MODEL.image_size


async def test_health_follows_the_engine(cold_rpc: RpcService) -> None:
    not_serving, serving = health_pb2.HealthCheckResponse.NOT_SERVING, health_pb2.HealthCheckResponse.SERVING
    assert [await cold_rpc.health(name) for name in ("", SERVICE)] == [not_serving] * 2
    failed = await failure(cold_rpc.recognize(plain()))
    assert (failed.code, failed.info.reason) == (grpc.StatusCode.UNAVAILABLE, "not_ready")
    assert failed.retry.retry_delay.ToMilliseconds() == 1000
    assert (await failure(cold_rpc.stub.GetModel(pb.GetModelRequest()))).info.reason == "not_ready"
    await cold_rpc.engine.start()
    await cold_rpc.server.set_serving(True)
    assert [await cold_rpc.health(name) for name in ("", SERVICE)] == [serving] * 2
    await cold_rpc.engine.drain()
    failed = await failure(cold_rpc.recognize(plain()))
    assert (failed.code, failed.info.reason) == (grpc.StatusCode.UNAVAILABLE, "draining")


async def test_reflection_knows_the_service(rpc: RpcService) -> None:
    channel: Any = rpc.channel  # the stubs know the channels of threads only
    stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
    requests = [
        reflection_pb2.ServerReflectionRequest(list_services=""),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol=SERVICE),
    ]
    services, file = [answer async for answer in stub.ServerReflectionInfo(iter(requests))]
    names = {each.name for each in services.list_services_response.service}
    assert {SERVICE, "grpc.health.v1.Health"} <= names
    assert file.file_descriptor_response.file_descriptor_proto


async def test_full_queue_tells_when_to_retry(rpc: RpcService) -> None:
    rpc.worker.gate.clear()
    running = asyncio.ensure_future(rpc.recognize(*[plain()] * 3))
    await until(rpc, 3)
    failed = await failure(rpc.recognize(*[plain()] * 2))
    assert (failed.code, failed.info.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "overloaded")
    assert failed.retry.retry_delay.ToMilliseconds() > 0
    rpc.worker.gate.set()
    assert len((await running).results) == 3


async def until(rpc: RpcService, running: int) -> None:
    """Returns when so many crops are in the running batch."""
    while rpc.metrics.registry.get_sample_value("clip4str_inflight_crops") != running:  # noqa: ASYNC110
        await asyncio.sleep(0.001)


async def test_timeout_option_answers_each_crop(rpc: RpcService) -> None:
    rpc.worker.gate.clear()
    response = await rpc.recognize(plain(), b"", timeout_ms=500)
    late, empty = [unpacked(result.error, error_details_pb2.ErrorInfo).reason for result in response.results]
    assert (late, empty) == ("deadline_exceeded", "undecodable_image")
    assert response.results[0].error.code == grpc.StatusCode.DEADLINE_EXCEEDED.value[0]


async def test_deadline_of_the_call_frees_its_places(rpc: RpcService) -> None:
    rpc.worker.gate.clear()
    running = asyncio.ensure_future(rpc.recognize(plain()))
    await until(rpc, 1)
    request = pb.RecognizeRequest(crops=[pb.Crop(content=plain())] * 2)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await rpc.stub.Recognize(request, timeout=0.2)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    while rpc.metrics.registry.get_sample_value("clip4str_queued_crops"):  # noqa: ASYNC110
        await asyncio.sleep(0.001)
    rpc.worker.gate.set()
    await running
    assert rpc.worker.batches == [1]


async def test_cancelled_call_frees_its_places_and_is_counted(rpc: RpcService) -> None:
    rpc.worker.gate.clear()
    running = asyncio.ensure_future(rpc.recognize(plain()))
    await until(rpc, 1)
    leaving = rpc.stub.Recognize(pb.RecognizeRequest(crops=[pb.Crop(content=plain())] * 2))
    while rpc.metrics.registry.get_sample_value("clip4str_queued_crops") != 2:  # noqa: ASYNC110
        await asyncio.sleep(0.001)
    leaving.cancel()
    while rpc.count("Recognize", "cancelled") != 1:  # noqa: ASYNC110
        await asyncio.sleep(0.001)
    rpc.worker.gate.set()
    await running
    assert rpc.worker.batches == [1]


async def test_fault_of_ours_is_internal_and_logged(
    rpc: RpcService, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("a secret detail")

    monkeypatch.setattr(rpc.engine, "recognize", fail)
    failed = await failure(rpc.recognize(plain()))
    assert (failed.code, failed.info.reason) == (grpc.StatusCode.INTERNAL, "internal")
    assert "a secret detail" in caplog.text
    assert rpc.count("Recognize", "internal") == 1


async def test_request_id_is_echoed_with_answers_and_errors(rpc: RpcService) -> None:
    metadata = (("x-request-id", "abc-123"),)
    call = rpc.stub.Recognize(pb.RecognizeRequest(crops=[pb.Crop(content=plain())]), metadata=metadata)
    await call
    assert dict(await call.trailing_metadata())["x-request-id"] == "abc-123"
    failed = await failure(rpc.stub.Recognize(pb.RecognizeRequest(), metadata=metadata))
    assert failed.trailers["x-request-id"] == failed.request.request_id == "abc-123"


async def test_calls_are_logged_and_counted(rpc: RpcService, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "clip4str_service.requests")
    await rpc.recognize(plain(), b"")
    await failure(rpc.recognize())
    await rpc.stub.GetModel(pb.GetModelRequest())
    lines = [record.__dict__ for record in caplog.records if record.name == "clip4str_service.requests"]
    assert [(line["protocol"], line["method"], line["code"], line["crops"]) for line in lines] == [
        ("grpc", "Recognize", "ok", 2),
        ("grpc", "Recognize", "invalid_request", 0),
        ("grpc", "GetModel", "ok", 0),
    ]
    assert rpc.count("Recognize", "ok") == rpc.count("Recognize", "invalid_request") == 1


async def test_taken_port_is_an_error(rpc: RpcService) -> None:
    other = RpcServer(rpc.engine, LIMITS, Metrics())
    port = other.bind("127.0.0.1", 0)
    with pytest.raises(OSError, match="in use"):
        RpcServer(rpc.engine, LIMITS, Metrics()).bind("127.0.0.1", port)
    await other.stop(0)
