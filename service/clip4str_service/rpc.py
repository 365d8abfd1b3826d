"""gRPC: a thin servicer before the engine, and the one interceptor that turns errors into statuses."""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import Awaitable, Callable
from time import perf_counter
from typing import Any, TypeAlias

import grpc
from google.protobuf.message import DecodeError
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from grpc_status import rpc_status

from clip4str_service.engine import Engine
from clip4str_service.errors import (
    ClientGoneError,
    DeadlineExceededError,
    InternalError,
    InvalidRequestError,
    PayloadTooLargeError,
    ServiceError,
    Violation,
)
from clip4str_service.logs import current_ids, identify
from clip4str_service.messages import ids_of, model_response, options_of, recognize_response, status_of
from clip4str_service.metrics import OK, Metrics
from clip4str_service.pb import recognition_pb2 as pb
from clip4str_service.pb.recognition_pb2_grpc import (
    RecognitionServiceServicer,
    add_RecognitionServiceServicer_to_server,
)
from clip4str_service.settings import Settings

log = logging.getLogger("clip4str_service.requests")

PROTOCOL = "grpc"
SERVICE = pb.DESCRIPTOR.services_by_name["RecognitionService"].full_name

_REQUEST_ID = "x-request-id"
_OVERSIZE = 4 << 20
"""Bytes above `max_request_bytes` that gRPC lets through, so that a message some crops too large is refused by
our own rich error. What is larger still is not worth holding: gRPC refuses it, without details."""

# The stubs of grpc know the handlers of its threaded server only; ours are coroutines.
Context: TypeAlias = Any
MethodHandler: TypeAlias = Any
Behaviour = Callable[[bytes, Context], Awaitable[Any]]


class RpcServer:
    """The gRPC server of an engine: recognition, health and reflection."""

    def __init__(self, engine: Engine, settings: Settings, metrics: Metrics) -> None:
        self._health = health.aio.HealthServicer()
        self._server = grpc.aio.server(
            interceptors=[ErrorInterceptor(metrics, settings.max_request_bytes)],
            options=[
                ("grpc.max_receive_message_length", settings.max_request_bytes + _OVERSIZE),
                ("grpc.max_send_message_length", -1),
                ("grpc.so_reuseport", 0),  # else a second service would share the port unseen
            ],
        )
        add_RecognitionServiceServicer_to_server(RecognitionServicer(engine), self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection(
            (SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME), self._server
        )

    def bind(self, host: str, port: int) -> int:
        """Takes the port, and returns it; 0 takes a free one. Raises OSError."""
        address = f"[{host}]" if ":" in host else host
        try:
            return self._server.add_insecure_port(f"{address}:{port}")
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

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def Recognize(  # noqa: N802 (the protocol's name)
        self, request: pb.RecognizeRequest, context: Context
    ) -> pb.RecognizeResponse:
        """Reads one or many crops."""
        self._engine.check_ready()
        remaining: float | None = context.time_remaining()
        deadline = None if remaining is None else asyncio.get_running_loop().time() + remaining
        options = options_of(request.options)
        ids = ids_of(request.crops)
        answer = await self._engine.recognize([crop.content for crop in request.crops], options, deadline)
        return recognize_response(ids, answer, options.detail)

    async def GetModel(  # noqa: N802
        self,
        request: pb.GetModelRequest,  # noqa: ARG002 (it is empty)
        context: Context,  # noqa: ARG002
    ) -> pb.GetModelResponse:
        """Describes the loaded model."""
        return model_response(self._engine.model)


class ErrorInterceptor(grpc.aio.ServerInterceptor):
    """Around each call of ours: its ids, its metrics, its line in the log, and its error as a rich status."""

    def __init__(self, metrics: Metrics, max_request_bytes: int) -> None:
        self._metrics = metrics
        self._max_request_bytes = max_request_bytes

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
        return grpc.unary_unary_rpc_method_handler(
            self._wrapped(method, handler), response_serializer=handler.response_serializer
        )

    def _wrapped(self, method: str, handler: MethodHandler) -> Behaviour:
        async def call(message: bytes, context: Context) -> Any:
            started = perf_counter()
            metadata = dict(context.invocation_metadata() or ())
            ids = identify(_text(metadata.get(_REQUEST_ID)), _text(metadata.get("traceparent")))
            current_ids.set(ids)
            trailers: tuple[tuple[str, str | bytes], ...] = ((_REQUEST_ID, ids.request_id),)
            crops = 0
            try:
                self._check_size(message)
                request = _parsed(handler, message)
                crops = len(getattr(request, "crops", ()))
                response = await handler.unary_unary(request, context)
            except asyncio.CancelledError:
                remaining = context.time_remaining()
                late = remaining is not None and remaining <= 0
                self._count(
                    method, DeadlineExceededError.code if late else ClientGoneError.code, crops, started
                )
                raise
            except Exception as error:  # noqa: BLE001 (the last resort; what is not ours to tell is logged)
                failure = _as_service_error(error)
                self._count(method, failure.code, crops, started)
                status = rpc_status.to_status(status_of(failure, ids.request_id))
                await context.abort(status.code, status.details, (*status.trailing_metadata, *trailers))
            else:
                self._count(method, OK, crops, started)
                context.set_trailing_metadata(trailers)
                return response

        return call

    def _check_size(self, message: bytes) -> None:
        limit = self._max_request_bytes
        if len(message) > limit:
            raise PayloadTooLargeError(
                f"the message has {len(message)} bytes; at most {limit} ({limit / 2**20:g} MiB) are read"
            )

    def _count(self, method: str, code: str, crops: int, started: float) -> None:
        """Counted before the answer leaves, so that whoever has it finds it counted."""
        seconds = perf_counter() - started
        self._metrics.request(PROTOCOL, method, code, seconds)
        log.info(
            "answered",
            extra={
                "protocol": PROTOCOL,
                "method": method,
                "code": code,
                "crops": crops,
                "duration_ms": round(seconds * 1000, 3),
            },
        )


def _as_service_error(error: Exception) -> ServiceError:
    if isinstance(error, ServiceError):
        return error
    log.exception("a call failed")
    return InternalError("the fault is ours; the log has it by the request id")


def _text(value: str | bytes | None) -> str | None:
    return value if isinstance(value, str) else None


def _parsed(handler: MethodHandler, message: bytes) -> Any:
    try:
        return handler.request_deserializer(message)
    except DecodeError:
        raise InvalidRequestError(Violation("body", "the message cannot be parsed")) from None
