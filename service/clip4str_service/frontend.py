"""The process that faces the world: REST and gRPC before one engine. No model, no torch.

The supervisor starts it (`python -m clip4str_service.frontend CHANNEL DESCRIPTORS`) and tells it what the service
can do; it ends when it is told to, after the answers that are on the wire, or when the supervisor is gone.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import socket
import sys
from typing import Any, NoReturn

from clip4str.memory import return_freed_memory
from clip4str_service.auth import KeysError
from clip4str_service.engine import Engine
from clip4str_service.gate import Gate
from clip4str_service.http_connection import HttpLimits
from clip4str_service.http_server import HttpServer
from clip4str_service.hub import Hub
from clip4str_service.intake import Intake
from clip4str_service.logs import configure_logging
from clip4str_service.metric_files import MetricFilesError, count_as
from clip4str_service.metrics import FrontEndMetrics
from clip4str_service.middleware import OTHER, PROTOCOL
from clip4str_service.rest import create_app
from clip4str_service.rpc import RpcServer
from clip4str_service.settings import Settings
from clip4str_service.tls import Tls, TlsError, tls_files
from clip4str_service.tracing import RequestTracing, Tracing
from clip4str_service.wire import Frontend, Phase

log = logging.getLogger(__name__)

_BEAT_SECONDS = 0.5


class FrontEndProcess:
    """REST and gRPC before an engine."""

    def __init__(self, hub: Hub, order: Frontend, settings: Settings) -> None:
        """Raises KeysError or TlsError."""
        files = tls_files(settings.tls_cert_file, settings.tls_key_file, settings.tls_client_ca_file)
        self._hub = hub
        self._gate = Gate(settings.api_keys_file)
        self._tls = None if files is None else Tls(files)
        self._metrics = FrontEndMetrics()
        self._tracing = Tracing(settings.otlp_endpoint, order.name)
        self._engine = Engine(hub, settings, self._metrics)
        self._http_socket = socket.socket(fileno=order.http_socket)
        self._grpc_address = settings.host, order.grpc_port
        intake = Intake(settings.queue_bytes)
        requests = RequestTracing(self._tracing.tracer, settings.otlp_sample_ratio)
        self._rpc = RpcServer(
            self._engine,
            self._gate,
            intake,
            settings,
            self._metrics,
            requests,
            None if self._tls is None else self._tls.grpc_credentials(),
        )
        self._http = HttpServer(
            create_app(self._engine, self._gate, intake, settings, self._metrics, requests),
            _http_limits(settings),
            tls=None if self._tls is None else self._tls.http_context(),
            refused=lambda error: self._metrics.request(PROTOCOL, OTHER, error.code, 0.0),
        )
        self._health: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Answers until the supervisor says otherwise. Raises OSError when a port cannot be listened on."""
        self._rpc.bind(*self._grpc_address)
        await self._rpc.start()
        self._hub.changed = self._tell_health
        self._hub.reload = self._reload
        self._tell_health()
        http = asyncio.create_task(self._http.serve([self._http_socket]))
        self._hub.listening()
        gc.collect()
        gc.freeze()  # what is there by now stays: to look through all of it again and again takes 30 ms each time
        ends: list[asyncio.Future[Any]] = [self._hub.over, http]
        while not any(end.done() for end in ends):
            self._hub.beat()
            self._metrics.connections(PROTOCOL, self._http.open_connections)
            await asyncio.wait(ends, timeout=_BEAT_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        if http.done():
            await http
            raise RuntimeError("REST ended by itself")
        grace = self._hub.over.result()
        self._http.stop(grace)
        await asyncio.gather(self._rpc.stop(grace), http)
        self._engine.stop()
        self._tracing.close()

    def _reload(self) -> None:
        self._gate.reload()
        if self._tls is not None:
            try:
                self._tls.reload()
            except TlsError as error:
                log.error("the certificates stay as they are", extra={"why": str(error)})

    def _tell_health(self) -> None:
        serving = self._hub.phase is Phase.READY
        self._health = asyncio.create_task(self._rpc.set_serving(serving))


def _http_limits(settings: Settings) -> HttpLimits:
    return HttpLimits(
        max_connections=settings.max_connections,
        head_timeout=settings.head_timeout_ms / 1000,
        idle_timeout=settings.idle_timeout_ms / 1000,
        body_timeout=settings.body_timeout_ms / 1000,
        write_timeout=settings.idle_timeout_ms / 1000,
    )


async def _serve(channel: int, descriptors: int) -> None:
    hub = Hub(socket.socket(fileno=descriptors))
    order = await hub.connect(socket.socket(fileno=channel))
    if order is None:
        return
    settings = Settings.model_validate_json(order.settings)
    configure_logging(settings.log_level, order.name)
    try:
        count_as(order.name)
        await FrontEndProcess(hub, order, settings).run()
    except (KeysError, TlsError, MetricFilesError) as error:
        hub.start_failed(str(error))
    except OSError as error:
        hub.start_failed(f"a front end cannot start: {error.strerror or error}")


def main() -> NoReturn:
    """The process: two inherited descriptors in, `FrontEndProcess.run`, out."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # meant for the service: the supervisor says what follows
    return_freed_memory()
    channel, descriptors = map(int, sys.argv[1:])
    asyncio.run(_serve(channel, descriptors))
    logging.shutdown()
    os._exit(0)  # a thread that is stuck in an image would hold up any other end, and nothing is left to lose


if __name__ == "__main__":
    main()
