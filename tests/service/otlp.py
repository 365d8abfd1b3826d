"""A collector of OTLP over HTTP, on a real socket: what it was sent, as protobuf messages."""

import gzip
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span

Value = str | int | bool | float


class Received(NamedTuple):
    """A span, and the resource that it came from."""

    span: Span
    resource: dict[str, Value]

    @property
    def attributes(self) -> dict[str, Value]:
        return values(self.span.attributes)

    @property
    def links(self) -> set[str]:
        """Span ids, as hex digits."""
        return {link.span_id.hex() for link in self.span.links}


class Collector:
    """Answers every request with `status`, once the gate is open."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.status = 200
        self.gate = threading.Event()
        self.gate.set()
        self.requests = 0
        self.headers: list[dict[str, str]] = []
        self.received: list[Received] = []

    def spans(self, name: str) -> list[Received]:
        return [each for each in self.received if each.span.name == name]

    def span(self, name: str) -> Received:
        """The one span of that name."""
        (found,) = self.spans(name)
        return found

    def trace(self, trace_id: str) -> list[Received]:
        """The spans of a trace, by its id as hex digits."""
        return [each for each in self.received if each.span.trace_id.hex() == trace_id]

    def wait_until(self, arrived: Callable[[], bool], seconds: float = 20) -> None:
        """Returns when that is true. Raises TimeoutError."""
        deadline = time.monotonic() + seconds
        while not arrived():
            if time.monotonic() > deadline:
                raise TimeoutError(f"all that arrived: {sorted(each.span.name for each in self.received)}")
            time.sleep(0.02)

    def take(self, content: bytes) -> None:
        message = ExportTraceServiceRequest.FromString(content)
        for resource_spans in message.resource_spans:
            resource = values(resource_spans.resource.attributes)
            for scope_spans in resource_spans.scope_spans:
                self.received += [Received(span, resource) for span in scope_spans.spans]


@contextmanager
def collector() -> Iterator[Collector]:
    """A collector on a free port of this machine."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            content = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers["Content-Encoding"] == "gzip":
                content = gzip.decompress(content)
            made.gate.wait()
            made.requests += 1
            made.headers.append(dict(self.headers))
            if self.path == "/v1/traces" and made.status == 200:
                made.take(content)
            self.send_response(made.status if self.path == "/v1/traces" else 404)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the library's name)
            """Says nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    made = Collector(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield made
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def values(attributes: Iterable[KeyValue]) -> dict[str, Value]:
    """Attributes as Python has them."""
    found: dict[str, Value] = {}
    for attribute in attributes:
        kind = attribute.value.WhichOneof("value")
        if kind is not None:
            found[attribute.key] = getattr(attribute.value, kind)
    return found
