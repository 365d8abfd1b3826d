"""gRPC: a thin servicer before the engine, and the one interceptor that turns errors into statuses."""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextvars import ContextVar
from time import perf_counter
from typing import Any, TypeAlias

import grpc
from google.protobuf.message import DecodeError
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from grpc_status import rpc_status

from clip4str_service.engine import Caller, Engine
from clip4str_service.errors import (
    ClientGoneError,
    DeadlineExceededError,
    InternalError,
    InvalidRequestError,
    PayloadTooLargeError,
    ServiceError,
    Violation,
)
from clip4str_service.gate import Gate
from clip4str_service.intake import Intake
from clip4str_service.logs import current_ids, identify
from clip4str_service.messages import ids_of, model_response, options_of, recognize_response, status_of
from clip4str_service.metrics import OK, FrontEndMetrics
from clip4str_service.pb import recognition_pb2 as pb
from clip4str_service.pb.recognition_pb2_grpc import (
    RecognitionServiceServicer,
    add_RecognitionServiceServicer_to_server,
)
from clip4str_service.settings import Settings
from clip4str_service.streams import CropStream
from clip4str_service.tracing import RequestTracing, current_span

log = logging.getLogger("clip4str_service.requests")

PROTOCOL = "grpc"
SERVICE = pb.DESCRIPTOR.services_by_name["RecognitionService"].full_name

_REQUEST_ID = "x-request-id"
_OVERSIZE = 4 << 20
"""Bytes above `max_request_bytes` that gRPC lets through, so that a message some crops too large is refused by
our own rich error. What is larger still is not worth holding: gRPC refuses it, without details."""

_KEEPALIVE_MS = 20_000  # for a client to answer a ping, or it is taken for dead
_LEAST_PING_MS = 10_000  # between a client's pings
_IDLE_MS = 3_600_000  # without calls, after which a connection is closed
_NEVER = 2**31 - 1

# The stubs of grpc know the handlers of its threaded server only; ours are coroutines.
Context: TypeAlias = Any
MethodHandler: TypeAlias = Any
Behaviour = Callable[[Any, Context], Awaitable[Any]]

_caller: ContextVar[Caller] = ContextVar("caller")
"""Who made the call that is being answered."""


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
            maximum_concurrent_rpcs=settings.max_calls,
            options=[
                ("grpc.max_receive_message_length", settings.max_request_bytes + _OVERSIZE),
                ("grpc.max_send_message_length", -1),
                ("grpc.http2.bdp_probe", 0),  # it would let a stream that is held back send megabytes ahead
                ("grpc.so_reuseport", 1),  # front ends share the port; the supervisor holds it against others
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
        answer = await self._engine.recognize(contents, options, _caller.get(), _deadline(context))
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
                self._engine, self._settings, _caller.get(), _deadline(context), context.write, holding
            )
            await stream.run(request_iterator)

    async def GetModel(  # noqa: N802
        self,
        request: pb.GetModelRequest,  # noqa: ARG002 (it is empty)
        context: Context,  # noqa: ARG002 (grpc passes it)
    ) -> pb.GetModelResponse:
        """Describes the loaded model."""
        return model_response(self._engine.model)


