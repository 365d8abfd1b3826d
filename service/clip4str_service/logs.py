"""JSON lines on standard output, each with the ids of the request it belongs to. Crops are never logged."""

from __future__ import annotations

import logging
import logging.config
import re
from contextvars import ContextVar
from typing import NamedTuple
from uuid import uuid4

from opentelemetry import trace
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

_REQUEST_ID = re.compile(r"[A-Za-z0-9._~:/+=@-]{1,128}")
_TRACEPARENT_LENGTH = 55  # of the one version that there is
_PROPAGATOR = TraceContextTextMapPropagator()


class RequestIds(NamedTuple):
    """What a request is known by: its own id, and the trace it is part of, 32 hex digits or empty."""

    request_id: str
    trace_id: str


current_ids: ContextVar[RequestIds] = ContextVar("current_ids")
"""The ids of the request that the running task answers."""


def identify(request_id: str | None, traceparent: str | None) -> RequestIds:
    """The ids of a request, from what the caller sent of them.

    A request id of 1 to 128 letters, digits and ._~:/+=@- is taken over; without a sane one the request gets
    a new id. The trace id is that of a valid W3C traceparent.
    """
    if request_id is None or not _REQUEST_ID.fullmatch(request_id):
        request_id = uuid4().hex
    trace_id = ""
    if traceparent is not None and len(traceparent) == _TRACEPARENT_LENGTH:
        # One of another length the propagator might log, under the ids that the task had before.
        span = trace.get_current_span(_PROPAGATOR.extract({"traceparent": traceparent})).get_span_context()
        trace_id = trace.format_trace_id(span.trace_id) if span.is_valid else ""
    return RequestIds(request_id, trace_id)


class _WithIds(logging.Filter):
    """Adds the ids of the current request to each record."""

    def filter(self, record: logging.LogRecord) -> bool:
        ids = current_ids.get(None)
        if ids is not None:
            record.request_id = ids.request_id
            if ids.trace_id:
                record.trace_id = ids.trace_id
        return True


def configure_logging(level: str) -> None:
    """Sends every logger of the process, and Python's warnings, to standard output as JSON lines."""
    logging.captureWarnings(True)
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "filters": {"ids": {"()": _WithIds}},
            "formatters": {
                "json": {
                    "()": "pythonjsonlogger.orjson.OrjsonFormatter",
                    "fmt": ["levelname", "name", "message"],
                    "style": "__sequence__",
                    "rename_fields": {"levelname": "level", "name": "logger"},
                    "timestamp": True,
                }
            },
            "handlers": {
                "stdout": {
                    "class": "logging.StreamHandler",
                    "stream": "ext://sys.stdout",
                    "formatter": "json",
                    "filters": ["ids"],
                }
            },
            "root": {"level": level.upper(), "handlers": ["stdout"]},
            # Start, stop, keep-alive; what is wrong with a form, which its sender is told: no news for ours.
            "loggers": {"uvicorn": {"level": "WARNING"}, "python_multipart": {"level": "ERROR"}},
        }
    )
