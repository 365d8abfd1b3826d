"""Sends spans to a collector, by OTLP over HTTP, from a thread of its own: nobody waits for it.

The SDK's own variables add to it, such as OTEL_EXPORTER_OTLP_HEADERS for a collector that wants a password,
OTEL_EXPORTER_OTLP_CERTIFICATE, OTEL_BSP_MAX_QUEUE_SIZE and OTEL_SERVICE_NAME.
"""

from __future__ import annotations

import logging
import threading
from importlib.metadata import version
from time import monotonic

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ALWAYS_ON

SERVICE = "clip4str-service"

_PATH = "/v1/traces"
_CLOSE_SECONDS = 1.5
_SILENCE_SECONDS = 600.0
_MAX_LINKS = 4096  # as many as a batch may have crops
_LOGGERS = (
    OTLPSpanExporter.__module__,
    "opentelemetry.sdk._shared_internal",
)  # failures; a queue that is full


class SpanExport:
    """A tracer whose ended spans go to a collector, in batches. What it does not take in time is dropped."""

    def __init__(self, endpoint: str, process: str) -> None:
        """`endpoint`: http(s)://host:port, and a path if the collector has one; `process` names this one."""
        for name in _LOGGERS:
            logger = logging.getLogger(name)
            if not any(isinstance(each, _Rarely) for each in logger.filters):
                logger.addFilter(_Rarely())
        resource = Resource({"service.name": SERVICE, "service.version": version("clip4str")})
        resource = resource.merge(OTELResourceDetector().detect())  # its variables win
        self._provider = TracerProvider(
            # What reaches it is sampled: that was decided before there was a span.
            sampler=ALWAYS_ON,
            resource=resource.merge(Resource({"clip4str.process": process})),
            shutdown_on_exit=False,
            span_limits=SpanLimits(max_links=_MAX_LINKS),
        )
        exporter = OTLPSpanExporter(endpoint.rstrip("/") + _PATH)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self.tracer = self._provider.get_tracer("clip4str_service")

    def close(self) -> None:
        """Sends what is left, for a moment; a collector that does not answer keeps nobody."""
        closing = threading.Thread(target=self._provider.shutdown, name="spans", daemon=True)
        closing.start()
        closing.join(_CLOSE_SECONDS)


class _Rarely(logging.Filter):
    """Lets one record through, as a warning, then none for a while: that a collector is down is news once."""

    def __init__(self) -> None:
        super().__init__()
        self._quiet_until = float("-inf")

    def filter(self, record: logging.LogRecord) -> bool:
        if monotonic() < self._quiet_until:
            return False
        self._quiet_until = monotonic() + _SILENCE_SECONDS
        record.levelno, record.levelname = logging.WARNING, "WARNING"
        return True
