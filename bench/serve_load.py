"""Load on a way: clients that wait for their answer before they ask again, and clients that do not."""

from __future__ import annotations

import asyncio
import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bench.serve_ways import Outcome, Verdict, Way

_RAMP = 0.2  # of a window's length: what comes before it, so that all clients are at work


@dataclass(frozen=True, slots=True)
class Sample:
    """A request: when it was sent or, in an open loop, due, and when it came to what. Times of the event loop."""

    begun: float
    ended: float
    outcome: Outcome

    @property
    def seconds(self) -> float:
        """What its client waited."""
        return self.ended - self.begun


@dataclass(frozen=True, slots=True)
class Window:
    """A stretch of a closed loop: its requests, those its edges cut included, and what it cost in CPU seconds."""

    begun: float
    ended: float
    samples: Sequence[Sample]
    server_cpu: float
    client_cpu: float

    @property
    def crops(self) -> float:
        """Crops read in it; of a request that an edge cuts, the part that the time inside is of the whole.

        Answers come in bunches, a batch's at a time: where the edges fall among them must not matter.
        """
        return sum(
            sample.outcome.crops * self._inside(sample) / sample.seconds
            for sample in self.samples
            if sample.seconds > 0
        )

    def _inside(self, sample: Sample) -> float:
        return max(0.0, min(self.ended, sample.ended) - max(self.begun, sample.begun))


async def closed_loop(
    way: Way[Any], concurrency: int, seconds: float, server_cpu: Callable[[], float]
) -> Window:
    """`concurrency` clients, each of which asks again as soon as it has its answer.

    server_cpu: CPU seconds spent by the server so far.
    """
    loop = asyncio.get_running_loop()
    begun = loop.time() + _RAMP * seconds
    ended = begun + seconds
    samples: list[Sample] = []

    async def client() -> None:
        while (sent := loop.time()) < ended:
            outcome = await way.send()
            samples.append(Sample(sent, loop.time(), outcome))

    async def meter() -> tuple[float, float]:
        await asyncio.sleep(begun - loop.time())
        server, client = server_cpu(), time.process_time()
        await asyncio.sleep(ended - loop.time())
        return server_cpu() - server, time.process_time() - client

    async with asyncio.TaskGroup() as group:
        metered = group.create_task(meter())
        for _ in range(concurrency):
            group.create_task(client())
    server, own = metered.result()
    inside = [sample for sample in samples if sample.ended >= begun]
    return Window(begun, ended, inside, server, own)


@dataclass(frozen=True, slots=True)
class Arrivals:
    """What an open loop came to. `lags`: how much later than due each request was sent, in seconds."""

    seconds: float
    samples: Sequence[Sample]
    lags: Sequence[float]

    def goodput(self, within: float) -> float:
        """Crops per second that were read `within` so many seconds of when they were due."""
        return sum(each.outcome.crops for each in self.samples if each.seconds <= within) / self.seconds

    def of(self, verdict: Verdict) -> list[Sample]:
        """The requests that came to this."""
        return [sample for sample in self.samples if sample.outcome.verdict is verdict]


async def open_loop(way: Way[Any], rate: float, seconds: float, patience: float, seed: int) -> Arrivals:
    """Requests that come as they come, `rate` a second on average (Poisson), whatever became of those before.

    Each is given up `patience` seconds after it was due.
    """
    loop = asyncio.get_running_loop()
    start = loop.time()
    samples: list[Sample] = []
    lags: list[float] = []

    async def client(due: float) -> None:
        lags.append(loop.time() - due)
        try:
            async with asyncio.timeout_at(due + patience):
                outcome = await way.send()
        except TimeoutError:
            outcome = Outcome(Verdict.LATE)
        samples.append(Sample(due, loop.time(), outcome))

    async with asyncio.TaskGroup() as group:
        for offset in _poisson(rate, seconds, seed):
            delay = start + offset - loop.time()
            if delay > 0:
                await asyncio.sleep(delay)
            group.create_task(client(start + offset))
    return Arrivals(seconds, samples, lags)


def _poisson(rate: float, seconds: float, seed: int) -> Iterator[float]:
    gaps = np.random.default_rng(seed)
    times = itertools.accumulate(gaps.exponential(1 / rate) for _ in itertools.count())
    return itertools.takewhile(lambda at: at < seconds, times)


def recovery(arrivals: Arrivals, normal: float, start: float) -> float | None:
    """Seconds from `start` until requests were read within `normal` seconds again; None: not while this lasted.

    That is when, of the requests due in the second that follows, 95 of 100 are.
    """
    wait = 0.0
    while wait + 1 <= arrivals.seconds:
        due = [each for each in arrivals.samples if start + wait <= each.begun < start + wait + 1]
        good = sum(each.outcome.verdict is Verdict.READ and each.seconds <= normal for each in due)
        if due and good >= 0.95 * len(due):
            return wait
        wait += 0.1
    return None


def percentiles(samples: Sequence[Sample]) -> dict[str, float | None]:
    """p50_ms, p95_ms and p99_ms of what clients waited; None without samples."""
    names = ("p50_ms", "p95_ms", "p99_ms")
    if not samples:
        return dict.fromkeys(names)
    waited = [1000 * sample.seconds for sample in samples]
    return dict(zip(names, np.percentile(waited, [50, 95, 99]).tolist(), strict=True))


def median(values: Sequence[float]) -> float:
    """Of one or more."""
    return statistics.median(values)
