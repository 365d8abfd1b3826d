"""A pod of the simulation: the service's own batcher in virtual time, and runners as fast as the measured ones.

Admission, the queue, the forecast, the sealing of batches: all that decides who is read, refused or late is the code
that the service runs (`clip4str_service.batcher`). Only the model is played: a batch takes as long as such ones took.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections.abc import Sequence
from math import exp
from random import Random
from typing import Protocol

from bench.autoscaling_report import Speed
from clip4str_service.batcher import (
    Batch,
    Batcher,
    BatcherClosedError,
    Bounds,
    DropReason,
    Place,
    RefusedError,
)

_CROP_BYTES = 2_677  # an encoded word crop; the queue's bound in bytes is far away
_MAX_BATCH, _MAX_DELAY, _MAX_BYTES = 64, 0.002, 256 << 20  # the service's defaults
_MEMORY = 1.0  # seconds: over which refusals are averaged


def defaults(queue_crops: int) -> Bounds:
    """Those of a service with the default settings, but for CLIP4STR_QUEUE_CROPS."""
    return Bounds(_MAX_BATCH, _MAX_DELAY, queue_crops, _MAX_BYTES)


class Book(Protocol):
    """What became of each request."""

    def read(self, seconds: float) -> None:
        """It was answered after so many seconds."""

    def late(self) -> None:
        """It was accepted, but its deadline came before its turn."""

    def refused(self) -> None:
        """It was not accepted."""


class Service:
    """How long batches take: seconds(n) = per_item * n + per_batch, spread as those of about that size were.

    `times`: all of it so many times as long, as with a larger model.
    """

    def __init__(self, speed: Speed, times: float = 1.0) -> None:
        self.speed = speed
        self._times = times
        self._upper = [spread["largest"] for spread in speed["spreads"]]
        self._quantiles = [spread["quantiles"] for spread in speed["spreads"]]

    def expected(self, crops: int) -> float:
        """Seconds of such a batch on average, while nothing is refused."""
        return self._times * (self.speed["per_item_s"] * crops + self.speed["per_batch_s"])

    def seconds(self, crops: int, refusals: float, chance: Random) -> float:
        """Of one batch, while so many requests a second are refused: that takes processor time, too."""
        group = min(bisect_left(self._upper, crops), len(self._upper) - 1)
        factor = _drawn(self._quantiles[group], chance)
        return self.expected(crops) * factor * (1 + self.speed["slower_per_refusal_s"] * refusals)


def _drawn(quantiles: Sequence[float], chance: Random) -> float:
    """A value by its distribution, given by equally spaced quantiles from the least to the most."""
    at = chance.random() * (len(quantiles) - 1)
    low, high = quantiles[int(at)], quantiles[int(at) + 1]
    return low + (high - low) * (at - int(at))


class _Request:
    """One crop, and who is told of its outcome."""

    __slots__ = ("_asked", "_pod")

    def __init__(self, pod: Pod, asked: float) -> None:
        self._pod = pod
        self._asked = asked

    def settled(self, place: Place[None, None]) -> None:
        """As the batcher's owner."""
        self._pod.settled(self._asked, place)


class Pod:
    """One replica once its process runs. Made on the event loop of the simulation."""

    def __init__(
        self, service: Service, bounds: Bounds, wait_buckets: Sequence[float], book: Book, chance: Random
    ) -> None:
        """`wait_buckets`: upper bounds of the histogram of queue waits, in seconds."""
        self.capacity = bounds.max_items
        self.cpu_seconds = 0.0
        self.waits = [0] * (len(wait_buckets) + 1)  # crops by the bucket of their wait; the last is open
        self._loop = asyncio.get_running_loop()
        self._service = service
        self._buckets = wait_buckets
        self._book = book
        self._chance = chance
        self._refusals = 0.0  # a second, lately
        self._refused_at = 0.0
        self._runners: list[asyncio.Task[None]] = []
        self.batcher: Batcher[None, None] = Batcher(bounds, self)

    @property
    def items(self) -> int:
        """Crops queued or in flight."""
        return self.batcher.items

    @property
    def load_ratio(self) -> float:
        """As the service's gauge."""
        return self.items / self.capacity

    def add_runner(self) -> None:
        """A worker is warm."""
        self._runners.append(asyncio.create_task(self._run(len(self._runners))))

    def ask(self, now: float, timeout: float) -> None:
        """A request with one crop comes in, that is of use for `timeout` seconds."""
        try:
            admission = self.batcher.admit(
                [_CROP_BYTES], urgent=True, deadline=now + timeout, tenant="", owner=_Request(self, now)
            )
        except RefusedError:
            self._refusals = self._recent(now) + 1 / _MEMORY
            self._refused_at = now
            self.cpu_seconds += self._service.speed["cpu_per_refusal_s"]
            self._book.refused()
        else:
            self.batcher.submit(admission.places[0], None, None)

    def settled(self, asked: float, place: Place[None, None]) -> None:
        """A request has its outcome."""
        if isinstance(place.outcome, Exception):
            self._book.late()
        else:
            self._book.read(self._loop.time() - asked + self._service.speed["besides_s"])

    async def drain(self) -> None:
        """Takes no more; returns when all that was accepted is answered."""
        self.batcher.close()
        await self.batcher.drained()
        self.batcher.stop()
        await asyncio.gather(*self._runners)

    def sealed(self, batch: Batch[None, None]) -> None:
        """As the batcher's observer: a batch begins."""
        for work in batch.works:
            self.waits[bisect_left(self._buckets, batch.sealed_at - work.submitted_at)] += 1

    def dropped(self, reason: DropReason) -> None:
        """As the batcher's observer; the request itself is told, too."""

    def released(self, item: None) -> None:
        """As the batcher's observer; a crop is nothing here."""

    async def _run(self, name: int) -> None:
        speed = self._service.speed
        while True:
            try:
                batch = await self.batcher.take(name)
            except BatcherClosedError:
                return
            crops = len(batch)
            refusals = self._recent(self._loop.time())
            await asyncio.sleep(self._service.seconds(crops, refusals, self._chance))
            self.cpu_seconds += speed["cpu_per_batch_s"] + speed["cpu_per_crop_s"] * crops
            self.batcher.finish(batch, [None] * crops)

    def _recent(self, now: float) -> float:
        """Refusals a second, those of longer ago counted less."""
        return self._refusals * exp((self._refused_at - now) / _MEMORY)


def quantile(upper: Sequence[float], counts: Sequence[int], part: float) -> float:
    """As Prometheus' histogram_quantile: the value that `part` of all do not exceed, by the counts of buckets.

    0 without any: as a query that ends with `or vector(0)`. Above the last bound it is that bound.
    """
    rank = part * sum(counts)
    below = 0
    for low, high, count in zip([0.0, *upper], upper, counts, strict=False):
        if count and below + count >= rank:
            return low + (high - low) * (rank - below) / count
        below += count
    return upper[-1] if rank else 0.0
