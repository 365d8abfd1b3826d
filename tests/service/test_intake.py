"""Room for the bytes of requests: given back whatever happens to them, and refused with a time when there is none."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from clip4str_service.errors import OverloadedError
from clip4str_service.intake import Intake
from tests.service import rest_service, rpc_service
from tests.service.front import PATIENCE
from tests.service.pixel_worker import plain, settings
from tests.service.rest_service import PNG, Service, body, parts, problem, said
from tests.service.rpc_service import RpcService, asking, failure, told

LIMITS = settings(max_crop_bytes=2000, max_request_bytes=5000, queue_bytes=5000)


def test_requests_share_the_room() -> None:
    intake = Intake(10)
    with intake.request() as one, intake.request() as other:
        one.take(6)
        one.take(1)
        other.take(3)
        assert intake.held == 10
        with pytest.raises(OverloadedError, match="10 bytes are in hand, and there is room for 10") as caught:
            other.take(1)
        assert caught.value.retry_after_ms
    assert intake.held == 0


def test_failed_request_gives_back_what_it_held() -> None:
    intake = Intake(10)

    def fail() -> None:
        with intake.request() as holding:
            holding.take(10)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert intake.held == 0


def large(seen: asyncio.Event, go_on: asyncio.Event) -> AsyncIterator[bytes]:
    """A JSON body of 4000 bytes, of which the end comes late."""

    async def chunks() -> AsyncIterator[bytes]:
        yield b" " * 3000
        seen.set()
        await go_on.wait()
        yield b'{"crops": []}'.ljust(1000)

    return chunks()


async def test_rest_refuses_what_there_is_no_room_for() -> None:
    async with rest_service.serving(LIMITS) as service:
        seen, go_on = asyncio.Event(), asyncio.Event()
        headers = {"Content-Type": "application/json"}
        slow = asyncio.create_task(service.recognize(content=large(seen, go_on), headers=headers))
        await seen.wait()
        assert service.intake.held == 3000
        response = await service.recognize(content=plain() + bytes(1950), headers=PNG)
        assert "3000 bytes are in hand" in problem(response, 429, "overloaded")["detail"]
        assert int(response.headers["Retry-After"]) >= 1
        assert service.intake.held == 3000
        assert said(await service.recognize(content=plain(), headers=PNG)) == ["ABCDEF"]
        go_on.set()
        problem(await slow, 400, "invalid_request")
        assert service.intake.held == 0
        assert said(await service.recognize(content=plain() + bytes(1900), headers=PNG)) == ["ABCDEF"]


async def test_bytes_are_held_until_the_answer(service: Service) -> None:
    service.stage.worker.gate.clear()
    asked = asyncio.create_task(service.recognize(content=plain(), headers=PNG))
    await service.stage.until_running(1)
    assert service.intake.held == len(plain())
    service.stage.worker.gate.set()
    assert said(await asked) == ["ABCDEF"]
    assert service.intake.held == 0


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        ({"content": plain(), "headers": PNG}, 200),
        ({"content": b"nothing", "headers": PNG}, 415),
        ({"content": bytes(2001), "headers": PNG}, 413),
        ({"content": bytes(10_001), "headers": PNG}, 413),
        ({"content": plain(), "headers": PNG, "params": {"top_k": "9"}}, 400),
        ({"json": body(plain(), b"")}, 200),
        ({"json": body()}, 400),
        ({"json": body(*[b""] * 5)}, 413),
        ({"content": b"{", "headers": {"Content-Type": "application/json"}}, 400),
        ({"files": parts(plain(), bytes(2001))}, 200),
        ({"files": parts(*[b""] * 5)}, 413),
        ({"content": b"--b", "headers": {"Content-Type": "multipart/form-data; boundary=b"}}, 400),
    ],
)
async def test_rest_gives_the_bytes_back(service: Service, request_: dict[str, Any], status: int) -> None:
    assert (await service.recognize(**request_)).status_code == status
    assert service.intake.held == 0


async def test_rest_gives_the_bytes_back_when_the_fault_is_ours(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service.stage.engine, "recognize", None)
    problem(await service.recognize(content=plain(), headers=PNG), 500, "internal")
    assert service.intake.held == 0


async def test_grpc_refuses_what_there_is_no_room_for() -> None:
    async with rpc_service.serving(LIMITS) as rpc:
        rpc.stage.worker.gate.clear()
        crop = plain() + bytes(1900 - len(plain()))
        asked = asyncio.ensure_future(rpc.recognize(crop, crop))
        await rpc.stage.until_running(2)
        held = asking(crop, crop).ByteSize()
        assert rpc.intake.held == held
        failed = await failure(rpc.recognize(crop))
        assert (failed.code, failed.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "overloaded")
        assert f"{held} bytes are in hand" in failed.message
        assert failed.retry_ms
        assert rpc.intake.held == held
        rpc.stage.worker.gate.set()
        assert [told(result) for result in (await asked).results] == ["ABCDEF"] * 2
        assert [told(result) for result in (await rpc.recognize(crop)).results] == ["ABCDEF"]


@pytest.mark.parametrize("message", [b"", b"\xff", bytes(10_001)])
async def test_grpc_gives_the_bytes_of_wrong_messages_back(rpc: RpcService, message: bytes) -> None:
    assert (await failure(rpc.raw("Recognize", message))).code is grpc.StatusCode.INVALID_ARGUMENT
    assert rpc.intake.held == 0


@pytest.mark.parametrize("seconds", [0.2, None])
async def test_grpc_gives_the_bytes_of_abandoned_calls_back(rpc: RpcService, seconds: float | None) -> None:
    rpc.stage.worker.gate.clear()
    asked = rpc.stub.Recognize(asking(plain()), timeout=seconds)
    async with asyncio.timeout(PATIENCE):
        while not rpc.intake.held:  # noqa: ASYNC110 (it raises no event)
            await asyncio.sleep(0.001)
        if seconds is None:
            asked.cancel()
        while rpc.intake.held:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    with pytest.raises((grpc.aio.AioRpcError, asyncio.CancelledError)):
        await asked
