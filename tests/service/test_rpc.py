"""gRPC before a real engine, on a real port: answers, rich errors, deadlines, health, connections."""

import asyncio
import socket
from typing import Any

import grpc
import pytest
from google.protobuf.json_format import MessageToDict
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from clip4str_service.pb import recognition_pb2 as pb
from clip4str_service.pb.recognition_pb2_grpc import RecognitionServiceStub
from clip4str_service.rpc_calls import SERVICE
from clip4str_service.wire import Phase
from tests.service.front import PATIENCE
from tests.service.pixel_worker import MODEL, POISON, UNREADABLE, plain, settings
from tests.service.rest_service import Service, body
from tests.service.rpc_service import RpcService, asking, failure, serving, told

UNAVAILABLE = grpc.StatusCode.UNAVAILABLE


async def test_crops_are_read_in_order(rpc: RpcService) -> None:
    crops = [pb.Crop(id="a", content=plain("1A2B3C")), pb.Crop(content=plain("444444"))]
    response = await rpc.stub.Recognize(pb.RecognizeRequest(crops=crops))
    assert (response.model.name, response.model.revision) == (MODEL.name, MODEL.revision)
    assert [result.id for result in response.results] == ["a", "1"]
    first, second = [result.recognition for result in response.results]
    assert (first.text, first.agreement, first.confidence) == ("1A2B3C", False, 0.9**7)
    assert (second.text, second.agreement) == ("444444", True)
    assert response.timing.decode_ms > 0


@pytest.mark.parametrize("detail", ["text", "characters"])
async def test_answer_is_that_of_rest_field_by_field(rpc: RpcService, service: Service, detail: str) -> None:
    crop = plain("1A2B3C")
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
    crops = [plain(), b"", b"text", bytes(2001)]
    response = await rpc.recognize(*crops)
    reasons = ["undecodable_image", "unsupported_media_type", "image_too_large"]
    assert [told(result) for result in response.results] == ["ABCDEF", *reasons]
    for result in response.results[1:]:
        assert result.error.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
        assert result.error.message


async def test_crop_that_breaks_the_model_or_its_process_fails_alone(rpc: RpcService) -> None:
    response = await rpc.recognize(plain(UNREADABLE), plain(), plain(POISON))
    assert [told(result) for result in response.results] == ["internal", "ABCDEF", "internal"]
    assert response.results[0].error.code == grpc.StatusCode.INTERNAL.value[0]


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
    assert (failed.code, failed.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "invalid_request")
    assert failed.fields == [field]


async def test_long_id_is_refused(rpc: RpcService) -> None:
    crops = [pb.Crop(id="x" * 128, content=plain()), pb.Crop(id="x" * 129)]
    failed = await failure(rpc.stub.Recognize(pb.RecognizeRequest(crops=crops)))
    assert failed.fields == ["crops[1].id"]


async def test_too_many_crops(rpc: RpcService) -> None:
    failed = await failure(rpc.recognize(*[b""] * 5))
    assert (failed.code, failed.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "too_many_crops")


async def test_too_large_message_is_told_the_limit(rpc: RpcService) -> None:
    failed = await failure(rpc.raw("Recognize", bytes(10_001)))
    assert (failed.code, failed.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "payload_too_large")
    assert rpc.calls("Recognize", "payload_too_large") == 1
    at_limit = await failure(rpc.raw("Recognize", b"\xff" * 10_000))
    assert at_limit.reason == "invalid_request"


async def test_far_too_large_message_is_refused_by_grpc_itself(rpc: RpcService) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await rpc.recognize(bytes(5 << 20))
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_message_that_cannot_be_parsed(rpc: RpcService) -> None:
    failed = await failure(rpc.raw("Recognize", b"\xff\xff\xff"))
    assert (failed.code, failed.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "invalid_request")


async def test_unknown_method(rpc: RpcService) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await rpc.raw("Nothing", b"")
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_get_model(rpc: RpcService) -> None:
    model = await rpc.stub.GetModel(pb.GetModelRequest())
    assert (model.name, model.revision, model.variant) == (MODEL.name, MODEL.revision, MODEL.variant)
    assert (model.charset, model.max_length, model.parameters) == (MODEL.charset, 25, 1)
    assert (model.image_size.height, model.image_size.width) == MODEL.image_size


async def test_calls_follow_the_supervisor() -> None:
    async with serving(loaded=False) as rpc:
        failed = await failure(rpc.recognize(plain()))
        assert (failed.code, failed.reason, failed.retry_ms) == (UNAVAILABLE, "not_ready", 1000)
        assert (await failure(rpc.stub.GetModel(pb.GetModelRequest()))).reason == "not_ready"
        await rpc.stage.load()
        assert [told(result) for result in (await rpc.recognize(plain())).results] == ["ABCDEF"]
        await rpc.stage.say(Phase.RESTARTING)
        failed = await failure(rpc.recognize(plain()))
        assert (failed.code, failed.reason, failed.retry_ms) == (UNAVAILABLE, "not_ready", 700)
        await rpc.stage.drain()
        failed = await failure(rpc.recognize(plain()))
        assert (failed.code, failed.reason) == (UNAVAILABLE, "draining")
        assert (await rpc.stub.GetModel(pb.GetModelRequest())).name == MODEL.name


