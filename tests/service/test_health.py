"""`clip4str-service health` before a metrics port that is ready, not ready, silent, strange or not there."""

import asyncio
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from clip4str_service import health
from clip4str_service.__main__ import main
from clip4str_service.errors import DrainingError
from clip4str_service.health import UnhealthyError, check_ready
from clip4str_service.status import StatusServer


class Health:
    def __init__(self, ready: bool) -> None:
        self.ready = ready

    def check_alive(self) -> None:
        pass

    def check_started(self) -> None:
        pass

    def check_ready(self) -> None:
        if not self.ready:
            raise DrainingError("it is about to stop")


@asynccontextmanager
async def listening(ready: bool = True, host: str = "127.0.0.1") -> AsyncIterator[int]:
    async def exposition(_: str) -> tuple[bytes, str]:
        return b"", "text/plain"

    server = StatusServer(Health(ready), exposition)
    await server.start(host, 0)
    try:
        yield server.port
    finally:
        server.stop()


@asynccontextmanager
async def saying(answer: bytes) -> AsyncIterator[int]:
    """A port of something else, which says this to everybody."""

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(answer)
        writer.close()

    async with await asyncio.start_server(connected, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]


async def run(port: int, host: str = "127.0.0.1") -> int:
    return await asyncio.to_thread(main, ["health", "--host", host, "--metrics-port", str(port)])


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "localhost"])  # noqa: S104 (asked, not listened on)
async def test_ready(host: str, capsys: pytest.CaptureFixture[str]) -> None:
    async with listening() as port:
        assert await run(port, host) == 0
    out, err = capsys.readouterr()
    assert out.endswith(f":{port}/readyz: ready\n")
    assert err == ""


@pytest.mark.parametrize("host", ["::1", "::"])
async def test_ipv6(host: str, capsys: pytest.CaptureFixture[str]) -> None:
    async with listening(host=host) as port:
        assert await run(port, host) == 0
    assert capsys.readouterr().out == f"http://[::1]:{port}/readyz: ready\n"


async def test_not_ready(capsys: pytest.CaptureFixture[str]) -> None:
    async with listening(ready=False) as port:
        assert await run(port) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err == (f"clip4str-service: http://127.0.0.1:{port}/readyz: 503 draining: it is about to stop\n")


async def test_nobody_there(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))  # and does not listen
        assert await run(bound.getsockname()[1]) == 1
    assert "Connection refused" in capsys.readouterr().err


async def test_silence_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "SECONDS", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(UnhealthyError, match="timed out"):
        await asyncio.to_thread(check_ready, "127.0.0.1", silent.getsockname()[1])


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"SSH-2.0-server\r\n", "SSH-2.0-server"),
        (b"", "closed connection"),
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", "404"),
        (b"HTTP/1.1 500 Oops\r\nContent-Length: 4\r\n\r\n[42]", "500"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf", "IncompleteRead"),
    ],
)
async def test_something_else_answers(answer: bytes, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    async with saying(answer) as port:
        assert await run(port) == 1
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert said in err


def test_port_must_be_known(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["health", "--metrics-port", "0"]) == 2
    assert capsys.readouterr().err.startswith("clip4str-service: CLIP4STR_METRICS_PORT (--metrics-port): 0 ")


def test_it_loads_no_server_and_no_model() -> None:
    """It runs every few seconds beside a service that needs its processors itself."""
    script = (
        "import sys; from clip4str_service.__main__ import main; main(['health', '--metrics-port', '1']); "
        "print(*sorted({'torch', 'numpy', 'grpc', 'fastapi', 'httpx2', 'PIL'} & set(sys.modules)))"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ended.stdout == "\n"
