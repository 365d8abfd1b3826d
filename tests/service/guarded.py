"""A guarded HTTP server on a real socket, an application that tells what happened to it, and a plain client."""

import asyncio
import contextlib
import json
import socket
import ssl
from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

from starlette.types import Message, Receive, Scope, Send

from clip4str_service.errors import ServiceError
from clip4str_service.http_connection import HttpLimits
from clip4str_service.http_server import HttpServer
from clip4str_service.ports import listening_socket

PATIENT = 5.0
"""Seconds: a limit that no test is to meet, and how long a client waits for what must come."""

SHORT = 0.1
"""Seconds: the limit that a test meets."""

LONGER = 4 * SHORT
"""Seconds: a limit that a test keeps within, and goes on for longer."""

SOON = 1.0
"""Seconds: long after SHORT, long before PATIENT."""

HEAD = b"POST / HTTP/1.1\r\nHost: a\r\n"
GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


def post(path: str, length: int, extra: bytes = b"") -> bytes:
    return b"POST %s HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n%s\r\n" % (path.encode(), length, extra)


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def problem(self) -> dict[str, Any]:
        assert self.headers["content-type"] == "application/problem+json"
        parsed: dict[str, Any] = json.loads(self.body)
        return parsed


class App:
    """Answers with the body's length when the body is read; `/early` before, `/large` with 32 MB, `/wait` late."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        self.calls = 0
        self.scopes: list[Scope] = []
        self.disconnects = 0
        self.ended = 0
        self.gate = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.calls += 1
        self.scopes.append(scope)
        try:
            await self._answer(scope["path"], receive, send)
        finally:
            self.ended += 1

    async def _answer(self, path: str, receive: Receive, send: Send) -> None:
        if path == "/early":
            return await self._send(send, b"no")
        if path == "/slow-start":
            await self.gate.wait()
        length = 0
        more = True
        while more:
            message: Message = await receive()
            if message["type"] == "http.disconnect":
                self.disconnects += 1
                return None
            length += len(message["body"])
            more = message["more_body"]
        if path == "/wait":
            opened, left = asyncio.ensure_future(self.gate.wait()), asyncio.ensure_future(receive())
            await asyncio.wait([opened, left], return_when=asyncio.FIRST_COMPLETED)
            self.disconnects += left.done()
            opened.cancel()
            left.cancel()
        return await self._send(send, b"x" * (32 << 20) if path == "/large" else str(length).encode())

    async def _send(self, send: Send, body: bytes) -> None:
        headers = [(b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})


class Client:
    """One connection to a server."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def answer(self) -> Answer:
        async with asyncio.timeout(PATIENT):
            lines = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            pairs = (line.split(": ", 1) for line in lines[1:] if line)
            headers = {name.lower(): value for name, value in pairs}
            body = await self.reader.readexactly(int(headers.get("content-length", "0")))
        return Answer(int(lines[0].split()[1]), headers, body)

    async def closed(self) -> bytes:
        """What is left to read before the server closes the connection."""
        async with asyncio.timeout(PATIENT):
            try:
                return await self.reader.read()
            except ConnectionResetError:
                return b""

    async def leave(self) -> None:
        self.writer.close()
        with contextlib.suppress(OSError):
            await self.writer.wait_closed()


class Door:
    """A running server."""

    def __init__(self, server: HttpServer, app: App, port: int, refused: list[ServiceError]) -> None:
        self.server = server
        self.app = app
        self.port = port
        self._past_app = refused

    @property
    def refused(self) -> list[ServiceError]:
        """What was told past the application, or while it read a body."""
        states = (scope["state"] for scope in self.app.scopes)
        return [*self._past_app, *(state["refused"] for state in states if "refused" in state)]

    def forget(self) -> None:
        """All that happened so far."""
        self._past_app.clear()
        self.app.forget()

    @asynccontextmanager
    async def client(
        self, tls: ssl.SSLContext | None = None, receive_buffer: int = 0
    ) -> AsyncIterator[Client]:
        plain = socket.socket()
        if receive_buffer:
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        plain.setblocking(False)
        await asyncio.get_running_loop().sock_connect(plain, ("127.0.0.1", self.port))
        name = "localhost" if tls else None
        client = Client(*await asyncio.open_connection(sock=plain, ssl=tls, server_hostname=name))
        try:
            yield client
        finally:
            await client.leave()

    async def until_ended(self, calls: int) -> None:
        """Returns when the application is done with so many calls."""
        async with asyncio.timeout(PATIENT):
            while self.app.ended < calls:  # noqa: ASYNC110 (it raises no event)
                await asyncio.sleep(0.01)

    async def until_empty(self) -> None:
        """Returns when no connection is left; the test fails if that takes long."""
        async with asyncio.timeout(PATIENT):
            server = self.server
            while server.open_connections or server.lingering or server.server_state.tasks:  # noqa: ASYNC110 (likewise)
                await asyncio.sleep(0.01)


class Doors:
    """Servers that differ in their limits, each started when it is first asked for: to stop one takes a while."""

    def __init__(self) -> None:
        self._doors: dict[Hashable, tuple[Door, asyncio.Task[None]]] = {}

    async def open(self, tls: ssl.SSLContext | None = None, **changes: float) -> Door:
        """A server with patient limits but for `changes`, and an application that knows of no calls."""
        key = tls, *sorted(changes.items())
        if key not in self._doors:
            self._doors[key] = await _started(tls, changes)
        opened, _ = self._doors[key]
        opened.forget()
        return opened

    async def until_empty(self) -> None:
        """Returns when no server has a connection or a call."""
        for opened, _ in self._doors.values():
            await opened.until_empty()

    async def close(self) -> None:
        """Stops all."""
        for opened, _ in self._doors.values():
            opened.app.gate.set()
            opened.server.stop(1)
        await asyncio.gather(*(serving for _, serving in self._doors.values()))


async def _started(tls: ssl.SSLContext | None, changes: dict[str, Any]) -> tuple[Door, asyncio.Task[None]]:
    times = dict.fromkeys(("head_timeout", "idle_timeout", "body_timeout", "write_timeout"), PATIENT)
    limits = HttpLimits(**{"max_connections": 100, **times, **changes})
    app = App()
    refused: list[ServiceError] = []
    server = HttpServer(app, limits, tls=tls, refused=refused.append)
    listening = listening_socket("127.0.0.1", 0)
    serving = asyncio.create_task(server.serve([listening]))
    async with asyncio.timeout(PATIENT):
        while not server.started:  # noqa: ASYNC110 (it raises no event)
            await asyncio.sleep(0.001)
    return Door(server, app, listening.getsockname()[1], refused), serving
