"""Read the sample crops through a running service, over REST and over gRPC, and compare with labels.tsv.

Starts the service on free ports, prints one table, stops it. Exit code 1 when a word is read wrong or the two
protocols differ.
"""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from clip4str_service.samples import Access, UnreadError, check, load_samples

SAMPLES = Path(__file__).resolve().parent
OURS = (sys.executable, "-m", "clip4str_service")
START_SECONDS = 240  # the model is loaded and warmed up; a busy machine takes its time
STOP_SECONDS = 30


class StartError(Exception):
    """The service ended, or was not ready in time; the message holds what it wrote."""


@dataclass(frozen=True)
class RunningService:
    """A service process that answers: addresses of its three ports."""

    process: subprocess.Popen[bytes]
    http: str
    grpc: str
    metrics: str


@contextmanager
def running_service(
    output: Path | None = None, command: Sequence[str] = OURS, **settings: str
) -> Iterator[RunningService]:
    """Start the service on free ports, wait until it is ready, and stop it at the end.

    Args:
        output: a file that its standard output is added to.
        command: what starts it, with the settings in its environment; ends with it, and passes signals on to it.
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
        process = subprocess.Popen(command, env=environment, stdout=lines, stderr=log)  # noqa: S603 (our own program, or a container of it)
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


def main() -> int:
    """Start, check, stop; return the exit code."""
    samples = load_samples(SAMPLES)
    with running_service() as service:
        return 0 if check(Access(service.http, service.grpc), samples, sys.stdout) else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (StartError, UnreadError) as error:
        sys.exit(str(error))
