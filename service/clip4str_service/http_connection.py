"""One HTTP connection under abuse: uvicorn's protocol, with a limit to everything that a client may hold.

A connection is idle between requests, then comes a head, then a body, and for each there is a time. A client at
fault is told so where no answer is under way, and its connection is closed; whatever it had asked before that is
answered. Of uvicorn's inside this relies on its protocol's callbacks, and on the fields `cycle`, `flow`, `parser` and
`headers`.
"""

from __future__ import annotations

import asyncio
import contextvars
import fcntl
import logging
import math
import socket
import sys
import termios
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from http import HTTPStatus
from typing import Protocol

import httptools
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from clip4str_service.errors import InvalidRequestError, OverloadedError, ServiceError, Violation
from clip4str_service.joined_writes import JoinedWrites
from clip4str_service.logs import current_ids, identify
from clip4str_service.middleware import problem_response

log = logging.getLogger(__name__)

MAX_HEAD_BYTES = 32 << 10
"""Of a request's line and headers together; also of what comes between two pieces of a body, such as trailers."""

_UPGRADE = b"upgrade"
_LINGER = 1.0  # seconds; closed at once, the connection could be reset before the client has read why
_MAX_LINGERING = 64  # of the connections that were one too many; more are closed without a word
_SAMPLES = 4  # looks at a connection within the shortest of its limits


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpLimits:
    """What one process grants its clients. Times in seconds.

    A request's head has `head_timeout` from its first byte on, and so has a TLS handshake; the first byte has
    `idle_timeout` from the connection or the last answer on. A body may pause for `idle_timeout` and take
    `body_timeout`. A client must read something of its answer every `write_timeout`.
    """

    max_connections: int
    head_timeout: float
    idle_timeout: float
    body_timeout: float
    write_timeout: float


class Host(Protocol):
    """The server of connections. `refused` is told what was answered past the application."""

    config: uvicorn.Config
    server_state: ServerState
    limits: HttpLimits
    refused: Callable[[ServiceError], None]
    lingering: set[GuardedProtocol]
    security_headers: dict[str, str]


class _Phase(Enum):
    IDLE = auto()  # between requests, or while one that came whole is answered
    HEAD = auto()
    BODY = auto()
    LEAVING = auto()  # told what it did wrong; nothing more is taken from it


