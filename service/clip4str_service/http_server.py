"""The HTTP port: uvicorn's server, whose connections are guarded."""

from __future__ import annotations

import asyncio
import contextlib
import math
import socket
import ssl
from collections.abc import Callable, Iterator

import uvicorn
from starlette.types import ASGIApp

from clip4str_service.errors import ServiceError
from clip4str_service.http_connection import GuardedProtocol, HttpLimits
from clip4str_service.security_headers import security_headers


class HttpServer(uvicorn.Server):
    """Serves an application, by `serve` with sockets that listen, until `stop`. Signals are left to who runs it."""

    def __init__(
        self,
        app: ASGIApp,
        limits: HttpLimits,
        *,
        tls: ssl.SSLContext | None,
        refused: Callable[[ServiceError], None],
    ) -> None:
        """`refused` is told what was answered past the application."""
        config = uvicorn.Config(
            app,
            http=GuardedProtocol,
            lifespan="off",
            ws="none",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=math.ceil(limits.idle_timeout),
        )
        config.load()  # here, not in the task that serves: what cannot be imported ends the start
        super().__init__(config)
        self.limits = limits
        self.refused = refused
        self.lingering: set[GuardedProtocol] = set()
        self._tls = tls
        self.security_headers = security_headers(tls=tls is not None)

    @property
    def open_connections(self) -> int:
        """Connections that clients have now, those being refused aside."""
        return len(self.server_state.connections)

    def stop(self, grace: float) -> None:
        """Ends `serve`: no new requests; answers that are under way have `grace` seconds."""
        self.config.timeout_graceful_shutdown = math.ceil(grace)
        self.should_exit = True

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """As uvicorn calls it."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn calls it; its own would let a TLS handshake take a minute."""
        handshake = None if self._tls is None else self.limits.head_timeout
        goodbye = None if self._tls is None else self.limits.write_timeout
        loop = asyncio.get_running_loop()
        self.servers = [
            await loop.create_server(
                lambda: GuardedProtocol(self),
                sock=each,
                backlog=self.config.backlog,
                ssl=self._tls,
                ssl_handshake_timeout=handshake,
                ssl_shutdown_timeout=goodbye,
            )
            for each in sockets or ()
        ]
        self.started = True
