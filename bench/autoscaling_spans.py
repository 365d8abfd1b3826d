"""Batches as the running service traces them: a collector of OTLP over HTTP that keeps their sizes and times."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

EXPORT_SECONDS = 6.0
"""After which a span that ended has been sent: the exporter collects for five seconds at most."""


class TracedBatch(NamedTuple):
    """One that was read. `sealed_at`: seconds since 1970; `seconds`: until its outcomes were back."""

    sealed_at: float
    seconds: float
    crops: int


class Collector:
    """What was received so far."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.batches: list[TracedBatch] = []

    def take(self, content: bytes) -> None:
        """Keeps the batches among the spans of an export."""
        for resource in ExportTraceServiceRequest.FromString(content).resource_spans:
            for scope in resource.scope_spans:
                for span in scope.spans:
                    if span.name == "batch":
                        (crops,) = (
                            each.value.int_value
                            for each in span.attributes
                            if each.key == "clip4str.batch_size"
                        )
                        began, ended = span.start_time_unix_nano, span.end_time_unix_nano
                        self.batches.append(TracedBatch(began / 1e9, (ended - began) / 1e9, crops))


@contextmanager
def collecting() -> Iterator[Collector]:
    """A collector on a free port of this machine."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            content = self.rfile.read(int(self.headers["Content-Length"]))
            packed = self.headers["Content-Encoding"] == "gzip"
            collector.take(gzip.decompress(content) if packed else content)
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the library's name)
            """Says nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    collector = Collector(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield collector
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
