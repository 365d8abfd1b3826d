"""The whole service from start to stop: real front ends on real sockets, workers that read pixels."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from clip4str_service import child as child_module
from clip4str_service import supervisor as supervisor_module
from clip4str_service.ports import PortError
from clip4str_service.supervisor import Supervisor
from clip4str_service.workers import WorkerStartError
from tests.service.generation_stage import PIXELS, becomes
from tests.service.pixel_process import DYING, ENDLESS, SLOW, STUCK
from tests.service.pixel_worker import settings
from tests.service.processes import children, nothing_left, until
from tests.service.supervised import requests, supervised


@pytest.fixture(autouse=True)
async def _nothing_is_left(caplog: pytest.LogCaptureFixture) -> AsyncIterator[None]:
    async with nothing_left():
        yield
    assert [record for record in caplog.records if record.name == "asyncio"] == []


async def test_from_start_to_stop(tmp_path: Path) -> None:
    async with supervised(tmp_path, load=False, max_batch=1) as service:
        supervisor = service.supervisor
        assert await service.healths() == [200, 503, 503, 200, 503, 503]
        assert (await service.metrics())["clip4str_ready"] == 0
        early = await service.post("ABCDEF")
        assert (early.status_code, early.json()["code"]) == (503, "not_ready")
        assert "Retry-After" in early.headers
        becomes(service.model, DYING)
        with pytest.raises(WorkerStartError, match="exit code 3"):
            await supervisor.load()
        assert await service.healths() == [200, 503, 503, 200, 503, 503]
        becomes(service.model, "first")
        await supervisor.load()
        await service.until_probed(200, 200, 200, 200, 200, 200)

        assert await service.read("ABCDEF") == "ABCDEF"
        assert (await service.call("123456")).results[0].recognition.text == "123456"
        measured = await service.metrics()
        assert measured["clip4str_ready"] == 1
        assert measured["clip4str_model_load_seconds"] > 0
        assert measured[requests("rest", "/v1/recognize", "ok")] == 1
        assert measured[requests("grpc", "Recognize", "ok")] == 1
        assert measured['clip4str_crops_total{outcome="ok"}'] == 2

        accepted = [asyncio.create_task(service.post(SLOW)) for _ in range(3)]
        call = asyncio.create_task(service.call(SLOW, "ABCDEF"))
        await until(lambda: supervisor.queued + supervisor.running == 5)
        stopping = asyncio.create_task(service.stop())
        await service.until_probed(200, 503, 200, 200, 503, 200)
        refused = await service.post("ABCDEF")
        assert (refused.status_code, refused.json()["code"]) == (503, "draining")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await service.call("ABCDEF")
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert [answer.status_code for answer in await asyncio.gather(*accepted)] == [200] * 3
        assert [result.recognition.text for result in (await call).results] == [SLOW, "ABCDEF"]
        assert await stopping
        assert children() == []
        for port in supervisor.ports:
            with pytest.raises(ConnectionRefusedError):
                await asyncio.open_connection("127.0.0.1", port)


async def test_stop_ends_in_time_whatever_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor_module, "_CLOSE_SECONDS", 1.0)
    monkeypatch.setattr(child_module, "_STOP_SECONDS", 60.0)  # a busy machine ends no front end in the middle
    async with supervised(tmp_path, drain_timeout_ms=300) as service:
        await service.until_probed(200, 200, 200, 200, 200, 200)
        stuck = asyncio.create_task(service.post(STUCK))
        await until(lambda: service.supervisor.running == 1)
        reader, writer = await asyncio.open_connection("127.0.0.1", service.supervisor.ports.http)
        writer.write(b"POST /v1/recognize HTTP/1.1\r\nHost: a\r\nContent-Length: 99\r\n")
        writer.write(b"Content-Type: image/png\r\nExpect: 100-continue\r\n\r\n")
        assert b" 100 " in await reader.readuntil(b"\r\n\r\n")  # the body is being waited for
        assert not await service.stop()
        assert children() == []
        answer = await stuck
        assert (answer.status_code, answer.json()["code"]) == (503, "draining")
        head, _, document = (await reader.read()).partition(b"\r\n\r\n")
        writer.close()
        assert head.startswith(b"HTTP/1.1 503 ")
        assert json.loads(document)["code"] == "draining"


async def test_service_can_be_stopped_at_any_moment_of_its_start(tmp_path: Path) -> None:
    becomes(tmp_path / "model", ENDLESS)
    for processes in (0, 1, 2):
        supervisor = Supervisor(settings(model=str(tmp_path / "model")), PIXELS)
        starting = asyncio.create_task(start(supervisor))
        await asyncio.sleep(0)
        await until(lambda: len(children()) >= processes)  # noqa: B023
        starting.cancel()
        await asyncio.wait([starting])
        assert await supervisor.stop()
        assert children() == []


async def start(supervisor: Supervisor) -> None:
    await supervisor.start()
    await supervisor.load()


@pytest.mark.parametrize("field", ["http_port", "grpc_port", "metrics_port"])
async def test_taken_port_is_named_in_one_line(field: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        supervisor = Supervisor(settings(**{field: port}), PIXELS)
        with pytest.raises(PortError) as caught:
            await supervisor.start()
        assert await supervisor.stop()
    line = str(caught.value)
    assert f"CLIP4STR_{field.upper()} (--{field.replace('_', '-')})" in line
    assert f"127.0.0.1:{port}" in line
    assert "\n" not in line
