"""The pods of a simulated Deployment: made, started, balanced over, drained and gone, in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from random import Random
from typing import Literal

from bench.autoscaling_pod import Pod
from bench.autoscaling_report import Measured

SCHEDULING_SECONDS = 5.0
"""From a pod's making to the start of its process: Kubernetes' own objective for 99 % of pods, images not pulled."""

PROBE_SECONDS = 2.0
"""Between two startup probes: a pod that is ready waits for the next one."""

ENDPOINT_SECONDS = 1.0
"""Until all who balance know of a pod that is ready."""

Balance = Literal["round robin", "least load"]


class Replica:
    """A pod that is not being deleted. `pod`: once its process runs; `ready_at`: since when it gets requests."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.pod: Pod | None = None
        self.ready_at: float | None = None


class Deployment:
    """As many replicas as it was scaled to, in the end."""

    def __init__(self, make: Callable[[], Pod], measured: Measured, balance: Balance, chance: Random) -> None:
        """`make`: a pod whose process starts now, without a warm worker."""
        self.replicas: list[Replica] = []
        self.leaving = 0  # that drain
        self.ready: list[Pod] = []  # that get requests
        self._make = make
        self._measured = measured
        self._balance = balance
        self._chance = chance
        self._loop = asyncio.get_running_loop()
        self._made = 0
        self._turn = 0
        self._tasks: dict[Replica, asyncio.Task[None]] = {}
        self._drains: set[asyncio.Task[None]] = set()

    def begin(self, count: int) -> None:
        """Has so many replicas that are ready and warm already."""
        for _ in range(count):
            replica = self._added()
            replica.pod = self._make()
            for _ in range(self._measured["workers"]):
                replica.pod.add_runner()
            self._serve(replica, replica.pod)

    def scale(self, count: int) -> None:
        """Makes replicas, or deletes some: those that are not ready first, then the youngest."""
        while len(self.replicas) < count:
            replica = self._added()
            self._tasks[replica] = asyncio.create_task(self._start(replica))
        while len(self.replicas) > count:
            self._delete(max(self.replicas, key=_first_to_go))

    def next(self) -> Pod:
        """The pod that gets the next request."""
        if self._balance == "least load":
            return min(self.ready, key=lambda pod: pod.items)
        self._turn += 1
        return self.ready[self._turn % len(self.ready)]

    async def close(self) -> None:
        """Ends when everything that was accepted is answered."""
        self.scale(0)
        await asyncio.gather(*self._drains)

    def _added(self) -> Replica:
        replica = Replica(self._made)
        self._made += 1
        self.replicas.append(replica)
        return replica

    def _serve(self, replica: Replica, pod: Pod) -> None:
        replica.ready_at = self._loop.time()
        self.ready.append(pod)

    async def _start(self, replica: Replica) -> None:
        await asyncio.sleep(SCHEDULING_SECONDS)
        pod = replica.pod = self._make()
        start = self._chance.randrange(len(self._measured["ready_s"]))
        ready, complete = self._measured["ready_s"][start], self._measured["complete_s"][start]
        probed = self._chance.uniform(0.0, PROBE_SECONDS)
        await asyncio.sleep(ready)
        pod.add_runner()
        await asyncio.sleep(probed + ENDPOINT_SECONDS)
        self._serve(replica, pod)
        await asyncio.sleep(max(0.0, complete - ready - probed - ENDPOINT_SECONDS))
        for _ in range(self._measured["workers"] - 1):
            pod.add_runner()

    def _delete(self, replica: Replica) -> None:
        """Its preStop hook has it serve until all who balance know, so it goes out of their turns at once."""
        self.replicas.remove(replica)
        if (start := self._tasks.pop(replica, None)) is not None:
            start.cancel()
        if replica.pod is None:
            return
        if replica.ready_at is not None:
            self.ready.remove(replica.pod)
        self.leaving += 1
        drain = asyncio.create_task(self._drain(replica.pod))
        self._drains.add(drain)
        drain.add_done_callback(self._drains.discard)

    async def _drain(self, pod: Pod) -> None:
        await pod.drain()
        self.leaving -= 1


def _first_to_go(replica: Replica) -> tuple[bool, int]:
    return replica.ready_at is None, replica.number
