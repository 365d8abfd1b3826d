"""What every gRPC call goes through: keys, limits, ids, metrics, its line in the log, errors as rich statuses."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextvars import ContextVar
from time import perf_counter
from typing import Any, TypeAlias

import grpc
from google.protobuf.message import DecodeError
from grpc_status import rpc_status

from clip4str_service.call_limits import Calls, Messages
from clip4str_service.engine import Caller
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
from clip4str_service.messages import status_of
from clip4str_service.metrics import OK, FrontEndMetrics
from clip4str_service.pb import recognition_pb2 as pb
from clip4str_service.settings import Settings
from clip4str_service.tracing import RequestTracing, current_span

log = logging.getLogger("clip4str_service.requests")

PROTOCOL = "grpc"
SERVICE = pb.DESCRIPTOR.services_by_name["RecognitionService"].full_name
OVERSIZE = 4 << 20
"""Bytes above `max_request_bytes` that gRPC lets through, so that a message some crops too large is refused by
our own rich error. What is larger still is not worth holding: gRPC refuses it, without details."""

_REQUEST_ID = "x-request-id"
_LEAST_SLOW = 4  # messages of calls that may come slowly at a time, however small the room for them
_OPEN_CALLS, _OPEN_SLOW = 128, 4  # to health and reflection, which anybody may call
_OPEN_SECONDS = 10.0  # for a message of theirs
_LAST_NEWS = 0.002
"""Seconds after a stream's last message, within which it is known whether its client was cut off."""

# The stubs of grpc know the handlers of its threaded server only; ours are coroutines.
Context: TypeAlias = Any
MethodHandler: TypeAlias = Any
Behaviour = Callable[[Any, Context], Awaitable[Any]]

current_caller: ContextVar[Caller] = ContextVar("current_caller")
"""Who made the call that is being answered."""


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
        most_slow = max(_LEAST_SLOW, settings.queue_bytes // (settings.max_request_bytes + OVERSIZE))
        self._gate = gate
        self._intake = intake
        self._calls = Calls("calls", settings.max_calls)
        self._streams = Calls("streams", settings.max_streams)
        self._messages = Messages(most_slow, settings.body_timeout_ms / 1000)
        self._open_calls = Calls("calls to health and reflection", _OPEN_CALLS)
        self._open_messages = Messages(_OPEN_SLOW, _OPEN_SECONDS)
        self._max_request_bytes = settings.max_request_bytes
        self._metrics = metrics
        self._tracing = tracing

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[MethodHandler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> MethodHandler | None:
        """Wraps all handlers.

        To gRPC all of them take streams: it would receive the one message of another before the handler is called.
        """
        handler = await continuation(handler_call_details)
        service, _, method = handler_call_details.method.lstrip("/").partition("/")
        if handler is None:
            return None
        if service != SERVICE:
            return _bounded(handler, self._open_calls, self._open_messages)
        around = self._unary if handler.stream_stream is None else self._streaming
        return _handler(around(method, handler), handler)

    def _unary(self, method: str, handler: MethodHandler) -> Behaviour:
        async def call(_: AsyncIterator[bytes], context: Context) -> Any:
            crops = 0

            async def answer() -> Any:
                nonlocal crops
                with self._calls.one(), self._intake.request() as holding:
                    message = await self._messages.next(context)
                    if message is None:
                        raise InvalidRequestError(Violation("body", "there is no message"))
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
                with self._streams.one():
                    await handler.stream_stream(requests(), context)
                await asyncio.sleep(_LAST_NEWS)  # cancels this call if its client was cut off

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
            current_caller.set(self._gate.caller(_values(context), span.traceparent))
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
            try:
                await context.abort(status.code, status.details, (*status.trailing_metadata, *trailers))
            except grpc.aio.InternalError:  # the client is gone
                raise asyncio.CancelledError from None
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


def _handler(call: Behaviour, handler: MethodHandler) -> MethodHandler:
    """A handler that receives its messages by itself, as they were sent, and answers as `handler` does."""
    make = (
        grpc.stream_stream_rpc_method_handler
        if handler.response_streaming
        else grpc.stream_unary_rpc_method_handler
    )
    return make(call, response_serializer=handler.response_serializer)


def _bounded(handler: MethodHandler, calls: Calls, messages: Messages) -> MethodHandler:
    """A handler of grpc's own services, within limits; who is beyond them is told so, without details."""

    async def requests(context: Context) -> AsyncIterator[Any]:
        while (message := await messages.next(context)) is not None:
            yield handler.request_deserializer(message)

    async def call(_: AsyncIterator[bytes], context: Context) -> Any:
        try:
            with calls.one():
                if handler.stream_stream is not None:
                    async for response in handler.stream_stream(requests(context), context):
                        await context.write(response)
                    return None
                request = await anext(requests(context), None)
                if request is None:
                    raise InvalidRequestError(Violation("body", "there is no message"))
                return await (handler.unary_unary or handler.unary_stream)(request, context)
        except ServiceError as error:
            await context.abort(grpc.StatusCode[error.grpc_status], error.detail)
        except DecodeError:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the message cannot be parsed")

    return _handler(call, handler)


def _as_service_error(error: Exception) -> ServiceError:
    if isinstance(error, ServiceError):
        return error
    if isinstance(error, grpc.aio.InternalError):  # of a write: there is nobody to take it
        return ClientGoneError("the client left")
    log.exception("a call failed")
    return InternalError("the fault is ours; the log has it by the request id")


def _text(value: str | bytes | None) -> str | None:
    return value if isinstance(value, str) else None


def _values(context: Context) -> Callable[[str], list[str]]:
    """All values of the call's metadata by their name, those that are text."""
    metadata: Sequence[tuple[str, str | bytes]] = context.invocation_metadata() or ()
    return lambda name: [value for key, value in metadata if key == name and isinstance(value, str)]
