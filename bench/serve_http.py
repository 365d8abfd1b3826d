"""The bench's HTTP client: ready requests over kept-alive connections, with as little work as can be.

It shares the machine with what it measures, so it knows of HTTP/1.1 no more than that takes.
"""

from __future__ import annotations

import asyncio
import re
from typing import NamedTuple, cast
from urllib.parse import urlsplit

_END = b"\r\n\r\n"
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)")


class BrokenAnswerError(Exception):
    """The server hung up before its answer ended, or did not say how long it is."""


class Response(NamedTuple):
    """An answer. `head`: its status line and header fields, in lower case."""

    status: int
    head: bytes
    body: bytes


class HttpClient:
    """Connections to one server, as many as there are requests at a time."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._host, self._port = parts.hostname or "", parts.port or 80
        self._idle: list[_Connection] = []

    async def send(self, request: bytes) -> Response:
        """The answer to a request, all its bytes. Raises OSError, BrokenAnswerError."""
        while self._idle and not self._idle[-1].open:
            self._idle.pop()
        if self._idle:
            connection = self._idle.pop()
        else:
            loop = asyncio.get_running_loop()
            _, connection = await loop.create_connection(_Connection, self._host, self._port)
        try:
            response = await connection.exchange(request)
        except BaseException:  # cancelled: what is still to come would answer nobody
            connection.close()
            raise
        self._idle.append(connection)
        return response

    def close(self) -> None:
        """Hang up."""
        for connection in self._idle:
            connection.close()


class _Connection(asyncio.Protocol):
    """One connection, one request at a time."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport, self.open = cast(asyncio.Transport, transport), True
        self._received = bytearray()
        self._answer: asyncio.Future[Response] | None = None

    async def exchange(self, request: bytes) -> Response:
        if not self.open:
            raise BrokenAnswerError("the server hung up")
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return await self._answer

    def close(self) -> None:
        self.open = False
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        self._received += data
        end = self._received.find(_END)
        if end < 0 or self._answer is None or self._answer.done():
            return
        head = bytes(self._received[:end]).lower()
        try:
            body = _body(head, bytes(self._received[end + len(_END) :]))
        except BrokenAnswerError as error:
            self._answer.set_exception(error)
            return
        if body is not None:
            self._received.clear()
            self.open = self.open and b"\r\nconnection: close" not in head
            self._answer.set_result(Response(int(head[9:12]), head, body))

    def connection_lost(self, exc: Exception | None) -> None:
        self.open = False
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(BrokenAnswerError(f"the server hung up: {exc or 'no answer came'}"))


def _body(head: bytes, rest: bytes) -> bytes | None:
    """What follows a head; None while there is more to come."""
    if length := _LENGTH.search(head):
        return rest if len(rest) >= int(length[1]) else None
    if b"\r\ntransfer-encoding: chunked" not in head:
        raise BrokenAnswerError(f"an answer without a length: {head[:80]!r}")
    body = b""
    while b"\r\n" in rest:
        size, _, rest = rest.partition(b"\r\n")
        if not int(size, 16):
            return body if rest else None
        body, rest = body + rest[: int(size, 16)], rest[int(size, 16) + 2 :]
    return None
