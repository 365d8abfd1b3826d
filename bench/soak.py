"""Let the service run at 80 % of what it can do, and watch for what grows, fails or slows down.

`python bench/soak.py [--minutes 30]` prints what it found and returns 1 when something is off: a request that was not
read, a process that ended, came or keeps growing, answers that take longer at the end than at the beginning.

What the service can do is measured anew every few minutes: a machine that others share does not stay as fast as it
was.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

# Of a program's own modules, Python finds only those beside it.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.serve_bare import draw
from bench.serve_load import Sample, closed_loop, open_loop, percentiles
from bench.serve_tree import Tree, command_of, memory, orphans_adopted
from bench.serve_ways import GrpcWay, Verdict, Way, rest
from samples.demo import StartError, running_service

_SHARE = 0.8
_CROPS, _SEED = 4096, 2025
_CLIENTS, _MEASURE_SECONDS = 32, 5.0  # by either protocol
_PERIOD = 180.0  # seconds for which the load stays as it is
_TIMEOUT_MS = 10_000
_LEAST_MINUTES = 2.0
_EVERY = 5.0  # seconds between two looks at memory
_SETTLING, _SETTLING_SECONDS = 0.5, 60.0
"""Of the time, and at least, in which memory may grow: each size of batch that is new has kernels made for it."""

_SLOPE = 128.0  # KiB a minute that a process may grow
_PART = 0.2  # of the requests: the first, and the last
_SLOWER = 1.5  # the median of the last is at most so many times that of the first,
_SLOWER_MS = 20.0  # and so much more


@dataclass(frozen=True, slots=True)
class Growth:
    """A process over the time: KiB at the first look, at the last, and a minute between them, by least squares."""

    process: int
    command: str
    first: float
    last: float
    slope: float
    doubt: float  # standard error of the slope

    @property
    def kept(self) -> bool:
        """It does not grow beyond doubt."""
        return self.slope - 2 * self.doubt <= _SLOPE


class Watch:
    """Looks at the memory of a server's processes."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self._seen: dict[int, list[tuple[float, float]]] = defaultdict(list)
        self.came_or_went: set[int] = set()
        self._first = tree.processes()

    async def look(self) -> None:
        """Until it is cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            now = self._tree.processes()
            self.came_or_went |= now ^ self._first
            for process in now:
                self._seen[process].append((loop.time(), memory(process, "VmRSS") / 1024))
            await asyncio.sleep(_EVERY)

    def growth(self) -> list[Growth]:
        """Of each process that was there for all of the time."""
        return [_growth(process, self._seen[process]) for process in sorted(self._first - self.came_or_went)]


def _growth(process: int, looks: Sequence[tuple[float, float]]) -> Growth:
    begun, ended = looks[0][0], looks[-1][0]
    from_then = begun + max(_SETTLING_SECONDS, _SETTLING * (ended - begun))
    settled = np.array([look for look in looks if look[0] >= from_then] or looks[-1:])
    minutes, kib = (settled[:, 0] - settled[0, 0]) / 60, settled[:, 1]
    slope, doubt = least_squares(minutes, kib)
    return Growth(process, command_of(process), kib[0], kib[-1], slope, doubt)


def least_squares(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Slope of the line through the points and its standard error; infinite with fewer than three points."""
    spread = float(((x - x.mean()) ** 2).sum())
    if len(x) < 3 or not spread:
        return 0.0, float("inf")
    slope = float(((x - x.mean()) * (y - y.mean())).sum()) / spread
    rest_of = y - y.mean() - slope * (x - x.mean())
    return slope, float(np.sqrt((rest_of**2).sum() / (len(x) - 2) / spread))


def slower(samples: Sequence[Sample]) -> tuple[float, float, bool]:
    """The median time of the first and of the last answers in ms, and whether that is slower."""
    in_order = sorted(samples, key=lambda each: each.begun)
    count = max(1, round(_PART * len(in_order)))
    first, last = (
        1000 * median(each.seconds for each in part) for part in (in_order[:count], in_order[-count:])
    )
    return first, last, last > _SLOWER * first + _SLOWER_MS


