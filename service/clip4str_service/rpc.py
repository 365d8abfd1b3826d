"""gRPC: a thin servicer before the engine, and the server that it is in."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from clip4str_service.engine import Engine
from clip4str_service.gate import Gate
from clip4str_service.intake import Intake
from clip4str_service.messages import ids_of, model_response, options_of, recognize_response
from clip4str_service.metrics import FrontEndMetrics
from clip4str_service.pb import recognition_pb2 as pb
from clip4str_service.pb.recognition_pb2_grpc import (
    RecognitionServiceServicer,
    add_RecognitionServiceServicer_to_server,
)
from clip4str_service.rpc_calls import OVERSIZE, SERVICE, CallContext, Context, current_caller
from clip4str_service.settings import Settings
from clip4str_service.streams import CropStream
from clip4str_service.tracing import RequestTracing

_KEEPALIVE_MS = 20_000  # for a client to answer a ping, or it is taken for dead
_LEAST_PING_MS = 10_000  # between a client's pings
_IDLE_MS = 3_600_000  # without calls, after which a connection is closed
_NEVER = 2**31 - 1


class RpcServer:
    """The gRPC server of an engine: recognition, health and reflection."""

    def __init__(
        self,
        engine: Engine,
        gate: Gate,
        intake: Intake,
        settings: Settings,
        metrics: FrontEndMetrics,
        tracing: RequestTracing,
        credentials: grpc.ServerCredentials | None,
    ) -> None:
        self._health = health.aio.HealthServicer()
        self._credentials = credentials
        self._server = grpc.aio.server(
            interceptors=[CallContext(gate, intake, settings, metrics, tracing)],
            options=[
                ("grpc.max_receive_message_length", settings.max_request_bytes + OVERSIZE),
                ("grpc.max_send_message_length", -1),
                ("grpc.http2.bdp_probe", 0),  # it would let a stream that is held back send megabytes ahead
                ("grpc.so_reuseport", 1),  # front ends share the port; the supervisor holds it against others
                ("grpc.max_allowed_incoming_connections", settings.max_connections),
                ("grpc.max_concurrent_streams", settings.max_calls),
                ("grpc.keepalive_time_ms", settings.idle_timeout_ms),
                ("grpc.keepalive_timeout_ms", _KEEPALIVE_MS),
                ("grpc.http2.min_ping_interval_without_data_ms", _LEAST_PING_MS),
                ("grpc.keepalive_permit_without_calls", 1),
                ("grpc.max_connection_idle_ms", _IDLE_MS),
                ("grpc.max_connection_age_ms", settings.grpc_max_age_ms or _NEVER),
                ("grpc.max_connection_age_grace_ms", settings.default_timeout_ms),
            ],
        )
        servicer = RecognitionServicer(engine, intake, settings)
        add_RecognitionServiceServicer_to_server(servicer, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection(
            (SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME), self._server
        )

    def bind(self, host: str, port: int) -> int:
        """Takes the port, and returns it; 0 takes a free one. Raises OSError."""
        address = f"[{host}]" if ":" in host else host
        target = f"{address}:{port}"
        try:
            if self._credentials is None:
                return self._server.add_insecure_port(target)
            return self._server.add_secure_port(target, self._credentials)
        except RuntimeError as error:
            raise OSError(errno.EADDRINUSE, "it is in use, or not ours to take") from error

    async def start(self) -> None:
        """Begins to answer; health is NOT_SERVING."""
        await self.set_serving(False)
        await self._server.start()

    async def set_serving(self, serving: bool) -> None:
        """Tells health checks whether crops are accepted."""
        status = (
            health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        )
        for name in ("", SERVICE):
            await self._health.set(name, status)

    async def stop(self, grace: float) -> None:
        """Takes no more calls; those that run have `grace` seconds to end."""
        await self._server.stop(grace)


class RecognitionServicer(RecognitionServiceServicer):
    """The calls of recognition.proto."""

    def __init__(self, engine: Engine, intake: Intake, settings: Settings) -> None:
        self._engine = engine
        self._intake = intake
        self._settings = settings

    async def Recognize(  # noqa: N802 (the protocol's name)
        self, request: pb.RecognizeRequest, context: Context
    ) -> pb.RecognizeResponse:
        """Reads one or many crops."""
        self._engine.check_ready()
        options = options_of(request.options)
        ids = ids_of(request.crops)
        contents = [crop.content for crop in request.crops]
        answer = await self._engine.recognize(contents, options, current_caller.get(), _deadline(context))
        return recognize_response(ids, answer, options.detail)

    async def RecognizeStream(  # type: ignore[override]  # noqa: N802 (it writes by itself)
        self, request_iterator: AsyncIterator[pb.RecognizeStreamRequest], context: Context
    ) -> None:
        """Reads crops as they come, answers each when it is read."""
        self._engine.check_ready()
        await context.send_initial_metadata(
            ()
        )  # later, a write that is given up would stand in the way of errors
        with self._intake.request() as holding:
            stream = CropStream(
                self._engine, self._settings, current_caller.get(), _deadline(context), context.write, holding
            )
            await stream.run(request_iterator)

    async def GetModel(  # noqa: N802
        self,
        request: pb.GetModelRequest,  # noqa: ARG002 (it is empty)
        context: Context,  # noqa: ARG002 (grpc passes it)
    ) -> pb.GetModelResponse:
        """Describes the loaded model."""
        return model_response(self._engine.model)


def _deadline(context: Context) -> float | None:
    """The call's deadline as a time of the event loop."""
    remaining: float | None = context.time_remaining()
    return None if remaining is None else asyncio.get_running_loop().time() + remaining
