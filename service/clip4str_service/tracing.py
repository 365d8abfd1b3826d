"""OpenTelemetry traces: off until there is an endpoint to send them to, and free for what is not sampled.

A front end has a span for each sampled request (`RequestTracing`) and tells the supervisor its traceparent; the
supervisor adds what it saw of it once a batch is over (`BatchTracing`):

    POST /v1/recognize, clip4str.v1.RecognitionService/Recognize         front end
    ├── decode                                                           front end
    ├── queue            linked to the batch                             supervisor
    └── batch            linked to every request that it has crops of    supervisor
        └── encode, visual, caption, cross_modal, refine, ...            supervisor, as the worker timed them

A batch with crops of several traced requests stands below the first of them. Times are those of CLOCK_MONOTONIC,
in seconds, as `loop.time()` gives them.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterable, Mapping
from contextvars import ContextVar
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

if TYPE_CHECKING:
    from clip4str_service.span_export import SpanExport

_PROPAGATOR = TraceContextTextMapPropagator()
_TRACEPARENT_LENGTH = 55  # of the one version that there is
_WHOLE = "inference"  # among the stages, the sum of all
_HTTP_METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"))
_RPC_FAULTS = frozenset(
    ("UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS")
)


def check_endpoint(endpoint: str) -> str:
    """An OTLP/HTTP endpoint as it is, such as http://collector:4318. Raises ValueError, one line, if it is none."""
    parts = urlsplit(endpoint)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise ValueError("name an OTLP endpoint by http:// or https://, host and port: http://collector:4318")
    if parts.username is not None:
        raise ValueError("a password has no place in an address: set OTEL_EXPORTER_OTLP_HEADERS instead")
    _ = parts.port  # raises ValueError for one that cannot be
    return endpoint


def remote_parent(traceparent: str | None) -> trace.SpanContext | None:
    """The caller's span, from a W3C traceparent; None without a valid one."""
    if traceparent is None or len(traceparent) != _TRACEPARENT_LENGTH:
        return None  # one of another length the propagator might log, under the ids that the task had before
    span = trace.get_current_span(_PROPAGATOR.extract({"traceparent": traceparent})).get_span_context()
    return span if span.is_valid else None


class Tracing:
    """The traces of one process. `tracer` is None when they are off."""

    def __init__(self, endpoint: str | None, process: str) -> None:
        """`endpoint`: see `check_endpoint`; None for none. `process` names this one: supervisor, frontend-0."""
        self.tracer: trace.Tracer | None = None
        self._export: SpanExport | None = None
        if endpoint is not None:
            from clip4str_service.span_export import SpanExport  # some ten MiB that only traces need

            self._export = SpanExport(endpoint, process)
            self.tracer = self._export.tracer

    def close(self) -> None:
        """Sends what is not sent yet; blocks for 1.5 seconds at most."""
        if self._export is not None:
            self._export.close()


class RequestSpan:
    """The span of a request; this one, of a request that is not sampled, holds nothing and costs nothing."""

    __slots__ = ()

    @property
    def traceparent(self) -> str:
        """What others need to add to the trace: a W3C traceparent, or empty."""
        return ""

    def record(self, name: str, started: float, ended: float, crops: int) -> None:
        """Adds a part of the work, done on so many crops."""

    def end_http(self, route: str | None, status: int, code: str, crops: int) -> None:
        """Ends the span of a request to REST; `route` is None where there is none, `code` ok or an error's."""

    def end_rpc(self, status: str, code: str, crops: int) -> None:
        """Ends the span of a call; `status` is the gRPC status' name."""


NO_SPAN = RequestSpan()

current_span: ContextVar[RequestSpan] = ContextVar("current_span", default=NO_SPAN)
"""The span of the request that the running task answers."""


class RequestTracing:
    """Decides which requests are traced, and opens their spans. For front ends."""

    def __init__(self, tracer: trace.Tracer | None, ratio: float) -> None:
        """`ratio`: 0 to 1, the part that is traced of the requests whose callers do not say whether they are."""
        self._tracer = tracer
        self._ratio = ratio

    def http(self, method: str, scheme: str, traceparent: str | None) -> RequestSpan:
        """The span of a request to REST, from now on."""
        known = method if method in _HTTP_METHODS else "_OTHER"
        attributes = {"http.request.method": known, "url.scheme": scheme}
        return self._span(known if known == method else "HTTP", attributes, traceparent)

    def rpc(self, method: str, traceparent: str | None) -> RequestSpan:
        """The span of a gRPC call, from now on; `method` with its service: package.Service/Method."""
        return self._span(method, {"rpc.system.name": "grpc", "rpc.method": method}, traceparent)

    def _span(self, name: str, attributes: Mapping[str, str], traceparent: str | None) -> RequestSpan:
        if self._tracer is None:
            return NO_SPAN
        parent = remote_parent(traceparent)
        sampled = random.random() < self._ratio if parent is None else parent.trace_flags.sampled  # noqa: S311
        return _RecordedSpan(self._tracer, name, attributes, parent) if sampled else NO_SPAN


