"""`clip4str-service samples` before a stand-in for the service that reads what it is told to, on real sockets."""

from __future__ import annotations

import json
import ssl
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import grpc
import pytest

from clip4str_service.__main__ import main
from clip4str_service.pb import recognition_pb2 as pb
from clip4str_service.pb.recognition_pb2_grpc import (
    RecognitionServiceServicer,
    add_RecognitionServiceServicer_to_server,
)
from clip4str_service.samples import alike, as_rest
from tests.service.certificates import Mint
from tests.service.planted import KEY


def recognition(text: str, confidence: float = 0.9) -> pb.Recognition:
    branch = pb.Branch(text=text, confidence=confidence)
    return pb.Recognition(
        text=text, confidence=confidence, branches=pb.Branches(visual=branch, cross_modal=branch)
    )


@dataclass
class StandIn:
    """What is read over each protocol, by content; what a caller must show."""

    rest: dict[bytes, pb.Recognition] = field(default_factory=dict)
    grpc: dict[bytes, pb.Recognition] = field(default_factory=dict)
    key: str | None = None
    flags: list[str] = field(default_factory=list)


class _Rpc(RecognitionServiceServicer):
    def __init__(self, stand_in: StandIn) -> None:
        self._stand_in = stand_in

    def Recognize(  # noqa: N802 (the protocol's name)
        self, request: pb.RecognizeRequest, context: grpc.ServicerContext
    ) -> pb.RecognizeResponse:
        presented = dict(context.invocation_metadata()).get("authorization")
        if self._stand_in.key is not None and presented != f"Bearer {self._stand_in.key}":
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "no such key")
        read = self._stand_in.grpc.get(request.crops[0].content)
        if read is None:
            result = pb.Result()
            result.error.message = "not an image"
        else:
            result = pb.Result(id="0", recognition=read)
        return pb.RecognizeResponse(results=[result])


class _Rest(BaseHTTPRequestHandler):
    stand_in: StandIn

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        read = self.stand_in.rest.get(content)
        if self.stand_in.key is not None and self.headers["Authorization"] != f"Bearer {self.stand_in.key}":
            self._answer(401, {"code": "unauthenticated", "detail": "no such key"})
        elif self.path != "/v1/recognize":
            self._answer(404, [])
        elif read is None:
            self._answer(422, {"code": "undecodable_image", "detail": "not an image"})
        else:
            result = as_rest(pb.Result(recognition=read))
            self._answer(200, {"results": [{"id": "0", **result}]})

    def _answer(self, status: int, value: object) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


class _Server(ThreadingHTTPServer):
    def handle_error(self, *_: object) -> None:
        """A client that does not trust us hangs up."""


