"""Two replicas behind nginx (REST) and Envoy (gRPC), under load: one is killed, then both are restarted in turn.

`python bench/rolling.py` prints what clients saw, and returns 1 when a request failed that was asked again as the
service says, or when a replica that was told to stop did not end well. The proxies run with the files in
docs/examples/. With `--once` Envoy tries nothing twice, and clients see what it would have hidden. nginx keeps its
second try: it has no health checks, and would pass on the refusals of a replica that starts as if they were answers.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager, suppress
from pathlib import Path

import numpy as np

# Of a program's own modules, Python finds only those beside it.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.proxies import ENVOY, NGINX, ROOT, ToolError, fetch
from bench.rolling_clients import Asked, Client, GrpcClient, RestClient, steady
from bench.serve_tree import descendants
from clip4str_service.samples import Sample, load_samples
from samples.demo import OURS, SAMPLES, RunningService, StartError, became_ready

REST, GRPC = "http://127.0.0.1:18080", "127.0.0.1:15050"  # of the proxies, as their files say
_STEADY = 10.0  # seconds with both replicas, before anything happens
_AFTER = 5.0  # seconds from when a replica is back until the next thing happens
_DOWN = 3.0  # seconds that a killed replica stays away
_STOP_SECONDS = 60.0
_EXAMPLES = ROOT / "docs" / "examples"
_ENVOY_TRIES = ("num_retries: 3", "num_retries: 0")  # as it is told in the example, and to try once
# Each has one of two processors: more would only take from one another.
_SETTINGS = {"CLIP4STR_HOST": "127.0.0.1", "CLIP4STR_THREADS": "1", "CLIP4STR_LOG_LEVEL": "error"}


class Replica:
    """A service on ports of its own."""

    def __init__(self, number: int) -> None:
        self.ports = {"HTTP": 18080 + number, "GRPC": 15050 + number, "METRICS": 19090 + number}
        self._process: subprocess.Popen[bytes] | None = None

    async def start(self) -> None:
        """Returns when it is ready. Raises StartError."""
        self._process = self._launched()
        metrics = f"http://127.0.0.1:{self.ports['METRICS']}"
        if not await asyncio.to_thread(became_ready, RunningService(self._process, "", "", metrics)):
            raise StartError("a replica did not become ready; above is why")

    def _launched(self) -> subprocess.Popen[bytes]:
        ports = {f"CLIP4STR_{name}_PORT": str(port) for name, port in self.ports.items()}
        environment = {**os.environ, **_SETTINGS, **ports}
        return subprocess.Popen(OURS, env=environment)  # noqa: S603 (our own program)

    async def kill(self) -> None:
        """Ends all its processes at once, as when their machine is lost."""
        if self._process is not None and self._process.poll() is None:
            for process in (self._process.pid, *descendants(self._process.pid)):
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
            await asyncio.to_thread(self._process.wait)

    async def stop(self) -> int:
        """Tells it to stop and returns its exit code. Raises StartError where it does not."""
        if self._process is None:
            raise StartError("a replica that was not started cannot stop")
        self._process.send_signal(signal.SIGTERM)
        try:
            return await asyncio.to_thread(self._process.wait, _STOP_SECONDS)
        except subprocess.TimeoutExpired:
            raise StartError(f"a replica did not stop within {_STOP_SECONDS:g} s") from None


@contextmanager
def proxies(once: bool) -> Iterator[None]:
    """Both, while inside; `once`: Envoy tries nothing twice."""
    with tempfile.TemporaryDirectory() as folder:
        envoy = _EXAMPLES / "envoy.yaml"
        if once:
            changed = envoy.read_text(encoding="utf-8").replace(*_ENVOY_TRIES)
            envoy = Path(folder) / "envoy.yaml"
            envoy.write_text(changed, encoding="utf-8")
        commands = (
            [str(NGINX), "-p", folder, "-c", str(_EXAMPLES / "nginx.conf")],
            [
                *(str(ENVOY), "--config-path", str(envoy), "--concurrency", "1"),
                *("--log-level", "error", "--disable-hot-restart"),
            ],
        )
        running = [subprocess.Popen(command) for command in commands]  # noqa: S603 (fetched by us)
        try:
            yield
        finally:
            for process in running:
                process.terminate()
                process.wait()


class Course:
    """What happens to the replicas, and when: (name, time of the event loop)."""

    def __init__(self, replicas: Sequence[Replica]) -> None:
        self._replicas = replicas
        self.phases: list[tuple[str, float]] = []
        self.off: list[str] = []

    async def run(self) -> None:
        """All of it."""
        self._begin("both serve")
        await asyncio.sleep(_STEADY)
        self._begin("kill -9 of one, started again")
        await self._replicas[0].kill()
        await asyncio.sleep(_DOWN)
        await self._back(self._replicas[0])
        for name, replica in zip(("one", "the other"), self._replicas, strict=True):
            self._begin(f"SIGTERM to {name}, started again")
            if (code := await replica.stop()) != 0:
                self.off.append(f"a replica that was told to stop ended with {code}")
            await self._back(replica)

    def _begin(self, phase: str) -> None:
        self.phases.append((phase, asyncio.get_running_loop().time()))
        sys.stderr.write(f"rolling: {phase}\n")

    async def _back(self, replica: Replica) -> None:
        await replica.start()
        await asyncio.sleep(_AFTER)


async def roll(rate: float, once: bool, samples: Sequence[Sample]) -> list[str]:
    """What is off; nothing, at best. Raises StartError."""
    async with AsyncExitStack() as stack:
        replicas = [Replica(number) for number in (1, 2)]
        for replica in replicas:
            stack.push_async_callback(replica.kill)
        await asyncio.gather(*(replica.start() for replica in replicas))
        stack.enter_context(proxies(once))
        clients: dict[str, Client] = {"REST": RestClient(REST), "gRPC": GrpcClient(GRPC)}
        now = asyncio.get_running_loop().time
        for name, client in clients.items():
            stack.push_async_callback(client.close)
            if code := (await client.ask(samples[0], now())).last:
                raise StartError(f"{name} does not answer through its proxy: {code}")
        course, stop = Course(replicas), asyncio.Event()
        async with asyncio.TaskGroup() as group:
            asking = {
                name: group.create_task(steady(client, samples, rate, stop))
                for name, client in clients.items()
            }
            await course.run()
            stop.set()
    asked = {name: task.result() for name, task in asking.items()}
    sys.stdout.write(table(asked, course.phases))
    lost = Counter((name, each.last) for name in asked for each in asked[name] if each.last)
    return [
        *course.off,
        *(f"{name}: {count} requests came to {code}" for (name, code), count in lost.items()),
    ]


def table(asked: dict[str, list[Asked]], phases: Sequence[tuple[str, float]]) -> str:
    """A Markdown table with a row for each phase and protocol. A request counts where its first try ended."""
    lines = [
        "| | | requests | not read at the first try | not read at last | p50 ms | p99 ms |\n",
        "|---|---|---|---|---|---|---|\n",
    ]
    ends = [begun for _, begun in phases[1:]] + [float("inf")]
    for (phase, begun), end in zip(phases, ends, strict=True):
        for name, requests in asked.items():
            lines.append(_row(phase, name, [each for each in requests if begun <= each.first_ended < end]))
    return "".join(lines)


def _row(phase: str, name: str, requests: Sequence[Asked]) -> str:
    if not requests:
        return f"| {phase} | {name} | 0 | 0 | 0 | | |\n"
    codes = Counter(each.first for each in requests if each.first)
    said = ", ".join(f"{count} {code}" for code, count in codes.most_common())
    first = f"{codes.total()} ({said})" if codes else "0"
    last = sum(bool(each.last) for each in requests)
    waited = [1000 * (each.ended - each.begun) for each in requests]
    p50, p99 = np.percentile(waited, [50, 99])
    return f"| {phase} | {name} | {len(requests):,} | {first} | {last} | {p50:.0f} | {p99:.0f} |\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return 1 when something is off, 2 after one line where it cannot be run."""
    parser = argparse.ArgumentParser(description="Kill, stop and start replicas behind proxies, under load.")
    parser.add_argument(
        "--rate",
        type=float,
        default=20.0,
        metavar="N",
        help="crops a second of each protocol (default %(default)g)",
    )
    parser.add_argument("--once", action="store_true", help="have Envoy try nothing twice")
    arguments = parser.parse_args(argv)
    try:
        if not 0 < arguments.rate <= 1000:
            raise StartError(
                f"--rate is {arguments.rate:g}: expected more than 0 and at most 1000 crops a second"
            )
        fetch()
        signal.signal(
            signal.SIGTERM, signal.default_int_handler
        )  # replicas and proxies are stopped at any end
        off = asyncio.run(roll(arguments.rate, arguments.once, load_samples(SAMPLES)))
    except KeyboardInterrupt:
        return 130
    except (StartError, ToolError, OSError) as error:
        sys.stderr.write(f"rolling: {error}\n")
        return 2
    for each in off:
        sys.stderr.write(f"rolling: OFF: {each}\n")
    return 1 if off else 0


if __name__ == "__main__":
    sys.exit(main())
