"""The metrics port on a real socket: probes, scrapes, and clients that are silent, slow, wrong or too many."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus

import httpx
import pytest

from clip4str_service import status
from clip4str_service.errors import DrainingError, NotReadyError
from clip4str_service.status import StatusServer

BODY = b"clip4str_ready 1.0\n"


class Health:
    def __init__(self) -> None:
        self.alive = True
        self.ready = True

    def check_alive(self) -> None:
        if not self.alive:
            raise NotReadyError("its processes end again and again")

    def check_ready(self) -> None:
        if not self.ready:
            raise DrainingError("it is about to stop")

    def check_started(self) -> None:
        pass


class Port:
    """A started server and what it shows."""

    def __init__(self) -> None:
        self.health = Health()
        self.body = BODY
        self.accepted: list[str] = []
        self.server = StatusServer(self.health, self.exposition)

    async def exposition(self, accept: str) -> tuple[bytes, str]:
        self.accepted.append(accept)
        if not self.body:
            raise ValueError("the files are lost")
        return self.body, "text/plain; version=0.0.4"

    async def get(self, path: str, method: str = "GET", **headers: str) -> httpx.Response:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{self.server.port}") as client:
            return await client.request(method, path, headers=headers)

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.server.port)

    async def send(self, content: bytes) -> bytes:
        """The whole answer to what is sent, after which nothing more is."""
        reader, writer = await self.connect()
        writer.write(content)
        answer = await reader.read()
        writer.close()
        return answer


@asynccontextmanager
async def started() -> AsyncIterator[Port]:
    port = Port()
    await port.server.start("127.0.0.1", 0)
    try:
        yield port
    finally:
        port.server.stop()


@pytest.mark.parametrize(
    ("path", "name"), [("/livez", "live"), ("/readyz", "ready"), ("/startupz", "started")]
)
async def test_sound_service(path: str, name: str) -> None:
    async with started() as port:
        response = await port.get(path)
    assert (response.status_code, response.json()) == (200, {name: True})
    assert response.headers["content-type"] == "application/json"


async def test_draining_service_is_alive_and_not_ready() -> None:
    async with started() as port:
        port.health.ready = False
        assert (await port.get("/livez")).status_code == HTTPStatus.OK
        response = await port.get("/readyz")
    assert response.status_code == HTTPStatus.SERVICE_UNAVAILABLE
    assert response.headers["content-type"] == "application/problem+json"
    assert (response.json()["code"], response.json()["detail"]) == ("draining", "it is about to stop")


async def test_dead_service_is_not_alive() -> None:
    async with started() as port:
        port.health.alive = False
        assert (await port.get("/livez")).json()["code"] == "not_ready"


async def test_metrics_are_those_that_were_asked_for() -> None:
    async with started() as port:
        response = await port.get("/metrics?name=x", accept="application/openmetrics-text")
    assert (response.status_code, response.content) == (200, BODY)
    assert response.headers["content-type"] == "text/plain; version=0.0.4"
    assert port.accepted == ["application/openmetrics-text"]


async def test_head_has_no_body() -> None:
    async with started() as port:
        answer = await port.send(b"HEAD /metrics HTTP/1.1\r\nHost: a\r\n\r\n")
    head, _, body = answer.partition(b"\r\n\r\n")
    assert f"Content-Length: {len(BODY)}".encode() in head
    assert body == b""


async def test_scrape_that_fails_is_told_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    async with started() as port:
        port.body = b""
        assert (await port.get("/metrics")).status_code == HTTPStatus.INTERNAL_SERVER_ERROR
        assert (await port.get("/livez")).status_code == HTTPStatus.OK
    assert "the files are lost" in caplog.text


@pytest.mark.parametrize("path", ["/", "/v1/recognize", "/metrics/", "/../livez", "/%6Civez"])
async def test_nothing_else_is_there(path: str) -> None:
    async with started() as port:
        answer = await port.send(f"GET {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
    assert answer.startswith(b"HTTP/1.1 404 ")


async def test_no_other_method_is_taken() -> None:
    async with started() as port:
        response = await port.get("/metrics", "POST")
    assert (response.status_code, response.headers["allow"]) == (405, "GET, HEAD")


@pytest.mark.parametrize(
    "content",
    [
        b"\r\n\x00\x01\x02\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET /metrics HTTP/9.9\r\n\r\n",
        b"GET http://[ HTTP/1.1\r\n\r\n",
        b"GET /metrics HTTP/1.1\r\nno header\r\n\r\n",
        b"GET /metrics HTTP/1.1\r\nX: " + b"x" * (20 << 10) + b"\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS
    ],
)
async def test_what_is_no_request_is_refused(content: bytes) -> None:
    async with started() as port:
        assert (await port.send(content)).startswith(b"HTTP/1.1 400 ")
        assert (await port.get("/livez")).status_code == HTTPStatus.OK


async def test_head_may_come_in_pieces_and_ask_for_an_upgrade() -> None:
    async with started() as port:
        reader, writer = await port.connect()
        for piece in (
            b"GET /liv",
            b"ez HTTP/1.1\r\nHost: a\r\nUpgrade: h2c\r\n",
            b"Connection: Upgrade\r\n\r\n",
        ):
            writer.write(piece)
            await asyncio.sleep(0.01)
        answer = await reader.read()
        writer.close()
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert json.loads(answer.partition(b"\r\n\r\n")[2]) == {"live": True}


async def test_silent_client_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status, "_SECONDS", 0.1)
    async with started() as port:
        assert await port.send(b"GET /metrics HT") == b""
        await until_idle(port)


async def test_client_that_reads_nothing_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status, "_SECONDS", 0.2)
    async with started() as port:
        port.body = b"x" * (64 << 20)  # more than any socket holds
        _, writer = await port.connect()
        writer.write(b"GET /metrics HTTP/1.1\r\n\r\n")
        await until_idle(port)
        writer.close()


async def test_client_that_leaves_harms_nobody() -> None:
    async with started() as port:
        for content in (b"", b"GET /metrics HTTP/1.1\r\n\r\n"):
            _, writer = await port.connect()
            writer.write(content)
            writer.transport.abort()
        assert (await port.get("/livez")).status_code == HTTPStatus.OK
        await until_idle(port)


async def test_many_silent_clients_keep_no_probe_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status, "_MAX_CONNECTIONS", 4)
    async with started() as port:
        silent = [await port.connect() for _ in range(20)]
        assert (await port.get("/livez")).status_code == HTTPStatus.OK
        assert len(port.server._connections) <= 4
        assert await silent[0][0].read() == b""  # the oldest was closed
        for _, writer in silent:
            writer.close()


async def test_stop_drops_who_is_there() -> None:
    async with started() as port:
        reader, writer = await port.connect()
        await asyncio.sleep(0.01)
        port.server.stop()
        assert await reader.read() == b""
        writer.close()
        with pytest.raises(OSError, match=r"refused|Connect call failed"):
            await port.connect()


async def test_taken_port_is_an_error() -> None:
    async with started() as port:
        with pytest.raises(OSError, match="in use"):
            await StatusServer(port.health, port.exposition).start("127.0.0.1", port.server.port)


async def until_idle(port: Port) -> None:
    async with asyncio.timeout(10):
        while port.server._connections:  # noqa: ASYNC110 (nobody tells)
            await asyncio.sleep(0.005)
