"""RecognizeStream on a real port: answers as they are ready, by id, whatever is wrong with single crops."""

import asyncio

import grpc
import pytest

from clip4str_service.pb import recognition_pb2 as pb
from clip4str_service.wire import Phase
from tests.service.front import PATIENCE
from tests.service.pixel_worker import MODEL, POISON, UNREADABLE, plain, settings
from tests.service.rpc_service import RpcService, Stream, serving


async def test_every_crop_is_answered_by_its_id(rpc: RpcService) -> None:
    stream = Stream(rpc.stub)
    colours = [f"{index:02X}{255 - index:02X}7F" for index in range(30)]
    for start in range(0, 30, 3):
        crops = [pb.Crop(id=colour, content=plain(colour)) for colour in colours[start : start + 3]]
        await stream.send(*crops)
    assert sorted(await stream.end()) == sorted((colour, colour) for colour in colours)
    for response in stream.responses:
        assert (response.model.name, response.model.revision) == (MODEL.name, MODEL.revision)
    assert rpc.calls("RecognizeStream", "ok") == 1
    assert rpc.stage.value("crops_total", outcome="ok") == 30


async def test_answers_come_as_they_are_ready(rpc: RpcService) -> None:
    stream = Stream(rpc.stub)
    rpc.stage.worker.gate.clear()
    await stream.send(pb.Crop(id="slow", content=plain()), pb.Crop(id="bad", content=b"text"))
    assert await stream.read() == [("bad", "unsupported_media_type")]
    assert not stream.responses[0].results[0].HasField("recognition")
    await stream.send(pb.Crop(id="empty"))
    assert await stream.read() == [("empty", "undecodable_image")]
    rpc.stage.worker.gate.set()
    assert await stream.read() == [("slow", "ABCDEF")]
    assert await stream.end() == []


async def test_position_in_the_stream_stands_for_an_empty_id(rpc: RpcService) -> None:
    stream = Stream(rpc.stub)
    await stream.send(plain("111111"), pb.Crop(id="a", content=plain("222222")))
    await stream.send()
    await stream.send(plain("333333"), pb.Crop(id="a", content=plain("888888")))
    assert sorted(await stream.end()) == [("0", "111111"), ("2", "333333"), ("a", "222222"), ("a", "888888")]


async def test_stream_of_nothing_is_a_good_one(rpc: RpcService) -> None:
    assert await Stream(rpc.stub).end() == []
    only_options = Stream(rpc.stub)
    await only_options.send(top_k=1)
    assert await only_options.end() == []


async def test_options_of_the_first_message_hold_for_all(rpc: RpcService) -> None:
    stream = Stream(rpc.stub)
    await stream.send(charset="digits", detail=pb.DETAIL_TEXT)
    await stream.send(plain("1A2B3C"))
    await stream.send(plain("4D5E6F"))
    assert sorted(await stream.end()) == [("0", "123"), ("1", "456")]
    for response in stream.responses:
        for result in response.results:
            assert not result.recognition.branches.visual.characters


async def test_options_of_another_message_end_the_stream(rpc: RpcService) -> None:
    rpc.stage.worker.gate.clear()
    stream = Stream(rpc.stub)
    await stream.send(plain())
    await stream.send(plain("111111"), top_k=1)
    failed = await stream.failure()
    assert (failed.code, failed.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "invalid_request")
    assert failed.fields == ["options"]


async def test_wrong_options_end_the_stream(rpc: RpcService) -> None:
    stream = Stream(rpc.stub)
    await stream.send(plain(), top_k=6)
    failed = await stream.failure()
    assert (failed.code, failed.fields) == (grpc.StatusCode.INVALID_ARGUMENT, ["options.top_k"])
    assert rpc.calls("RecognizeStream", "invalid_request") == 1


async def test_bad_crop_never_ends_the_stream(rpc: RpcService) -> None:
    stream = Stream(rpc.stub)
    await stream.send(b"", b"text", plain("111111"), bytes(2001))
    await stream.send(pb.Crop(id="x" * 129, content=plain()), plain(UNREADABLE), plain()[:40])
    await stream.send(plain(POISON), plain("222222"))
    assert dict(await stream.end()) == {
        "0": "undecodable_image",
        "1": "unsupported_media_type",
        "2": "111111",
        "3": "image_too_large",
        "x" * 128: "invalid_request",
        "5": "internal",
        "6": "undecodable_image",
        "7": "internal",
        "8": "222222",
    }
    assert rpc.calls("RecognizeStream", "ok") == 1


async def test_crop_that_is_late_fails_alone(rpc: RpcService) -> None:
    stream = Stream(rpc.stub)
    rpc.stage.worker.gate.clear()
    await stream.send(plain(), timeout_ms=200)
    assert await stream.read() == [("0", "deadline_exceeded")]
    rpc.stage.worker.gate.set()
    await stream.send(plain("111111"))
    assert await stream.end() == [("1", "111111")]


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (pb.RecognizeStreamRequest(crops=[pb.Crop(content=bytes(10_001))]), "payload_too_large"),
        (pb.RecognizeStreamRequest(crops=[pb.Crop()] * 5), "too_many_crops"),
    ],
)
async def test_message_beyond_the_limits_ends_the_stream(
    rpc: RpcService, message: pb.RecognizeStreamRequest, reason: str
) -> None:
    stream = Stream(rpc.stub)
    await stream.send(plain())
    assert await stream.read() == [("0", "ABCDEF")]
    await stream.call.write(message)
    failed = await stream.failure()
    assert (failed.code, failed.reason) == (grpc.StatusCode.INVALID_ARGUMENT, reason)
    assert rpc.calls("RecognizeStream", reason) == 1