async def soak(minutes: float, crops: Sequence[bytes]) -> list[str]:
    """What is off; nothing, at best. Raises StartError."""
    async with AsyncExitStack() as stack:
        stack.enter_context(orphans_adopted())
        tree = Tree()
        service = stack.enter_context(running_service())
        half = len(crops) // 2  # no crop is in flight twice
        ways: list[Way[Any]] = [
            rest(service.http, crops[:half], _TIMEOUT_MS),
            GrpcWay(service.grpc, crops[half:], _TIMEOUT_MS),
        ]
        for way in ways:
            await way.open()
            stack.push_async_callback(way.close)
        await _capacity(ways, tree)  # warm
        watch = Watch(tree)
        looking = asyncio.create_task(watch.look())
        samples: list[Sample] = []
        periods = max(1, round(60 * minutes / _PERIOD))
        for period in range(periods):
            rate = _SHARE * await _capacity(ways, tree)
            _say(f"period {period + 1} of {periods}: {rate:.1f} crops/s, half by REST and half by gRPC")
            seconds = 60 * minutes / periods - _MEASURE_SECONDS
            seeds = range(_SEED + 2 * period, _SEED + 2 * period + 2)
            arrivals = await asyncio.gather(
                *(
                    open_loop(way, rate / 2, seconds, _TIMEOUT_MS / 1000, seed)
                    for way, seed in zip(ways, seeds, strict=True)
                )
            )
            samples += [sample for each in arrivals for sample in each.samples]
        looking.cancel()
        grown = watch.growth()
    return [*_unread(samples), *_slowed(samples), *_gone(watch), *_grown(grown)]


async def _capacity(ways: Sequence[Way[Any]], tree: Tree) -> float:
    """Crops per second that are read now, when clients of both kinds ask again and again."""
    windows = await asyncio.gather(
        *(closed_loop(way, _CLIENTS, _MEASURE_SECONDS / 1.2, tree.cpu_seconds) for way in ways)
    )
    return sum(window.crops / (window.ended - window.begun) for window in windows)


def _unread(samples: Sequence[Sample]) -> list[str]:
    counts = {verdict: sum(each.outcome.verdict is verdict for each in samples) for verdict in Verdict}
    _say(", ".join(f"{count:,} {verdict.value}" for verdict, count in counts.items()))
    return [
        f"{count:,} requests were {verdict.value}"
        for verdict, count in counts.items()
        if count and verdict is not Verdict.READ
    ]


def _slowed(samples: Sequence[Sample]) -> list[str]:
    first, last, is_slower = slower(samples)
    _say(f"p99 of all answers was {percentiles(samples)['p99_ms'] or 0:.1f} ms")
    text = f"the median answer took {first:.1f} ms at first and {last:.1f} ms at last"
    _say(text)
    return [text] if is_slower else []


def _gone(watch: Watch) -> list[str]:
    return [f"process {process} ended or came meanwhile" for process in sorted(watch.came_or_went)]


def _grown(grown: Sequence[Growth]) -> list[str]:
    off = []
    for each in grown:
        text = (
            f"process {each.process} ({each.command}): {each.first:,.0f} to {each.last:,.0f} KiB, "
            f"{each.slope:+.1f} ± {each.doubt:.1f} KiB/min"
        )
        _say(text)
        if not each.kept:
            off.append(f"{text}, more than {_SLOPE:g}")
    return off


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return 1 when something is off, 2 after one line for bad input."""
    parser = argparse.ArgumentParser(description="Run the service at 80 % of its capacity and watch it.")
    parser.add_argument("--minutes", type=float, default=30.0, metavar="N", help="(default: %(default)g)")
    arguments = parser.parse_args(argv)
    try:
        if arguments.minutes < _LEAST_MINUTES:
            raise StartError(
                f"--minutes is {arguments.minutes:g}: expected {_LEAST_MINUTES:g} or more: memory pools fill at first"
            )
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            crops = pool.submit(draw, _CROPS, _SEED).result()
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # the service is stopped at any end
        off = asyncio.run(soak(arguments.minutes, crops))
    except KeyboardInterrupt:
        return 130
    except (StartError, OSError) as error:
        sys.stderr.write(f"soak: {error}\n")
        return 2
    for each in off:
        sys.stderr.write(f"soak: OFF: {each}\n")
    return 1 if off else 0


if __name__ == "__main__":
    sys.exit(main())
