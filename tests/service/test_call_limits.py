"""gRPC calls that are too many, without a key, or never end their message: each is ended, and no other suffers."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from time import monotonic
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from clip4str_service import call_limits, rpc_calls
from clip4str_service.auth import new_key
from clip4str_service.pb import recognition_pb2 as pb
from clip4str_service.pb.recognition_pb2_grpc import RecognitionServiceStub
from clip4str_service.rpc_calls import SERVICE
from tests.service.front import PATIENCE
from tests.service.half_sent import HalfSent
from tests.service.pixel_worker import plain, settings
from tests.service.rpc_service import RpcService, Stream, asking, failure, serving, told

SHORT = 0.2
"""Seconds: the limit that a test meets."""

SOON = 1.0
"""Seconds: long after SHORT."""

SERVING = health_pb2.HealthCheckResponse.SERVING
RECOGNIZE = f"/{SERVICE}/Recognize"
STREAM = f"/{SERVICE}/RecognizeStream"


@asynccontextmanager
async def half_sent(rpc: RpcService, count: int, method: str = RECOGNIZE) -> AsyncIterator[list[HalfSent]]:
    calls = [HalfSent(rpc.port, method) for _ in range(count)]
    for call in calls:
        await call.open()
    try:
        yield calls
    finally:
        for call in calls:
            call.leave()


async def until_counted(rpc: RpcService, method: str, code: str, count: float) -> None:
    async with asyncio.timeout(PATIENCE):
        while rpc.calls(method, code) != count:  # noqa: ASYNC110 (counts raise no event)
            await asyncio.sleep(0.001)


async def test_message_that_never_ends_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(call_limits, "_AT_A_STRETCH", SHORT / 2)
    async with serving(settings(body_timeout_ms=1000 * SHORT)) as rpc, half_sent(rpc, 3):
        started = monotonic()
        await until_counted(rpc, "Recognize", "invalid_request", 3)
        assert monotonic() - started >= SHORT / 2
        assert [told(result) for result in (await rpc.recognize(plain())).results] == ["ABCDEF"]


async def test_few_messages_may_come_slowly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(call_limits, "_AT_A_STRETCH", SHORT)
    async with serving() as rpc, half_sent(rpc, 16):
        most = max(4, rpc.stage.settings.queue_bytes // (rpc.stage.settings.max_request_bytes + (4 << 20)))
        async with half_sent(rpc, most):
            await until_counted(rpc, "Recognize", "overloaded", 16)
            assert [told(result) for result in (await rpc.recognize(plain())).results] == ["ABCDEF"]


async def test_slow_message_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(call_limits, "_AT_A_STRETCH", 0.0)
    async with serving() as rpc:
        message = asking(plain()).SerializeToString()
        call = HalfSent(rpc.port, RECOGNIZE, len(message))
        await call.open(0)
        for byte in message:
            call.send(bytes([byte]))
            await asyncio.sleep(0)
        await rpc.until_counted("Recognize", "ok")
        call.leave()


async def test_nothing_is_received_of_a_caller_without_a_key(tmp_path: Path) -> None:
    file = tmp_path / "keys.toml"
    key, lines = new_key("me")
    file.write_text(lines)
    async with serving(settings(api_keys_file=file)) as rpc, half_sent(rpc, 3):
        await until_counted(rpc, "Recognize", "unauthenticated", 3)
        answer = await rpc.stub.Recognize(
            asking(plain()), timeout=PATIENCE, metadata=(("authorization", f"Bearer {key}"),)
        )
        assert [told(result) for result in answer.results] == ["ABCDEF"]


async def test_calls_beyond_the_limit_are_told_when_to_come_back() -> None:
    async with serving(settings(max_calls=1, max_batch=1)) as rpc:
        rpc.stage.worker.gate.clear()
        running = asyncio.ensure_future(rpc.recognize(plain()))
        await rpc.stage.until_running(1)
        other = RecognitionServiceStub(channel := rpc.client())
        refused = await failure(other.GetModel(pb.GetModelRequest(), timeout=PATIENCE))
        assert (refused.reason, refused.retry_ms) == ("overloaded", 1000)
        assert rpc.calls("GetModel", "overloaded") == 1
        health: Any = health_pb2_grpc.HealthStub(channel)
        assert (await health.Check(health_pb2.HealthCheckRequest(), timeout=PATIENCE)).status == SERVING
        rpc.stage.worker.gate.set()
        await running
        await other.GetModel(pb.GetModelRequest(), timeout=PATIENCE)
        await channel.close()


async def test_streams_beyond_the_limit_are_told_when_to_come_back() -> None:
    async with serving(settings(max_streams=1)) as rpc:
        first = Stream(rpc.stub)
        await first.send(pb.Crop(id="a", content=plain()))
        assert await first.read() == [("a", "ABCDEF")]
        refused = await Stream(rpc.stub).failure()
        assert (refused.reason, refused.retry_ms) == ("overloaded", 1000)
        assert [told(result) for result in (await rpc.recognize(plain())).results] == ["ABCDEF"]
        assert await first.end() == []


@pytest.mark.parametrize("crops", [0, 1])
async def test_silent_stream_is_ended(crops: int) -> None:
    async with serving(settings(idle_timeout_ms=1000 * SHORT)) as rpc:
        stream = Stream(rpc.stub)
        started = monotonic()
        for _ in range(crops):
            await asyncio.sleep(SHORT / 2)
            await stream.send(pb.Crop(id="a", content=plain()))
            assert await stream.read() == [("a", "ABCDEF")]
        ended = await stream.failure()
        assert ended.reason == "deadline_exceeded"
        assert "open another stream" in ended.message
        assert monotonic() - started >= SHORT * (1 + crops / 2)


async def test_stream_that_waits_for_its_answers_is_not_silent() -> None:
    async with serving(settings(idle_timeout_ms=1000 * SHORT)) as rpc:
        rpc.stage.worker.gate.clear()
        stream = Stream(rpc.stub)
        await stream.send(pb.Crop(id="a", content=plain()))
        await asyncio.sleep(2 * SHORT)
        rpc.stage.worker.gate.set()
        assert await stream.read() == [("a", "ABCDEF")]
        assert await stream.end() == []


async def test_message_of_a_stream_that_never_ends_is_silence() -> None:
    async with serving(settings(idle_timeout_ms=1000 * SHORT)) as rpc, half_sent(rpc, 2, STREAM):
        await until_counted(rpc, "RecognizeStream", "deadline_exceeded", 2)


@pytest.mark.parametrize(
    "method", ["grpc.health.v1.Health/Check", "grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"]
)
async def test_health_and_reflection_wait_for_few(monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    """Anybody may call them: a message that does not come soon is not waited for."""
    monkeypatch.setattr(rpc_calls, "_OPEN_CALLS", 3)
    monkeypatch.setattr(rpc_calls, "_OPEN_SECONDS", SHORT)
    async with serving() as rpc, half_sent(rpc, 3, f"/{method}"):
        await asyncio.sleep(SHORT / 4)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await rpc.health("")
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        await asyncio.sleep(SOON)
        assert await rpc.health("") == SERVING
