"""What is known of a simulated Deployment's pods by those who scale it: scrapes, some seconds old, and queries."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

from bench.autoscaling_deployment import Deployment, Replica
from bench.autoscaling_hpa import Seen
from bench.autoscaling_pod import quantile

SCRAPE_SECONDS = 15
"""Between two looks of Prometheus at a pod, and of metrics-server at all of them."""

WAIT_WINDOW = 60.0
"""Seconds that the query for queue waits looks back: rate(clip4str_queue_wait_seconds_bucket[1m])."""

WAIT_PART = 0.95


class _Scrape(NamedTuple):
    time: float
    load_ratio: float
    queued: int
    waits: Sequence[int]


class _Cpu(NamedTuple):
    """`used`: processors, since the look before; None at the first."""

    time: float
    seconds: float
    used: float | None


class Monitoring:
    """Looks at each pod every SCRAPE_SECONDS, at the second that its number gives."""

    def __init__(self, deployment: Deployment, cores: int, wait_buckets: Sequence[float]) -> None:
        self._deployment = deployment
        self._cores = cores
        self._buckets = wait_buckets
        self._loop = asyncio.get_running_loop()
        self._scrapes: dict[Replica, deque[_Scrape]] = {}
        self._cpu: dict[Replica, _Cpu] = {}

    async def watch(self) -> None:
        """Until it is cancelled."""
        second = 0
        while True:
            for replica in self._deployment.replicas:
                if replica.pod is not None and (second + 4 * replica.number) % SCRAPE_SECONDS == 0:
                    self._scrape(replica)
            if second % SCRAPE_SECONDS == 0:
                for replica in self._deployment.replicas:
                    self._meter(replica)
            await asyncio.sleep(1.0)
            second += 1

    def load_ratio(self) -> list[Seen]:
        """clip4str_load_ratio of each pod. One whose process does not run yet is not ready."""
        return self._latest(lambda scrapes: scrapes[-1].load_ratio)

    def queued(self) -> list[Seen]:
        """clip4str_queued_crops of each pod."""
        return self._latest(lambda scrapes: float(scrapes[-1].queued))

    def queue_wait(self) -> list[Seen]:
        """Of each pod, the seconds that 95 of 100 crops waited no longer than; 0 when none came."""
        return self._latest(self._wait)

    def _latest(self, value: Callable[[Sequence[_Scrape]], float]) -> list[Seen]:
        seen = []
        for replica in self._deployment.replicas:
            scrapes = self._scrapes.get(replica)
            seen.append(Seen(value(scrapes) if scrapes else None, unready=replica.pod is None))
        return seen

    def _wait(self, scrapes: Sequence[_Scrape]) -> float:
        since = self._loop.time() - WAIT_WINDOW
        inside = [scrape.waits for scrape in scrapes if scrape.time > since]
        counts = [last - first for first, last in zip(inside[0], inside[-1], strict=True)]
        return quantile(self._buckets, counts, WAIT_PART)

    def cpu(self) -> list[Seen]:
        """Of the processors that each pod asks for, the part it uses."""
        seen = []
        for replica in self._deployment.replicas:
            cpu = self._cpu.get(replica)
            used = None if cpu is None or cpu.used is None else cpu.used / self._cores
            settled = (
                replica.ready_at is not None
                and cpu is not None
                and cpu.time >= replica.ready_at + SCRAPE_SECONDS
            )
            seen.append(Seen(used, unready=replica.pod is None or (used is not None and not settled)))
        return seen

    def _scrape(self, replica: Replica) -> None:
        pod = replica.pod
        if pod is None:
            return
        scrapes = self._scrapes.setdefault(replica, deque(maxlen=int(WAIT_WINDOW) // SCRAPE_SECONDS + 1))
        scrapes.append(_Scrape(self._loop.time(), pod.load_ratio, pod.batcher.queued, tuple(pod.waits)))

    def _meter(self, replica: Replica) -> None:
        pod = replica.pod
        if pod is None:
            return
        now, before = self._loop.time(), self._cpu.get(replica)
        used = None
        if before is not None:
            used = min(self._cores, (pod.cpu_seconds - before.seconds) / (now - before.time))
        self._cpu[replica] = _Cpu(now, pod.cpu_seconds, used)
