"""A web server for download tests: real sockets, and every way in which a server can misbehave."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "01bb4141ffac9a3e02155e4ad7260fad174b7bf0"


@dataclass
class Site:
    """What the server has, and how it behaves. `cuts` and `statuses` are used up, one a GET."""

    content: bytes
    url: str = ""
    etag: str = '"first"'
    ranges: bool = True  # whether it knows them
    wrong_range: bool = False
    cuts: list[int] = field(default_factory=list)  # bytes after which the connection breaks
    statuses: list[int] = field(default_factory=list)
    content_type: str = "application/octet-stream"
    length: int | None = None  # what it claims to send, if not the truth
    record: object = None  # what /record answers
    requests: list[Message] = field(default_factory=list)  # headers of each GET of the file


class _Handler(BaseHTTPRequestHandler):
    site: Site
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        site = self.site
        self.send_response(200)
        self.send_header("Content-Length", str(len(site.content)))
        self.send_header("ETag", site.etag)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("X-Linked-Etag", f'"{hashlib.sha256(site.content).hexdigest()}"')
        self.end_headers()

    def do_GET(self) -> None:
        site = self.site
        if self.path == "/moved":
            self.send_response(302)
            self.send_header("Location", f"{site.url}/model.ckpt")
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif self.path == "/record":
            body = json.dumps(site.record).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
        else:
            self._send_file(site)

    def _send_file(self, site: Site) -> None:
        site.requests.append(self.headers)
        status, start = site.statuses.pop(0) if site.statuses else 200, 0
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        same = self.headers.get("If-Range", site.etag) == site.etag
        if status == 200 and site.ranges and asked and same:
            start = int(asked[1])
            status = 206 if start < len(site.content) else 416
        body = site.content[start:] if status in (200, 206) else b""
        self.send_response(status)
        self.send_header("Content-Type", site.content_type)
        self.send_header("ETag", site.etag)
        if status == 206:
            first = start + 1 if site.wrong_range else start
            self.send_header("Content-Range", f"bytes {first}-{len(site.content) - 1}/{len(site.content)}")
        if status == 416:
            self.send_header("Content-Range", f"bytes */{len(site.content)}")
        self.send_header("Content-Length", str(len(body) if site.length is None else site.length))
        self.end_headers()
        if site.cuts:
            body = body[: site.cuts.pop(0)]
            self.close_connection = True
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


class _Server(ThreadingHTTPServer):
    def handle_error(self, *_: object) -> None:
        """A client that hangs up is nothing to report."""


@contextmanager
def serving(content: bytes) -> Iterator[Site]:
    """A running server for `content`, at `/model.ckpt` and any other path."""
    site = Site(content)
    handler = type("Handler", (_Handler,), {"site": site})
    server = _Server(("127.0.0.1", 0), handler)
    site.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield site
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