class _RecordedSpan(RequestSpan):
    __slots__ = ("_below", "_name", "_offset", "_span", "_tracer")

    def __init__(
        self,
        tracer: trace.Tracer,
        name: str,
        attributes: Mapping[str, str],
        parent: trace.SpanContext | None,
    ) -> None:
        self._tracer = tracer
        self._name = name
        self._offset = _wall_offset()
        self._span = tracer.start_span(
            name,
            None if parent is None else _below(parent),
            trace.SpanKind.SERVER,
            attributes,
            start_time=_wall(time.monotonic(), self._offset),
        )
        self._below = trace.set_span_in_context(self._span)

    @property
    def traceparent(self) -> str:
        context = self._span.get_span_context()
        return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"

    def record(self, name: str, started: float, ended: float, crops: int) -> None:
        span = self._tracer.start_span(
            name,
            self._below,
            attributes={"clip4str.crops": crops},
            start_time=_wall(started, self._offset),
        )
        span.end(_wall(ended, self._offset))

    def end_http(self, route: str | None, status: int, code: str, crops: int) -> None:
        if route is not None:  # what is asked for elsewhere may be anything, a secret too
            self._span.update_name(f"{self._name} {route}")
            self._span.set_attributes({"http.route": route, "url.path": route})
        self._span.set_attribute("http.response.status_code", status)
        self._end(status >= 500, code, crops)

    def end_rpc(self, status: str, code: str, crops: int) -> None:
        self._span.set_attribute("rpc.response.status_code", status)
        self._end(status in _RPC_FAULTS, code, crops)

    def _end(self, fault: bool, code: str, crops: int) -> None:
        self._span.set_attributes({"clip4str.code": code, "clip4str.crops": crops})
        if fault:
            self._span.set_attribute("error.type", code)
            self._span.set_status(trace.StatusCode.ERROR)
        self._span.end(_wall(time.monotonic(), self._offset))


class TracedCrop(NamedTuple):
    """A crop of a traced request: the request's traceparent, and when it began to wait."""

    traceparent: str
    submitted_at: float


class BatchTracing:
    """Makes the spans of batches, each when it is over. For the supervisor."""

    def __init__(self, tracer: trace.Tracer | None) -> None:
        self._tracer = tracer

    def record(
        self,
        crops: Iterable[TracedCrop],
        *,
        sealed_at: float,
        finished_at: float,
        attributes: Mapping[str, str | int],
        stages: Mapping[str, float],
        failure: str = "",
    ) -> None:
        """Adds a batch to the traces of its requests.

        Args:
            crops: those of traced requests; without any, nothing is recorded.
            attributes: what is to be known of the batch, such as its size, the device, the model's revision.
            stages: seconds that each part of the work took, in order; none after a failure.
            failure: what went wrong with the batch as a whole, in a word.
        """
        waited: dict[str, list[float]] = {}
        for crop in crops:
            waited.setdefault(crop.traceparent, []).append(crop.submitted_at)
        requests = {name: context for name in waited if (context := remote_parent(name)) is not None}
        if self._tracer is None or not requests:
            return
        offset = _wall_offset()
        batch = self._tracer.start_span(
            "batch",
            _below(next(iter(requests.values()))),
            attributes={f"clip4str.{name}": value for name, value in attributes.items()},
            links=[trace.Link(context) for context in requests.values()],
            start_time=_wall(sealed_at, offset),
        )
        for name, context in requests.items():
            queue = self._tracer.start_span(
                "queue",
                _below(context),
                attributes={"clip4str.crops": len(waited[name])},
                links=[trace.Link(batch.get_span_context())],
                start_time=_wall(min(waited[name]), offset),
            )
            queue.end(_wall(sealed_at, offset))
        self._record_stages(trace.set_span_in_context(batch), sealed_at, stages, offset)
        if failure:
            batch.set_attribute("error.type", failure)
            batch.set_status(trace.StatusCode.ERROR)
        batch.end(_wall(finished_at, offset))

    def _record_stages(
        self, below: Context, started: float, stages: Mapping[str, float], offset: int
    ) -> None:
        """One after another from the start on: how long each took is measured, when it began is not."""
        if self._tracer is None:
            return
        for name, seconds in stages.items():
            if name != _WHOLE:
                stage = self._tracer.start_span(name, below, start_time=_wall(started, offset))
                started += seconds
                stage.end(_wall(started, offset))


def _below(parent: trace.SpanContext) -> Context:
    return trace.set_span_in_context(trace.NonRecordingSpan(parent))


def _wall_offset() -> int:
    """Nanoseconds from CLOCK_MONOTONIC to the wall's clock, which may jump: never kept for long."""
    return time.time_ns() - time.monotonic_ns()


def _wall(moment: float, offset: int) -> int:
    """A time of CLOCK_MONOTONIC, in seconds, as nanoseconds of the wall's clock."""
    return int(moment * 1e9) + offset
