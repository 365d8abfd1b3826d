"""The whole service in this process, on real sockets: start, leaving clients, stop."""

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import httpx
import pytest

from clip4str_service import server as server_module
from clip4str_service.pb import recognition_pb2 as pb
from clip4str_service.pb.recognition_pb2_grpc import RecognitionServiceStub
from clip4str_service.server import FrontEndError, PortError, Server
from clip4str_service.worker import WorkerStartError
from tests.service.pixel_worker import PixelWorker, plain, settings

PNG = {"Content-Type": "image/png"}


class Service:
    """A server, its worker, and a client for each of its ports."""

    def __init__(self, server: Server, worker: PixelWorker) -> None:
        self.server = server
        self.worker = worker
        self.http = httpx.AsyncClient(base_url=f"http://127.0.0.1:{server.ports.http}", timeout=30)
        self.channel = grpc.aio.insecure_channel(f"127.0.0.1:{server.ports.grpc}")
        self.rpc = RecognitionServiceStub(self.channel)

    async def recognize(self, content: bytes) -> httpx.Response:
        return await self.http.post("/v1/recognize", content=content, headers=PNG)

    async def metrics(self) -> dict[str, float]:
        """Every sample by its name and labels, as it is written."""
        async with httpx.AsyncClient() as client:
            text = (await client.get(f"http://127.0.0.1:{self.server.ports.metrics}/metrics")).text
        lines = [line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#")]
        return {name: float(value) for name, value in lines}

    async def held(self) -> float:
        """How many crops were accepted and have no answer yet."""
        measured = await self.metrics()
        return measured["clip4str_queued_crops"] + measured["clip4str_inflight_crops"]

    async def until(self, name: str, value: float) -> None:
        """Returns when a metric has a value."""
        while (await self.metrics()).get(name, 0.0) != value:  # noqa: ASYNC110 (metrics raise no event)
            await asyncio.sleep(0.005)


@asynccontextmanager
async def running(load: bool = True, **changes: Any) -> AsyncIterator[Service]:
    worker = PixelWorker()
    server = Server(settings(**changes), worker)
    await server.start()
    service = Service(server, worker)
    if load:
        await server.load()
    try:
        async with service.http, service.channel:
            yield service
    finally:
        worker.gate.set()
        await server.stop()


async def test_ports_answer_before_the_model_is_loaded() -> None:
    async with running(load=False) as service:
        assert (await service.http.get("/livez")).status_code == 200
        assert (await service.http.get("/readyz")).status_code == 503
        assert (await service.metrics())["clip4str_ready"] == 0
        await service.server.load()
        assert (await service.http.get("/readyz")).status_code == 200
        assert (await service.metrics())["clip4str_ready"] == 1


async def test_every_port_serves() -> None:
    async with running() as service:
        assert (await service.recognize(plain())).json()["results"][0]["text"] == "ABCDEF"
        answer = await service.rpc.Recognize(pb.RecognizeRequest(crops=[pb.Crop(content=plain())]))
        assert answer.results[0].recognition.text == "ABCDEF"
        measured = await service.metrics()
        for protocol, method in (("rest", "/v1/recognize"), ("grpc", "Recognize")):
            labels = f'{{code="ok",method="{method}",protocol="{protocol}"}}'
            assert measured[f"clip4str_requests_total{labels}"] == 1
        assert measured['clip4str_crops_total{outcome="ok"}'] == 2


@pytest.mark.parametrize("field", ["http_port", "grpc_port", "metrics_port"])
async def test_taken_port_is_named(field: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        server = Server(settings(**{field: port}), PixelWorker())
        with pytest.raises(PortError) as caught:
            await server.start()
        await server.stop()
    line = str(caught.value)
    assert f"CLIP4STR_{field.upper()} (--{field.replace('_', '-')})" in line
    assert f"127.0.0.1:{port}" in line
    assert "\n" not in line


async def test_failed_load_is_told_and_the_server_can_be_stopped() -> None:
    server = Server(settings(), PixelWorker("no such model"))
    await server.start()
    with pytest.raises(WorkerStartError, match="no such model"):
        await server.load()
    assert await server.stop()
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", server.ports.http)


async def test_death_of_rest_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    async def die(_: object) -> None:
        raise OSError("the sockets are lost")

    monkeypatch.setattr(server_module._HttpServer, "main_loop", die)
    async with running() as service:
        with pytest.raises(FrontEndError, match="REST ended by itself: the sockets are lost"):
            await service.server.watch()


async def test_client_that_leaves_frees_its_places_and_is_counted() -> None:
    async with running(max_batch=1) as service:
        service.worker.gate.clear()
        staying = asyncio.create_task(service.recognize(plain()))
        await service.until("clip4str_inflight_crops", 1)
        leaving = asyncio.create_task(service.recognize(plain()))
        await service.until("clip4str_queued_crops", 1)
        leaving.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await leaving
        await service.until("clip4str_queued_crops", 0)
        labels = '{code="cancelled",method="/v1/recognize",protocol="rest"}'
        await service.until(f"clip4str_requests_total{labels}", 1)
        service.worker.gate.set()
        assert (await staying).status_code == 200
        assert service.worker.batches == [1]
        assert (await service.metrics())['clip4str_dropped_total{reason="cancelled"}'] == 1


async def test_client_that_leaves_while_it_sends_harms_nobody() -> None:
    async with running() as service:
        _, writer = await asyncio.open_connection("127.0.0.1", service.server.ports.http)
        writer.write(b"POST /v1/recognize HTTP/1.1\r\nHost: a\r\nContent-Length: 99\r\n")
        writer.write(b"Content-Type: image/png\r\n\r\nx")
        await writer.drain()
        writer.close()
        labels = '{code="cancelled",method="/v1/recognize",protocol="rest"}'
        await service.until(f"clip4str_requests_total{labels}", 1)
        assert (await service.recognize(plain())).status_code == 200


async def test_stop_finishes_what_was_accepted_and_refuses_the_rest() -> None:
    async with running(max_batch=1) as service:
        service.worker.gate.clear()
        accepted = [asyncio.create_task(service.recognize(plain())) for _ in range(3)]
        call = service.rpc.Recognize(pb.RecognizeRequest(crops=[pb.Crop(content=plain())]))
        accepted_call = asyncio.ensure_future(call)
        while await service.held() != 4:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        stopping = asyncio.create_task(service.server.stop())
        await service.until("clip4str_ready", 0)
        refused = await service.recognize(plain())
        assert (refused.status_code, refused.json()["code"]) == (503, "draining")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await service.rpc.Recognize(pb.RecognizeRequest(crops=[pb.Crop(content=plain())]))
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        service.worker.gate.set()
        assert [response.status_code for response in await asyncio.gather(*accepted)] == [200] * 3
        assert (await accepted_call).results[0].recognition.text == "ABCDEF"
        assert await stopping


async def test_stop_during_a_slow_upload_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "_CLOSE_SECONDS", 0.1)
    async with running() as service:
        reader, writer = await asyncio.open_connection("127.0.0.1", service.server.ports.http)
        writer.write(b"POST /v1/recognize HTTP/1.1\r\nHost: a\r\nContent-Length: 99\r\n")
        writer.write(b"Content-Type: image/png\r\nExpect: 100-continue\r\n\r\n")
        assert b" 100 " in await reader.readuntil(b"\r\n\r\n")  # the body is being waited for
        assert await service.server.stop()
        answer = await reader.read()
        writer.close()
    head, _, document = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 503 ")
    assert b"application/problem+json" in head
    assert json.loads(document)["code"] == "draining"


async def test_stop_gives_up_when_its_time_is_over() -> None:
    worker = PixelWorker()
    server = Server(settings(drain_timeout_ms=50), worker)
    await server.start()
    await server.load()
    service = Service(server, worker)
    worker.gate.clear()
    async with service.http, service.channel:
        request = asyncio.create_task(service.recognize(plain()))
        await service.until("clip4str_inflight_crops", 1)
        assert not await server.stop()
        response = await request
        assert (response.status_code, response.json()["code"]) == (503, "draining")
