"""What every HTTP request goes through: ids, metrics, its line in the log, and the last resort for errors."""

from __future__ import annotations

import asyncio
import logging
from time import perf_counter

import orjson
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from clip4str_service.errors import DrainingError, InternalError, ServiceError
from clip4str_service.logs import current_ids, identify
from clip4str_service.metrics import OK, FrontEndMetrics
from clip4str_service.schemas import problem
from clip4str_service.tracing import NO_SPAN, RequestSpan, RequestTracing, current_span

log = logging.getLogger("clip4str_service.requests")

PROTOCOL = "rest"
OTHER = "other"
"""The path in metrics of requests to none of the documented endpoints."""

_REQUEST_ID = "X-Request-ID"
_API = "/v1/"


class RequestContext:
    """ASGI middleware around the application."""

    def __init__(self, app: ASGIApp, metrics: FrontEndMetrics, tracing: RequestTracing) -> None:
        self._app = app
        self._metrics = metrics
        self._tracing = tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on, and sees its answer leave."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = perf_counter()
        headers = Headers(scope=scope)
        traceparent = headers.get("traceparent")
        span = NO_SPAN
        if scope["path"].startswith(_API):  # not of probes, which come every few seconds
            span = self._tracing.http(scope["method"], scope["scheme"], traceparent)
        current_span.set(span)
        ids = identify(headers.get(_REQUEST_ID), span.traceparent or traceparent)
        current_ids.set(ids)
        state = scope.setdefault("state", {})
        answered = False

        async def send_and_count(message: Message) -> None:
            nonlocal answered
            if message["type"] == "http.response.start":
                answered = True
                MutableHeaders(scope=message)[_REQUEST_ID] = ids.request_id
                # Counted before the answer leaves, so that whoever has it finds it counted.
                self._count(scope, state.get("code", OK), message["status"], perf_counter() - started, span)
            await send(message)

        async def refuse(error: ServiceError) -> None:
            state["code"] = error.code
            await problem_response(error)(scope, receive, send_and_count)

        try:
            await self._app(scope, receive, send_and_count)
        except asyncio.CancelledError:
            # The server cancels what still runs when the time for closing is up, such as a slow upload. That
            # ends the task, and nobody waits for it: an answer serves the client better than a raised error.
            if answered:
                raise
            await refuse(DrainingError("the service stopped before the request was answered"))
        except Exception:
            log.exception("a request failed")
            if not answered:
                await refuse(InternalError("the fault is ours; the log has it by the request id"))

    def _count(self, scope: Scope, code: str, status: int, seconds: float, span: RequestSpan) -> None:
        refused: ServiceError | None = scope["state"].get(
            "refused"
        )  # past the application, while it read the body
        if refused is not None:
            code, status = refused.code, refused.http_status
        route: str | None = getattr(scope.get("route"), "path", None)
        path = route or OTHER
        span.end_http(route, status, code, scope["state"].get("crops", 0))
        self._metrics.request(PROTOCOL, path, code, seconds)
        log.log(
            logging.INFO if path.startswith(_API) else logging.DEBUG,
            "answered",
            extra={
                "protocol": PROTOCOL,
                "method": path,
                "status": status,
                "code": code,
                "crops": scope["state"].get("crops", 0),
                "duration_ms": round(seconds * 1000, 3),
            },
        )


def problem_response(error: ServiceError) -> Response:
    """An error of a whole request as its answer (RFC 9457)."""
    body = {**problem(error), "request_id": current_ids.get().request_id}
    response = Response(
        orjson.dumps(body), error.http_status, error.http_headers, media_type="application/problem+json"
    )
    if error.retry_after_ms is not None:
        response.headers["Retry-After"] = str(-(-error.retry_after_ms // 1000))  # whole seconds, rounded up
    return response
