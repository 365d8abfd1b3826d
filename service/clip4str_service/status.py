"""The metrics port, in the main process: GET /metrics, and the health endpoints without TLS and without keys.

Kubernetes' probes come here when the public ports ask for client certificates. It answers from the supervisor's
event loop: were that stuck, no probe should say that all is well. A connection has a few seconds for everything, and
of too many the oldest is closed, so that neither a silent client nor a slow one keeps others out.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import sys
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Protocol, TypeAlias

import httptools
import orjson

from clip4str_service.errors import ServiceError

log = logging.getLogger(__name__)

Exposition: TypeAlias = Callable[[str], Awaitable[tuple[bytes, str]]]
"""An Accept header to metrics in a format that it names, and their content type."""

_SECONDS = 5.0  # from connecting to the answer's last byte
_MAX_CONNECTIONS = 32
_MAX_HEAD = 16 << 10  # bytes of a request
_SWITCH_SECONDS = 0.001  # after which the thread that adds up metrics lets the event loop go on

_JSON = "application/json"
_PROBLEM = "application/problem+json"


class Health(Protocol):
    """What is probed; each raises ServiceError when the answer is no."""

    def check_alive(self) -> None:
        """The process is sound; one that is not must be restarted."""

    def check_ready(self) -> None:
        """Crops are accepted."""

    def check_started(self) -> None:
        """The model was loaded and warmed up."""


class _RefusedError(Exception):
    """A request that is not answered with what it asks for."""

    def __init__(self, status: HTTPStatus) -> None:
        super().__init__(status.phrase)
        self.status = status


class StatusServer:
    """The port, once `start`ed."""

    def __init__(self, health: Health, exposition: Exposition) -> None:
        self.port = 0
        self._exposition = exposition
        self._checks: dict[bytes, tuple[str, Callable[[], None]]] = {
            b"/livez": ("live", health.check_alive),
            b"/readyz": ("ready", health.check_ready),
            b"/startupz": ("started", health.check_started),
        }
        self._connections: dict[asyncio.Task[None], None] = {}  # in the order of their coming
        self._server: asyncio.Server | None = None

    async def start(self, host: str, port: int) -> None:
        """Listens; port 0 takes a free one. Raises OSError."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._server = await asyncio.start_server(self._connected, host, port, family=family, limit=_MAX_HEAD)
        self.port = self._server.sockets[0].getsockname()[1]
        sys.setswitchinterval(_SWITCH_SECONDS)

    def stop(self) -> None:
        """Listens no more, and drops the connections that there are."""
        if self._server is not None:
            self._server.close()
        for connection in self._connections:
            connection.cancel()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("asyncio serves a connection outside of a task")
        if len(self._connections) >= _MAX_CONNECTIONS:
            next(iter(self._connections)).cancel()
        self._connections[task] = None
        try:
            async with asyncio.timeout(_SECONDS):
                writer.write(await self._answered(reader))
                writer.close()
                await writer.wait_closed()
        except (TimeoutError, OSError, asyncio.CancelledError):
            pass  # too slow, gone, or one of too many
        finally:
            del self._connections[task]
            writer.transport.abort()

    async def _answered(self, reader: asyncio.StreamReader) -> bytes:
        request = _Request()
        try:
            await request.read(reader)
            status, content_type, body = await self._answer(request)
        except _RefusedError as refusal:
            status, content_type, body = refusal.status, "text/plain; charset=utf-8", str(refusal).encode()
        except Exception:
            log.exception("a request to the metrics port failed")
            status, content_type, body = HTTPStatus.INTERNAL_SERVER_ERROR, "text/plain; charset=utf-8", b""
        lines = [
            f"HTTP/1.1 {status.value} {status.phrase}",
            f"Content-Type: {content_type}",
            f"Content-Length: {len(body)}",
            "Cache-Control: no-store",
            "Connection: close",
        ]
        if status is HTTPStatus.METHOD_NOT_ALLOWED:
            lines.append("Allow: GET, HEAD")
        head = "\r\n".join([*lines, "", ""]).encode()
        return head if request.method == b"HEAD" else head + body

    async def _answer(self, request: _Request) -> tuple[HTTPStatus, str, bytes]:
        """Raises _RefusedError."""
        if request.path not in self._checks and request.path != b"/metrics":
            raise _RefusedError(HTTPStatus.NOT_FOUND)
        if request.method not in (b"GET", b"HEAD"):
            raise _RefusedError(HTTPStatus.METHOD_NOT_ALLOWED)
        if request.path == b"/metrics":
            body, content_type = await self._exposition(request.accept)
            return HTTPStatus.OK, content_type, body
        name, check = self._checks[request.path]
        try:
            check()
        except ServiceError as error:
            status = HTTPStatus(error.http_status)
            problem = {
                "title": error.title,
                "status": status.value,
                "code": error.code,
                "detail": error.detail,
            }
            return status, _PROBLEM, orjson.dumps(problem)
        return HTTPStatus.OK, _JSON, orjson.dumps({name: True})


class _Request:
    """The head of a request; its body, if it has one, is not read."""

    def __init__(self) -> None:
        self.method = b""
        self.path = b""
        self.accept = ""
        self._url = b""
        self._complete = False

    async def read(self, reader: asyncio.StreamReader) -> None:
        """Raises _RefusedError."""
        parser = httptools.HttpRequestParser(self)
        size = 0
        try:
            while not self._complete:
                data = await reader.read(_MAX_HEAD)
                size += len(data)
                if not data or size > _MAX_HEAD:
                    raise _RefusedError(HTTPStatus.BAD_REQUEST)
                with contextlib.suppress(httptools.HttpParserUpgrade):  # it is not granted
                    parser.feed_data(data)
            self.method = parser.get_method()
            self.path = httptools.parse_url(self._url).path or b""
        except (httptools.HttpParserError, httptools.HttpParserInvalidURLError):
            raise _RefusedError(HTTPStatus.BAD_REQUEST) from None

    def on_url(self, url: bytes) -> None:
        """As httptools calls it."""
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """As httptools calls it."""
        if name.lower() == b"accept":
            self.accept = (
                f"{self.accept},{value.decode('latin-1')}" if self.accept else value.decode("latin-1")
            )

    def on_headers_complete(self) -> None:
        """As httptools calls it."""
        self._complete = True