async def test_health_is_what_it_is_told() -> None:
    async with serving(loaded=False) as rpc:
        not_serving, serving_ = (
            health_pb2.HealthCheckResponse.NOT_SERVING,
            health_pb2.HealthCheckResponse.SERVING,
        )
        watching = rpc.watch(SERVICE)
        assert [await rpc.health(name) for name in ("", SERVICE)] == [not_serving] * 2
        assert (await watching.read()).status == not_serving
        await rpc.server.set_serving(True)
        assert [await rpc.health(name) for name in ("", SERVICE)] == [serving_] * 2
        assert (await watching.read()).status == serving_
        await rpc.server.set_serving(False)
        assert (await watching.read()).status == not_serving
        watching.cancel()


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


async def test_full_queue_tells_when_to_retry() -> None:
    async with serving(settings(max_crops=4, queue_crops=4)) as rpc:
        rpc.stage.worker.gate.clear()
        accepted = asyncio.ensure_future(rpc.recognize(plain("111111"), plain(), plain("222222")))
        await rpc.stage.until_running(3)
        failed = await failure(rpc.recognize(plain(), plain()))
        assert (failed.code, failed.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "overloaded")
        assert failed.retry_ms
        rpc.stage.worker.gate.set()
        assert [told(result) for result in (await accepted).results] == ["111111", "ABCDEF", "222222"]


async def test_timeout_option_answers_each_crop(rpc: RpcService) -> None:
    rpc.stage.worker.gate.clear()
    response = await rpc.recognize(plain(), b"", timeout_ms=500)
    assert [told(result) for result in response.results] == ["deadline_exceeded", "undecodable_image"]
    assert response.results[0].error.code == grpc.StatusCode.DEADLINE_EXCEEDED.value[0]


async def test_deadline_of_the_call_frees_its_places() -> None:
    async with serving(settings(max_batch=1)) as rpc:
        rpc.stage.worker.gate.clear()
        running = asyncio.ensure_future(rpc.recognize(plain("111111")))
        await rpc.stage.until_running(1)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await rpc.stub.Recognize(asking(plain(), plain("222222")), timeout=0.3)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await rpc.stage.until_queued(0)
        await rpc.until_counted(
            "Recognize", "deadline_exceeded", "cancelled"
        )  # by whose clock it passed first
        rpc.stage.worker.gate.set()
        await running
        assert rpc.stage.worker.batches == [1]


async def test_cancelled_call_frees_its_places_and_is_counted() -> None:
    async with serving(settings(max_batch=1)) as rpc:
        rpc.stage.worker.gate.clear()
        running = asyncio.ensure_future(rpc.recognize(plain("111111")))
        await rpc.stage.until_running(1)
        leaving = rpc.stub.Recognize(asking(plain(), plain("222222")))
        await rpc.stage.until_prepared(3)
        leaving.cancel()
        await rpc.until_counted("Recognize", "cancelled")
        await rpc.stage.until_queued(0)
        assert rpc.stage.value("dropped_total", reason="cancelled") == 2
        rpc.stage.worker.gate.set()
        await running
        assert rpc.stage.worker.batches == [1]


async def test_fault_of_ours_is_internal_and_logged(
    rpc: RpcService, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("a secret detail")

    monkeypatch.setattr(rpc.stage.engine, "recognize", fail)
    failed = await failure(rpc.recognize(plain()))
    assert (failed.code, failed.reason) == (grpc.StatusCode.INTERNAL, "internal")
    assert "a secret detail" in caplog.text
    assert rpc.calls("Recognize", "internal") == 1


async def test_request_id_is_echoed_with_answers_and_errors(rpc: RpcService) -> None:
    metadata = (("x-request-id", "abc-123"),)
    call = rpc.stub.Recognize(asking(plain()), metadata=metadata)
    await call
    assert dict(await call.trailing_metadata())["x-request-id"] == "abc-123"
    failed = await failure(rpc.stub.Recognize(pb.RecognizeRequest(), metadata=metadata))
    assert failed.trailers["x-request-id"] == failed.request_id == "abc-123"


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
    assert rpc.calls("Recognize", "ok") == rpc.calls("Recognize", "invalid_request") == 1


async def test_taken_port_is_an_error(rpc: RpcService) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        other = rpc.another()
        with pytest.raises(OSError, match="in use"):
            other.bind("127.0.0.1", taken.getsockname()[1])
        await other.stop(0)


async def test_front_ends_share_the_port(rpc: RpcService) -> None:
    other = rpc.another()
    assert other.bind("127.0.0.1", rpc.port) == rpc.port
    await other.stop(0)


async def test_compressed_requests_are_held_to_the_same_limits(rpc: RpcService) -> None:
    channel = rpc.client(compression=grpc.Compression.Gzip)
    stub = RecognitionServiceStub(channel)
    answer = await stub.Recognize(asking(plain()), timeout=PATIENCE)
    assert [told(result) for result in answer.results] == ["ABCDEF"]
    assert (await failure(stub.Recognize(asking(bytes(10_001))))).reason == "payload_too_large"
    with pytest.raises(grpc.aio.AioRpcError) as caught:  # 5 KB on the wire
        await stub.Recognize(asking(bytes(5 << 20)), timeout=PATIENCE)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    await channel.close()


async def test_old_connection_is_closed_when_its_calls_are_answered() -> None:
    async with serving(settings(grpc_max_age_ms=100)) as rpc:
        rpc.stage.worker.gate.clear()
        asked = asyncio.ensure_future(rpc.recognize(plain()))
        await rpc.stage.until_running(1)
        async with asyncio.timeout(PATIENCE):
            await rpc.channel.wait_for_state_change(grpc.ChannelConnectivity.READY)
        rpc.stage.worker.gate.set()
        assert [told(result) for result in (await asked).results] == ["ABCDEF"]
        assert [told(result) for result in (await rpc.recognize(plain())).results] == ["ABCDEF"]