async def test_message_that_cannot_be_parsed_ends_the_stream(rpc: RpcService) -> None:
    stream = Stream(rpc.stub)
    stream.call = rpc.channel.stream_stream(
        "/clip4str.v1.RecognitionService/RecognizeStream",
        response_deserializer=pb.RecognizeStreamResponse.FromString,
    )()
    await stream.call.write(b"\xff")
    assert (await stream.failure()).reason == "invalid_request"


async def test_cancelled_stream_frees_its_crops() -> None:
    async with serving(settings(max_batch=1)) as rpc:
        rpc.stage.worker.gate.clear()
        stream = Stream(rpc.stub)
        await stream.send(plain("111111"), plain("222222"), plain("333333"))
        await rpc.stage.until_running(1)
        await rpc.stage.until_prepared(3)
        stream.call.cancel()
        await rpc.until_counted("RecognizeStream", "cancelled")
        await rpc.stage.until_queued(0)
        assert rpc.stage.value("crops_total", outcome="cancelled") == 3
        assert rpc.intake.held == 0
        rpc.stage.worker.gate.set()
        await rpc.until_idle()
        assert rpc.stage.worker.batches == [1]


async def test_deadline_of_the_call_ends_the_stream_and_frees_its_crops() -> None:
    async with serving(settings(max_batch=1)) as rpc:
        rpc.stage.worker.gate.clear()
        stream = Stream(rpc.stub, timeout=0.4)
        await stream.send(plain("111111"), plain("222222"), b"")
        assert await stream.read() == [("2", "undecodable_image")]
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stream.rest()
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await rpc.until_counted(
            "RecognizeStream", "deadline_exceeded", "cancelled"
        )  # by whose clock it passed
        await rpc.stage.until_queued(0)
        assert rpc.intake.held == 0


async def test_fault_of_ours_ends_the_stream_and_is_logged(
    rpc: RpcService, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("a secret detail")

    monkeypatch.setattr(rpc.stage.engine, "begin", fail)
    stream = Stream(rpc.stub)
    await stream.send(plain())
    failed = await stream.failure()
    assert (failed.code, failed.reason) == (grpc.StatusCode.INTERNAL, "internal")
    assert "secret" not in failed.message
    assert "a secret detail" in caplog.text


async def test_stream_is_refused_before_the_model_is_loaded() -> None:
    async with serving(loaded=False) as rpc:
        failed = await Stream(rpc.stub).failure()
        assert (failed.code, failed.reason) == (grpc.StatusCode.UNAVAILABLE, "not_ready")
        assert failed.retry_ms


async def test_stream_waits_while_the_model_is_loaded_again(rpc: RpcService) -> None:
    stream = Stream(rpc.stub)
    await stream.send(plain("111111"))
    assert await stream.read() == [("0", "111111")]
    await rpc.stage.say(Phase.RESTARTING)
    await stream.send(plain("222222"))
    reading = asyncio.create_task(stream.read())
    done, _ = await asyncio.wait([reading], timeout=0.3)
    assert not done
    await rpc.stage.say(Phase.READY)
    assert await reading == [("1", "222222")]
    assert await stream.end() == []


async def test_drain_answers_what_was_accepted_then_ends_the_stream() -> None:
    async with serving(settings(max_batch=1)) as rpc:
        rpc.stage.worker.gate.clear()
        stream = Stream(rpc.stub)
        await stream.send(plain("111111"), plain("222222"))
        await rpc.stage.until_prepared(2)
        draining = asyncio.create_task(rpc.stage.drain())
        await asyncio.sleep(0.05)
        rpc.stage.worker.gate.set()
        assert sorted(await stream.read(2)) == [("0", "111111"), ("1", "222222")]
        failed = await stream.failure()
        assert (failed.code, failed.reason) == (grpc.StatusCode.UNAVAILABLE, "draining")
        assert failed.retry_ms
        await draining
        assert (await Stream(rpc.stub).failure()).reason == "draining"


async def test_drain_lets_a_stream_that_was_sent_whole_end_well() -> None:
    async with serving(settings(max_batch=1, stream_crops=4)) as rpc:
        rpc.stage.worker.gate.clear()
        stream = Stream(rpc.stub)
        await stream.send(plain("111111"), plain("222222"))
        await stream.call.done_writing()
        await rpc.stage.until_prepared(2)
        draining = asyncio.create_task(rpc.stage.drain())
        await asyncio.sleep(0.05)
        rpc.stage.worker.gate.set()
        async with asyncio.timeout(PATIENCE):
            assert sorted(await stream.rest()) == [("0", "111111"), ("1", "222222")]
        await draining


async def test_crops_that_were_not_accepted_before_the_drain_are_left_unanswered() -> None:
    async with serving(settings(queue_crops=1, max_crops=1)) as rpc:
        rpc.stage.worker.gate.clear()
        stream = Stream(rpc.stub)
        await stream.send(plain("111111"))
        await rpc.stage.until_running(1)
        await stream.send(plain("222222"))  # waits for a place
        draining = asyncio.create_task(rpc.stage.drain())
        await asyncio.sleep(0.3)
        rpc.stage.worker.gate.set()
        assert await stream.read() == [("0", "111111")]
        assert (await stream.failure()).reason == "draining"
        assert len(stream.responses) == 1
        await draining
