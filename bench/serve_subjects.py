"""What is measured: this service by each of its ways, and the same model behind other frameworks."""

from __future__ import annotations

import base64
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from urllib.request import Request, urlopen

import orjson

from bench.serve_http import Response
from bench.serve_stream import StreamWay
from bench.serve_ways import GrpcWay, HttpWay, Way, post, rest, rest_batches
from samples.demo import StartError, free_ports, running_service, stop

BATCH = 64
_ROOT = Path(__file__).resolve().parents[1]
_RIVALS = _ROOT / "bench" / "rivals"
RIVALS_PYTHON = _RIVALS / ".venv" / "bin" / "python"
_START_SECONDS = 180
_TIMEOUT_MS = 1000
_BATCH_TIMEOUT_MS = 2000

Settings = Mapping[str, str]
MakeWay = Callable[[Sequence[bytes], int], Way[Any]]
"""Crops and a timeout in milliseconds -> requests for a server that runs."""


@dataclass(frozen=True, slots=True)
class Subject:
    """A way to have crops read.

    start: with environment variables and a crop to see whether it answers. crops: of one request. timeout_ms: what
    an open loop's answers are good for. candidates: settings to choose the best of before it is measured.
    """

    name: str
    title: str
    start: Callable[[Settings, bytes], AbstractContextManager[MakeWay]]
    crops: int = 1
    timeout_ms: int = _TIMEOUT_MS
    ours: bool = True
    candidates: Sequence[Settings] = ({},)

    def pressed(self, peak: float) -> Settings:
        """Settings for an open loop of a server whose best is `peak` crops/s: keep no more than can be read in time.

        This service needs none: its requests say how long they are good for.
        """
        if self.ours:
            return {}
        seconds = self.timeout_ms / 1000
        return {"RIVAL_TIMEOUT_S": str(seconds), "RIVAL_QUEUE": str(max(BATCH, int(peak * seconds)))}


@contextmanager
def _service(kind: str, settings: Settings, crop: bytes) -> Iterator[MakeWay]:  # noqa: ARG001 (rivals' need it)
    with running_service(None, **settings) as service:
        ways: dict[str, MakeWay] = {
            "rest": partial(rest, service.http),
            "grpc": partial(GrpcWay, service.grpc),
            "rest-64": partial(rest_batches, service.http, size=BATCH),
            "grpc-64": partial(GrpcWay, service.grpc, size=BATCH),
            "stream": partial(StreamWay, service.grpc),
        }
        yield ways[kind]


class _Rival(NamedTuple):
    """A framework's server: its arguments after `python`, its path, a crop as its body, an answer's JSON as text."""

    arguments: Sequence[str]
    path: str
    body: Callable[[bytes], tuple[str, bytes]]
    text: Callable[[Any], str]

    def request(self, url: str, crop: bytes) -> bytes:
        """A ready request."""
        return post(url + self.path, *self.body(crop))


@contextmanager
def _serving(rival: _Rival, settings: Settings, crop: bytes) -> Iterator[MakeWay]:
    """The server, told by RIVAL_* variables how to batch and where to listen."""
    (port,) = free_ports(1)
    url = f"http://127.0.0.1:{port}"
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(_ROOT)])),
        "BENTOML_DO_NOT_TRACK": "true",
        "BENTOML_PORT": str(port),
        "RAY_USAGE_STATS_ENABLED": "0",
        **settings,
        "RIVAL_PORT": str(port),
    }
    command = [str(RIVALS_PYTHON), *rival.arguments]
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, env=environment, cwd=folder, stdout=log, stderr=log)  # noqa: S603 (ours)
        try:
            if not _answers(process, f"{url}{rival.path}", *rival.body(crop)):
                log.seek(0)
                said = log.read().decode(errors="replace")[-4000:]
                raise StartError(f"{rival.arguments[0]} did not become ready:\n{said}")
            yield partial(_way, rival, url)
        finally:
            stop(process)


def _way(rival: _Rival, url: str, crops: Sequence[bytes], timeout_ms: int) -> HttpWay:  # noqa: ARG001 (it is the server's)
    def texts(answer: Response) -> list[str]:
        return [rival.text(orjson.loads(answer.body))]

    return HttpWay(url, [rival.request(url, crop) for crop in crops], 1, texts)


def _answers(process: subprocess.Popen[bytes], url: str, content_type: str, body: bytes) -> bool:
    """Wait until a crop is read; False when the process ended or the time is up."""
    request = Request(url, body, {"Content-Type": content_type})  # noqa: S310 (http, to this machine)
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urlopen(request, timeout=10):  # noqa: S310
                return True
        except OSError:
            time.sleep(0.2)  # not listening, or not ready yet
    return False


def _base64(crop: bytes) -> str:
    return base64.b64encode(crop).decode()


_LITSERVE = _Rival(
    [str(_RIVALS / "lit.py")],
    "/predict",
    lambda crop: ("application/json", orjson.dumps({"image": _base64(crop)})),
    lambda answer: str(answer["text"]),
)
_BENTOML = _Rival(
    ["-m", "bentoml", "serve", "bento:Words", "--working-dir", str(_RIVALS), "--host", "127.0.0.1"],
    "/read",
    lambda crop: ("application/json", orjson.dumps({"images": [_base64(crop)]})),
    lambda answer: str(answer[0]["text"]),
)
_RAY = _Rival(
    [str(_RIVALS / "ray_serve.py")],
    "/",
    lambda crop: ("image/jpeg", crop),
    lambda answer: str(answer["text"]),
)
_WORKERS = str(min(4, os.cpu_count() or 1))


def _batching(wait_ms: int, *, workers: str = "1", batch: int = BATCH) -> dict[str, str]:
    return {"RIVAL_WORKERS": workers, "RIVAL_BATCH": str(batch), "RIVAL_WAIT_MS": str(wait_ms)}


SUBJECTS = (
    Subject("rest", "REST", partial(_service, "rest")),
    Subject("grpc", "gRPC", partial(_service, "grpc")),
    Subject("rest-64", "REST, 64 crops", partial(_service, "rest-64"), BATCH, _BATCH_TIMEOUT_MS),
    Subject("grpc-64", "gRPC, 64 crops", partial(_service, "grpc-64"), BATCH, _BATCH_TIMEOUT_MS),
    Subject("stream", "gRPC stream", partial(_service, "stream")),
    Subject(
        "litserve",
        "LitServe",
        partial(_serving, _LITSERVE),
        ours=False,
        candidates=(_batching(2), _batching(20), _batching(10, workers=_WORKERS, batch=32)),
    ),
    Subject(
        "bentoml",
        "BentoML",
        partial(_serving, _BENTOML),
        ours=False,
        # Its waiting time it finds itself; what it is told is the longest that an answer may take.
        candidates=(_batching(1000), _batching(10_000), _batching(1000, workers=_WORKERS, batch=32)),
    ),
    Subject(
        "ray",
        "Ray Serve",
        partial(_serving, _RAY),
        ours=False,
        candidates=(
            _batching(2),
            _batching(20),
            _batching(10, workers=_WORKERS, batch=32),
            _batching(2) | {"RAY_SERVE_THROUGHPUT_OPTIMIZED": "1", "RAY_SERVE_ENABLE_HA_PROXY": "1"},
        ),
    ),
)