class CallContext(grpc.aio.ServerInterceptor):
    """Around each call of ours: who calls, ids, metrics, span, its line in the log, its error as a rich status.

    A message is looked at only when its sender may call.
    """

    def __init__(
        self,
        gate: Gate,
        intake: Intake,
        settings: Settings,
        metrics: FrontEndMetrics,
        tracing: RequestTracing,
    ) -> None:
        self._gate = gate
        self._intake = intake
        self._max_request_bytes = settings.max_request_bytes
        self._metrics = metrics
        self._tracing = tracing

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[MethodHandler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> MethodHandler | None:
        """Wraps the handlers of the recognition service; health and reflection stay as they are."""
        handler = await continuation(handler_call_details)
        service, _, method = handler_call_details.method.lstrip("/").partition("/")
        if service != SERVICE or handler is None:
            return handler
        serializer = handler.response_serializer
        if handler.stream_stream is not None:
            streaming = self._streaming(method, handler)
            return grpc.stream_stream_rpc_method_handler(streaming, response_serializer=serializer)
        return grpc.unary_unary_rpc_method_handler(
            self._unary(method, handler), response_serializer=serializer
        )

    def _unary(self, method: str, handler: MethodHandler) -> Behaviour:
        async def call(message: bytes, context: Context) -> Any:
            crops = 0

            async def answer() -> Any:
                nonlocal crops
                with self._intake.request() as holding:
                    holding.take(len(message))
                    request = self._parsed(handler, message)
                    crops = len(getattr(request, "crops", ()))
                    return await handler.unary_unary(request, context)

            return await self._around(method, context, answer, lambda: crops)

        return call

    def _streaming(self, method: str, handler: MethodHandler) -> Behaviour:
        async def call(messages: AsyncIterator[bytes], context: Context) -> Any:
            crops = 0

            async def requests() -> AsyncIterator[Any]:
                nonlocal crops
                async for message in messages:
                    request = self._parsed(handler, message)
                    crops += len(request.crops)
                    yield request

            async def answer() -> Any:
                return await handler.stream_stream(requests(), context)

            return await self._around(method, context, answer, lambda: crops)

        return call

    async def _around(
        self,
        method: str,
        context: Context,
        answer: Callable[[], Awaitable[Any]],
        crops: Callable[[], int],
    ) -> Any:
        started = perf_counter()
        metadata = dict(context.invocation_metadata() or ())
        traceparent = _text(metadata.get("traceparent"))
        span = self._tracing.rpc(f"{SERVICE}/{method}", traceparent)
        current_span.set(span)
        ids = identify(_text(metadata.get(_REQUEST_ID)), span.traceparent or traceparent)
        current_ids.set(ids)
        trailers: tuple[tuple[str, str | bytes], ...] = ((_REQUEST_ID, ids.request_id),)

        def over(code: str, status: str) -> None:
            """Counted before the answer leaves, so that whoever has it finds it counted."""
            seconds = perf_counter() - started
            self._metrics.request(PROTOCOL, method, code, seconds)
            span.end_rpc(status, code, crops())
            log.info(
                "answered",
                extra={
                    "protocol": PROTOCOL,
                    "method": method,
                    "code": code,
                    "crops": crops(),
                    "duration_ms": round(seconds * 1000, 3),
                },
            )

        try:
            _caller.set(self._gate.caller(_values(context), span.traceparent))
            response = await answer()
        except asyncio.CancelledError:
            remaining = context.time_remaining()
            late = remaining is not None and remaining <= 0
            gone = DeadlineExceededError if late else ClientGoneError
            over(gone.code, gone.grpc_status)
            raise
        except Exception as error:  # noqa: BLE001 (the last resort; what is not ours to tell is logged)
            failure = _as_service_error(error)
            over(failure.code, failure.grpc_status)
            status = rpc_status.to_status(status_of(failure, ids.request_id))
            await context.abort(status.code, status.details, (*status.trailing_metadata, *trailers))
        else:
            over(OK, "OK")
            context.set_trailing_metadata(trailers)
            return response

    def _parsed(self, handler: MethodHandler, message: bytes) -> Any:
        limit = self._max_request_bytes
        if len(message) > limit:
            raise PayloadTooLargeError(
                f"the message has {len(message)} bytes; at most {limit} ({limit / 2**20:g} MiB) are read"
            )
        try:
            return handler.request_deserializer(message)
        except DecodeError:
            raise InvalidRequestError(Violation("body", "the message cannot be parsed")) from None


def _as_service_error(error: Exception) -> ServiceError:
    if isinstance(error, ServiceError):
        return error
    log.exception("a call failed")
    return InternalError("the fault is ours; the log has it by the request id")


def _text(value: str | bytes | None) -> str | None:
    return value if isinstance(value, str) else None


def _values(context: Context) -> Callable[[str], list[str]]:
    """All values of the call's metadata by their name, those that are text."""
    metadata: Sequence[tuple[str, str | bytes]] = context.invocation_metadata() or ()
    return lambda name: [value for key, value in metadata if key == name and isinstance(value, str)]


def _deadline(context: Context) -> float | None:
    """The call's deadline as a time of the event loop."""
    remaining: float | None = context.time_remaining()
    return None if remaining is None else asyncio.get_running_loop().time() + remaining