class GuardedProtocol(HttpToolsProtocol):
    """One connection."""

    def __init__(self, server: Host) -> None:
        super().__init__(server.config, server.server_state, {})
        self._server = server
        limits = server.limits
        self._limits = limits
        shortest = min(limits.head_timeout, limits.idle_timeout, limits.body_timeout, limits.write_timeout)
        self._tick = min(shortest / _SAMPLES, _LINGER)  # how long it may be until the next look
        self._phase = _Phase.IDLE
        self._since = 0.0  # when the phase began
        self._heard_at = 0.0
        self._held = False
        self._deaf = False
        self._unsent = 0
        self._unsent_since = 0.0
        self._overhead = 0  # bytes that have come since the last that were of use
        self._useful = False
        # Of the request whose head is coming; a first piece of its body may be with it.
        self._head = bytearray()
        self._upgrade_offered = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        """A client is there."""
        super().connection_made(JoinedWrites(transport))
        self._socket: socket.socket = transport.get_extra_info("socket")
        self._enter(_Phase.IDLE)
        self._timer = self.loop.call_later(self._tick, self._look)
        if len(self.connections) > self._limits.max_connections:
            self._turn_away()

    def connection_lost(self, exc: Exception | None) -> None:
        """It is gone."""
        self._timer.cancel()
        self._server.lingering.discard(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Bytes, for the parser; in pieces that it cannot take more than MAX_HEAD_BYTES of without our notice."""
        self._heard_at = self.loop.time()
        start = 0
        while start < len(data) and not self._deaf:
            piece = data[start : start + MAX_HEAD_BYTES - self._overhead]
            start += len(piece)
            self._useful = False
            if self._phase is not _Phase.BODY:
                self._head += piece
            super().data_received(piece)
            if self._upgrade_offered:
                self._parse_without_upgrade()
            if self._phase is not _Phase.HEAD:
                self._head.clear()
            self._overhead = 0 if self._useful else self._overhead + len(piece)
            if self._overhead == MAX_HEAD_BYTES and not self._deaf:
                place = "trailers" if self._phase is _Phase.BODY else "head"
                self._refuse(_invalid(place, f"must be shorter than {MAX_HEAD_BYTES} bytes"))

    def on_message_begin(self) -> None:
        """The parser met the first byte of a head."""
        if not self._answered():
            # Hardly a client asks before it is answered, and uvicorn would hold as much as is asked. It must ask
            # again, on another connection, as HTTP lets it expect.
            raise BufferError("a request in advance")  # ends the parsing
        super().on_message_begin()
        self._enter(_Phase.HEAD)

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header; trailers come here as well, and nobody wants them."""
        if self._phase is _Phase.HEAD:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The head is whole."""
        if self.parser.should_upgrade() and any(name == _UPGRADE for name, _ in self.headers):
            # HTTP lets us go on as if nothing had been offered; the parser would take the body for another protocol.
            self._upgrade_offered = bool(self._head)
            raise BufferError("an offer of another protocol")  # ends the parsing
        super().on_headers_complete()
        self._useful = True
        self._enter(_Phase.BODY)

    def on_body(self, body: bytes) -> None:
        """A piece of the body."""
        super().on_body(body)
        self._useful = True

    def on_message_complete(self) -> None:
        """The request is whole."""
        super().on_message_complete()
        self._useful = True
        self._enter(_Phase.IDLE)

    def on_response_complete(self) -> None:
        """An answer is written."""
        super().on_response_complete()
        now = self.loop.time()
        # The last bytes of each answer are in the kernel until the next request comes: samples of one size tell
        # nothing then. Who asks and never reads is found out when the buffers are full, and no answer is complete.
        self._unsent_since = now
        if self._phase is _Phase.IDLE:
            self._since = now

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 (uvicorn's words)
        """The parser failed."""
        if not self._upgrade_offered:
            self._refuse(_invalid("request", "cannot be parsed as HTTP/1.1"))

    def _parse_without_upgrade(self) -> None:
        """Begins anew with the request that offered another protocol."""
        head, end, body = bytes(self._head).lstrip(b"\r\n").partition(b"\r\n\r\n")
        lines = [line for line in head.split(b"\r\n") if line.partition(b":")[0].lower() != _UPGRADE]
        self._head.clear()
        self._upgrade_offered = False
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn's own
        super().data_received(b"\r\n".join(lines) + end + body)

    def _enter(self, phase: _Phase) -> None:
        self._phase = phase
        self._since = self._heard_at = self.loop.time()

    def _look(self) -> None:
        """Ends what takes too long, and looks again before anything else can."""
        now = self.loop.time()
        if self._stuck(now):
            self.transport.abort()
            return
        held_before, self._held = self._held, self._held_up()
        if self._held or held_before:
            self._since = self._heard_at = now
        if now >= self._due():
            self._overdue()
        self._timer = self.loop.call_at(min(self._due(), now + self._tick), self._look)

    def _stuck(self, now: float) -> bool:
        """Whether the client has taken nothing of what is there for it for long, as far as samples tell."""
        unsent = _unsent(self._socket)
        if not (
            self.transport.is_closing() and self.scheme == "https"
        ):  # then it may have forgotten its buffer
            unsent += self.transport.get_write_buffer_size()
        if unsent != self._unsent or not unsent:
            self._unsent, self._unsent_since = unsent, now
        return now - self._unsent_since >= self._limits.write_timeout

    def _held_up(self) -> bool:
        """Whether a body is to come, and it is not the client's fault that nothing does."""
        return self._phase is _Phase.BODY and (self.flow.read_paused or self.cycle.waiting_for_100_continue)

    def _due(self) -> float:
        """When the phase has lasted too long."""
        limits = self._limits
        if self.transport.is_closing():
            return math.inf
        if self._phase is _Phase.IDLE:
            return self._since + limits.idle_timeout if self._answered() else math.inf
        if self._phase is _Phase.HEAD:
            return self._since + limits.head_timeout
        if self._phase is _Phase.BODY:
            return min(self._since + limits.body_timeout, self._heard_at + limits.idle_timeout)
        return self._since + _LINGER

    def _overdue(self) -> None:
        limits = self._limits
        if self._phase is _Phase.HEAD:
            self._refuse(_invalid("head", f"must arrive within {limits.head_timeout:g} s of its first byte"))
        elif self._phase is _Phase.BODY:
            pace = f"within {limits.body_timeout:g} s, with no pause of {limits.idle_timeout:g} s"
            self._refuse(_invalid("body", f"must arrive {pace}"))
        else:
            self.transport.close()

    def _answered(self) -> bool:
        # The first is not in uvicorn's annotation.
        return self.cycle is None or self.cycle.response_complete  # type: ignore[redundant-expr]

    def _turn_away(self) -> None:
        self.connections.discard(self)  # it takes nobody's place
        lingering = self._server.lingering
        if len(lingering) < _MAX_LINGERING:
            lingering.add(self)
            self._refuse(OverloadedError(f"all {self._limits.max_connections} connections are taken"))
        else:
            self.transport.abort()

    def _refuse(self, error: ServiceError) -> None:
        """Takes nothing more from the client, and says why where that cannot be taken for another answer."""
        self._deaf = True
        in_body = self._phase is _Phase.BODY
        if not in_body and not self._answered():
            self.cycle.keep_alive = False  # what it asked before is answered, and that is the last
        elif in_body and self.cycle.response_started:
            self.transport.close()
        else:
            if in_body:  # as if the client had left
                self.cycle.disconnected = True
                self.cycle.waiting_for_100_continue = False  # lest that be said after the last word
                self.cycle.message_event.set()
                # So that the request is counted, once, as what it was.
                self.cycle.scope["state"]["refused"] = error
            else:
                self._server.refused(error)
            contextvars.copy_context().run(self._tell, error)
            self.flow.resume_reading()  # the client's end is to be seen
            self._enter(_Phase.LEAVING)

    def _tell(self, error: ServiceError) -> None:
        """Writes an answer past the application. In a context of its own, which the ids are set in."""
        current_ids.set(identify(None, None))
        response = problem_response(error)
        headers = {
            "Connection": "close",
            "X-Request-ID": current_ids.get().request_id,
            **self._server.security_headers,
        }
        lines = [
            b"HTTP/1.1 %d %s" % (response.status_code, HTTPStatus(response.status_code).phrase.encode()),
            *(b"%s: %s" % header for header in self.server_state.default_headers),
            *(b"%s: %s" % header for header in response.raw_headers),
            *(f"{name}: {value}".encode() for name, value in headers.items()),
        ]
        self.transport.write(b"\r\n".join(lines) + b"\r\n\r\n" + bytes(response.body))
        if self.transport.can_write_eof():
            self.transport.write_eof()
        host = self.client[0] if self.client else None
        log.info("refused", extra={"code": error.code, "why": error.detail, "client": host})


def _unsent(connection: socket.socket) -> int:
    """Bytes of answers in the kernel, which holds megabytes: without them a slow client would seem to stand still."""
    try:
        return int.from_bytes(fcntl.ioctl(connection.fileno(), termios.TIOCOUTQ, bytes(4)), sys.byteorder)
    except (OSError, ValueError):  # closed by now
        return 0


def _invalid(field: str, description: str) -> InvalidRequestError:
    return InvalidRequestError(Violation(field, description))
