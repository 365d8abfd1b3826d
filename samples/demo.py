"""Read the sample crops through a running service, over REST and over gRPC, and compare with labels.tsv.

Starts the service on free ports, prints one table, stops it. Exit code 1 when a word is read wrong or the two
protocols differ.
"""

import math
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import httpx
from google.protobuf.json_format import MessageToDict

from clip4str_service.pb import recognition_pb2 as pb
from clip4str_service.pb.recognition_pb2_grpc import RecognitionServiceStub

SAMPLES = Path(__file__).resolve().parent
START_SECONDS = 240  # the model is loaded and warmed up; a busy machine takes its time
STOP_SECONDS = 30
ROUNDING = 1e-6


class StartError(Exception):
    """The service ended, or was not ready in time; the message holds what it wrote."""


@dataclass(frozen=True)
class Sample:
    """A sample crop: its file's name, what it says, and the file's bytes (JPEG)."""

    name: str
    text: str
    content: bytes


@dataclass(frozen=True)
class RunningService:
    """A service process that answers: addresses of its three ports."""

    process: subprocess.Popen[bytes]
    http: str
    grpc: str
    metrics: str


@contextmanager
def running_service(output: Path | None = None, **settings: str) -> Iterator[RunningService]:
    """Start the service on free ports, wait until it is ready, and stop it at the end.

    Args:
        output: a file that its standard output is added to.
        settings: environment variables on top of this process's own.

    Raises:
        StartError: it ended or was not ready in time; the message holds what it wrote, but for `output`.
    """
    http_port, grpc_port, metrics_port = free_ports(3)
    environment = {
        **os.environ,
        "CLIP4STR_HOST": "127.0.0.1",
        "CLIP4STR_HTTP_PORT": str(http_port),
        "CLIP4STR_GRPC_PORT": str(grpc_port),
        "CLIP4STR_METRICS_PORT": str(metrics_port),
        **settings,
    }
    with ExitStack() as files:
        log = files.enter_context(tempfile.TemporaryFile())
        lines = log if output is None else files.enter_context(output.open("ab"))
        command = [sys.executable, "-m", "clip4str_service"]
        process = subprocess.Popen(command, env=environment, stdout=lines, stderr=log)  # noqa: S603 (our own program)
        service = RunningService(
            process,
            f"http://127.0.0.1:{http_port}",
            f"127.0.0.1:{grpc_port}",
            f"http://127.0.0.1:{metrics_port}",
        )
        try:
            if not became_ready(service):
                log.seek(0)
                raise StartError("the service did not become ready:\n" + log.read().decode(errors="replace"))
            yield service
        finally:
            stop(process)


def free_ports(count: int) -> list[int]:
    """Return TCP ports that nobody listens on now."""
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def became_ready(service: RunningService) -> bool:
    """Wait for readiness; False when the process ended or the time is up.

    It asks on the metrics port, where no settings of the others, such as TLS, are in the way.
    """
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and service.process.poll() is None:
        try:
            if httpx.get(f"{service.metrics}/readyz").status_code == httpx.codes.OK:
                return True
        except httpx.TransportError:
            pass  # not listening yet
        time.sleep(0.1)
    return False


def stop(process: subprocess.Popen[bytes]) -> None:
    """Ask the process to end, and end it when it does not."""
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def load_samples() -> list[Sample]:
    """Return the crops that labels.tsv names, in its order."""
    rows = [line.split("\t") for line in (SAMPLES / "labels.tsv").read_text(encoding="utf-8").splitlines()]
    return [Sample(name, text, (SAMPLES / name).read_bytes()) for name, text in rows]


def read_by_rest(service: RunningService, image: bytes) -> dict[str, Any]:
    """Read one JPEG crop: its bytes are the body."""
    headers = {"Content-Type": "image/jpeg"}
    response = httpx.post(f"{service.http}/v1/recognize", content=image, headers=headers, timeout=60)
    response.raise_for_status()
    result: dict[str, Any] = response.json()["results"][0]
    return result


def read_by_grpc(service: RunningService, image: bytes) -> pb.Result:
    """Read one crop."""
    request = pb.RecognizeRequest(crops=[pb.Crop(content=image)])
    with grpc.insecure_channel(service.grpc) as channel:
        stub = RecognitionServiceStub(channel)
        return stub.Recognize(request, timeout=60).results[0]


def as_rest(result: pb.Result) -> dict[str, Any]:
    """Turn a gRPC recognition into the JSON that REST answers for it, without the crop's id."""
    return MessageToDict(
        result.recognition, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )


def alike(one: object, other: object) -> bool:
    """Say whether two JSON values are equal, numbers up to the rounding of two runs of the same model."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(alike(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(alike, one, other))
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=0.0, abs_tol=ROUNDING)
    return one == other


def main() -> int:
    """Read, compare and print; return the exit code."""
    samples, wrong = load_samples(), 0
    with running_service() as service:
        print(f"{'file':<8}{'label':<10}{'text':<10}{'confidence':<12}", end="")
        print(f"{'visual':<10}{'cross-modal':<13}REST == gRPC")
        for sample in samples:
            rest = read_by_rest(service, sample.content)
            rpc = as_rest(read_by_grpc(service, sample.content))
            same = alike({key: value for key, value in rest.items() if key != "id"}, rpc)
            branches = rest["branches"]
            visual, cross_modal = branches["visual"]["text"], branches["cross_modal"]["text"]
            print(f"{sample.name:<8}{sample.text:<10}{rest['text']:<10}{rest['confidence']:<12.3f}", end="")
            print(f"{visual:<10}{cross_modal:<13}{'yes' if same else 'NO'}")
            wrong += rest["text"] != sample.text or not same
    print(f"{len(samples) - wrong} of {len(samples)} samples read right, and alike over REST and gRPC")
    return 1 if wrong else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except StartError as error:
        sys.exit(str(error))