@contextmanager
def standing_in(mint: Mint | None = None) -> Iterator[StandIn]:
    stand_in = StandIn()
    rest = _Server(("127.0.0.1", 0), type("Rest", (_Rest,), {"stand_in": stand_in}))
    rpc = grpc.server(ThreadPoolExecutor(1))
    add_RecognitionServiceServicer_to_server(_Rpc(stand_in), rpc)  # type: ignore[abstract]  # asked for no more
    if mint is None:
        scheme, port = "http", rpc.add_insecure_port("127.0.0.1:0")
    else:
        files = mint.files(mint.servers.issue_cert("127.0.0.1"))
        pair = (files.key.read_bytes(), files.cert.read_bytes())
        scheme, port = "https", rpc.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([pair]))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(files.cert, files.key)
        rest.socket = context.wrap_socket(rest.socket, server_side=True)
    rpc.start()
    thread = threading.Thread(target=rest.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    stand_in.flags = ["--rest", f"{scheme}://127.0.0.1:{rest.server_port}", "--grpc", f"127.0.0.1:{port}"]
    try:
        yield stand_in
    finally:
        rest.shutdown()
        thread.join()
        rest.server_close()
        rpc.stop(0).wait()


@pytest.fixture
def service() -> Iterator[StandIn]:
    with standing_in() as stand_in:
        yield reading_well(stand_in)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two samples."""
    made = tmp_path / "samples"
    made.mkdir()
    for name in ("EXIT", "Cafe"):
        (made / f"{name}.jpg").write_bytes(name.encode())
    (made / "labels.tsv").write_text("EXIT.jpg\tEXIT\nCafe.jpg\tCafe\n", encoding="utf-8")
    return made


def reading_well(stand_in: StandIn) -> StandIn:
    stand_in.rest = {text.encode(): recognition(text) for text in ("EXIT", "Cafe")}
    stand_in.grpc = dict(stand_in.rest)
    return stand_in


def run(service: StandIn, folder: Path, *flags: str) -> int:
    return main(["samples", *service.flags, *flags, str(folder)])


def test_read_right(service: StandIn, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(service, folder) == 0
    out, err = capsys.readouterr()
    assert [line.split()[:3] for line in out.splitlines()[1:3]] == [
        ["EXIT.jpg", "EXIT", "EXIT"],
        ["Cafe.jpg", "Cafe", "Cafe"],
    ]
    assert out.endswith("2 of 2 samples read right, and alike over REST and gRPC\n")
    assert err == ""


def test_read_wrong(service: StandIn, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    service.rest[b"EXIT"] = service.grpc[b"EXIT"] = recognition("EX1T")
    assert run(service, folder) == 1
    assert "1 of 2 samples" in capsys.readouterr().out


def test_read_otherwise_over_grpc(service: StandIn, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    service.grpc[b"EXIT"] = recognition("EXIT", confidence=0.8)
    assert run(service, folder) == 1
    assert "NO" in capsys.readouterr().out.splitlines()[1].split()


@pytest.mark.parametrize("protocol", ["rest", "grpc"])
def test_refusal_is_told(
    protocol: str, service: StandIn, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    del getattr(service, protocol)[b"Cafe"]
    assert run(service, folder) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "Cafe.jpg: " in err
    assert "not an image" in err


def test_something_else_answers(service: StandIn, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    service.flags[1] += "/elsewhere"
    assert run(service, folder) == 2
    assert "is no address of REST" in capsys.readouterr().err


@pytest.mark.parametrize(("flag", "reason"), [(1, "Connection refused"), (3, "UNAVAILABLE: ")])
def test_nobody_there(
    flag: int, reason: str, service: StandIn, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    service.flags[flag] = {1: "http://127.0.0.1:9", 3: "127.0.0.1:9"}[flag]
    assert run(service, folder) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert service.flags[flag] in err
    assert reason in err


def test_key(service: StandIn, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    service.key = KEY
    assert run(service, folder) == 1
    assert "401 unauthenticated: no such key" in capsys.readouterr().err
    file = folder / "key"
    file.write_text(f"{KEY}\n")
    assert run(service, folder, "--key-file", str(file)) == 0


def test_tls(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mint = Mint(tmp_path)
    authority = mint.write("authority.pem", mint.servers.cert_pem.bytes())
    with standing_in(mint) as stand_in:
        service = reading_well(stand_in)
        assert run(service, folder) == 1
        assert "certificate verify failed" in capsys.readouterr().err
        assert run(service, folder, "--ca-file", str(authority)) == 0


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--key-file", "none"], "none: No such file"),
        (["--key-file", "two-lines"], "two-lines: expected one line"),
        (["--ca-file", "two-lines"], "two-lines: no CA certificates"),
        (["--ca-file", "none"], "none: no CA certificates"),
        (["--rest", "localhost:8080"], "'localhost:8080' is no address of REST"),
        (["--grpc", "http://localhost:1"], "'http://localhost:1' is no address of gRPC"),
        (["nowhere"], "nowhere/labels.tsv: No such file"),
        (["empty"], "names no sample"),
        (["wrong"], "each line has a file's name, a tab and its text"),
        (["missing"], "missing/a.jpg: No such file"),
    ],
)
def test_bad_input(
    flags: list[str],
    reason: str,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "two-lines").write_text("one\ntwo\n")
    for name, labels in {"empty": "", "wrong": "a.jpg\n", "missing": "a.jpg\ta\n"}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "labels.tsv").write_text(labels)
    named = flags if len(flags) == 1 else [*flags, str(folder)]
    assert main(["samples", *named]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("clip4str-service: ")
    assert err.count("\n") == 1
    assert reason in err


def test_alike_up_to_rounding() -> None:
    assert alike({"a": [0.5, "x", None]}, {"a": [0.5 + 1e-9, "x", None]})
    assert not alike({"a": [0.5]}, {"a": [0.5 + 1e-3]})
    assert not alike({"a": [0.5]}, {"a": [0.5, 0.5]})
    assert not alike({"a": 1}, {"b": 1})
