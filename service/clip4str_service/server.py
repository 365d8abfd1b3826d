"""The composition root: puts the service together, starts it, and stops it in order.

Start: ports are taken (a taken one ends the start at once), REST and gRPC answer (alive, not ready), the
model is loaded and warmed up, ready. Stop, at SIGTERM or SIGINT: not ready, accepted crops are read to their
end, the front ends close, the model is given up.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
from collections.abc import Iterator
from typing import Any, NamedTuple, NoReturn

import uvicorn
from prometheus_client import start_http_server

from clip4str_service.engine import Engine
from clip4str_service.metrics import Metrics
from clip4str_service.rest import create_app
from clip4str_service.rpc import RpcServer
from clip4str_service.settings import Settings, flag, unknown_variables, variable
from clip4str_service.worker import ThreadWorker, Worker

log = logging.getLogger(__name__)

_BACKLOG = 2048  # connections that wait to be accepted
_CLOSE_SECONDS = 3  # for answers that are on the wire when the crops are done


class PortError(Exception):
    """A port cannot be taken; the message is one line that names its setting."""


class FrontEndError(Exception):
    """A front end ended while the service ran; the message is one line that says which, and why."""


class Ports(NamedTuple):
    """The ports that were taken."""

    http: int
    grpc: int
    metrics: int


class Server:
    """One service: an engine, its two front ends, its metrics. `ports` holds once started."""

    def __init__(self, settings: Settings, worker: Worker) -> None:
        metrics = Metrics()
        self.ports = Ports(0, 0, 0)
        self._settings = settings
        self._registry = metrics.registry
        self._engine = Engine(worker, settings, metrics)
        self._rpc = RpcServer(self._engine, settings, metrics)
        config = uvicorn.Config(
            create_app(self._engine, settings, metrics),
            http="httptools",
            lifespan="off",
            ws="none",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_graceful_shutdown=_CLOSE_SECONDS,
        )
        config.load()  # here, not in the task that serves: what cannot be imported ends the start
        self._http = _HttpServer(config)
        self._serving: asyncio.Task[None] | None = None
        self._closing = contextlib.AsyncExitStack()

    async def start(self) -> None:
        """Takes the ports and answers on them: alive, not ready. Raises PortError; `stop` it all the same."""
        host = self._settings.host
        with self._taking("metrics_port"):
            metrics, thread = start_http_server(self._settings.metrics_port, host, self._registry)
        self._closing.callback(thread.join)
        self._closing.callback(metrics.server_close)
        self._closing.callback(metrics.shutdown)
        with self._taking("http_port"):
            http = self._closing.enter_context(_bound(host, self._settings.http_port))
        with self._taking("grpc_port"):
            grpc_port = self._rpc.bind(host, self._settings.grpc_port)
        await self._rpc.start()
        self._closing.push_async_callback(self._rpc.stop, _CLOSE_SECONDS)
        self._serving = asyncio.create_task(self._http.serve([http]))
        self._closing.push_async_callback(self._stop_http, self._serving)
        self.ports = Ports(http.getsockname()[1], grpc_port, metrics.server_port)
        log.info("listening", extra={"host": host, "ports": self.ports._asdict()})

    async def load(self) -> None:
        """Loads the model; ready when it returns. Raises WorkerStartError."""
        await self._engine.start()
        await self._rpc.set_serving(True)
        model = self._engine.model
        fields = {
            "model": model.name,
            "revision": model.revision,
            "device": model.device,
            "dtype": model.dtype,
        }
        log.info("ready", extra=fields)

    async def watch(self) -> NoReturn:
        """Waits, and raises FrontEndError when REST ends before it is stopped. For a started server."""
        if self._serving is None:
            raise RuntimeError("the server is not started")
        await asyncio.wait([self._serving])
        reason = "it was cancelled" if self._serving.cancelled() else self._serving.exception()
        raise FrontEndError(f"REST ended by itself: {reason or 'no error was raised'}")

    async def stop(self) -> bool:
        """Drains and closes, whatever of it was started. False when accepted crops were given up."""
        await self._rpc.set_serving(False)
        drained = await self._engine.drain()
        await self._closing.aclose()
        await self._engine.stop()
        log.log(logging.INFO if drained else logging.ERROR, "stopped", extra={"drained": drained})
        return drained

    async def _stop_http(self, serving: asyncio.Task[None]) -> None:
        self._http.should_exit = True
        await asyncio.wait([serving])  # if it failed, `watch` says so

    @contextlib.contextmanager
    def _taking(self, field: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            where = f"{self._settings.host}:{getattr(self._settings, field)}"
            reason = error.strerror or str(error)
            raise PortError(
                f"{variable(field)} ({flag(field)}): cannot listen on {where}: {reason}"
            ) from error


def _bound(host: str, port: int) -> socket.socket:
    # asyncio turns Nagle's algorithm off only for sockets that name TCP as their protocol; with it on, each
    # answer, written as head and body, would wait for the client's delayed acknowledgement: 40 ms.
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, port))
        bound.listen(_BACKLOG)
    except OSError:
        bound.close()
        raise
    return bound


class _HttpServer(uvicorn.Server):
    """Leaves the signals to `serve`, which stops both front ends in order."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def serve(settings: Settings) -> bool:
    """Serves until SIGTERM or SIGINT. False when accepted crops were given up at the end.

    Raises:
        PortError, WorkerStartError: the service cannot start.
        FrontEndError: it cannot go on.
    """
    for name in unknown_variables(os.environ):
        log.warning("%s is not a setting", name)
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    server = Server(settings, _worker(settings))
    tasks: list[asyncio.Task[Any]] = []
    try:
        await server.start()
        loading = asyncio.create_task(server.load())
        ends = [asyncio.create_task(stopping.wait()), asyncio.create_task(server.watch())]
        tasks = [loading, *ends]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if loading.done():
            await loading
        done, _ = await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        for end in done:
            await end
    finally:
        for task in tasks:
            task.cancel()
        drained = await server.stop()
    return drained


def _worker(settings: Settings) -> Worker:
    device = None if settings.devices == "auto" else settings.devices
    return ThreadWorker(
        settings.model,
        device=device,
        precision=settings.precision,
        threads=settings.threads,
        max_batch=settings.max_batch,
    )
