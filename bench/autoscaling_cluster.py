"""A simulated run: traffic for a Deployment, and what scales it. In virtual time, all chance from one seed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from random import Random
from typing import Literal, NamedTuple

import numpy as np

from bench.autoscaling_deployment import Balance, Deployment
from bench.autoscaling_hpa import DEFAULT, SYNC_SECONDS, Autoscaler, Behavior, by_average, by_pods
from bench.autoscaling_ledger import LOOK_SECONDS, Ledger
from bench.autoscaling_monitoring import Monitoring
from bench.autoscaling_pod import Pod, Service, defaults
from bench.autoscaling_report import Measured
from bench.virtual_time import run

QUEUE_CROPS = 1024
"""The service's default."""

_AFTER = 0.1  # seconds after the traffic's end: the last look at the pods is then over


class Trigger(NamedTuple):
    """A metric and its target for each pod: a ratio, seconds, crops, or a part of the processors that a pod asks for.

    `external`: the autoscaler is told the sum over the pods, as by KEDA, not what each pod has.
    """

    metric: Literal["load_ratio", "queue_wait", "queued", "cpu"]
    target: float
    external: bool = False


@dataclass(frozen=True, slots=True)
class Policy:
    """How a Deployment is run and scaled. `triggers`: none, and it stays as it begins. `least`, `most`: replicas."""

    title: str
    triggers: Sequence[Trigger] = ()
    behavior: Behavior = DEFAULT
    least: int = 2
    most: int = 12
    queue_crops: int = QUEUE_CROPS
    balance: Balance = "round robin"


@dataclass(frozen=True, slots=True)
class Traffic:
    """Requests with one crop. `rate`: crops per second at a time; `timeout`: of each request, in seconds."""

    rate: Callable[[float], float]
    seconds: float
    timeout: float


def play(
    measured: Measured,
    policy: Policy,
    traffic: Traffic,
    replicas: int,
    seed: int,
    times: float = 1.0,
    watch: Callable[[Deployment], None] | None = None,
) -> Ledger:
    """Plays the traffic on so many warm replicas to begin with.

    Args:
        times: a batch takes so many times what it was measured to take.
        watch: is shown the pods four times a second.
    """
    return run(_Play(measured, policy, traffic, seed, times).whole(replicas, watch))


class _Play:
    def __init__(self, measured: Measured, policy: Policy, traffic: Traffic, seed: int, times: float) -> None:
        self._measured = measured
        self._policy = policy
        self._traffic = traffic
        self._seed = seed
        self._service = Service(measured["speed"], times)
        self._chance = Random(seed)  # noqa: S311 (a simulation's)
        self._ledger = Ledger(traffic.timeout)

    async def whole(self, replicas: int, watch: Callable[[Deployment], None] | None) -> Ledger:
        policy, measured = self._policy, self._measured
        deployment = Deployment(self._pod, measured, policy.balance, self._chance)
        deployment.begin(replicas)
        monitoring = Monitoring(deployment, measured["cores"], measured["wait_buckets_s"])
        beside = [monitoring.watch(), self._look(deployment)]
        if policy.triggers:
            beside.append(self._scale(deployment, monitoring))
        if watch is not None:
            beside.append(_watch(deployment, watch))
        tasks = [asyncio.create_task(each) for each in beside]
        await self._send(deployment)
        for task in tasks:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task  # one that failed says so
        await deployment.close()
        return self._ledger

    def _pod(self) -> Pod:
        return Pod(
            self._service,
            defaults(self._policy.queue_crops),
            self._measured["wait_buckets_s"],
            self._ledger,
            self._chance,
        )

    async def _send(self, deployment: Deployment) -> None:
        loop, ledger, timeout = asyncio.get_running_loop(), self._ledger, self._traffic.timeout
        for at in arrivals(self._traffic, self._seed):
            delay = at - loop.time()
            if delay > 0:
                await asyncio.sleep(delay)
            ledger.asked()
            deployment.next().ask(loop.time(), timeout)
        await asyncio.sleep(self._traffic.seconds + _AFTER - loop.time())

    async def _look(self, deployment: Deployment) -> None:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            ready = deployment.ready
            self._ledger.look(
                asyncio.get_running_loop().time(),
                replicas=len(deployment.replicas),
                ready=len(ready),
                pods=len(deployment.replicas) + deployment.leaving,
                load_ratio=sum(pod.load_ratio for pod in ready) / len(ready),
            )

    async def _scale(self, deployment: Deployment, monitoring: Monitoring) -> None:
        policy, loop = self._policy, asyncio.get_running_loop()
        autoscaler = Autoscaler(policy.least, policy.most, policy.behavior)
        while True:
            await asyncio.sleep(SYNC_SECONDS)
            proposals = [proposal(trigger, deployment, monitoring) for trigger in policy.triggers]
            deployment.scale(autoscaler.decide(loop.time(), len(deployment.replicas), proposals))


def proposal(trigger: Trigger, deployment: Deployment, monitoring: Monitoring) -> int | None:
    """How many pods there should be by one metric."""
    current = len(deployment.replicas)
    seen = getattr(monitoring, trigger.metric)()
    if not trigger.external:
        return by_pods(current, seen, trigger.target)
    known = [each.value for each in seen if each.value is not None]
    return by_average(current, sum(known) if known else None, trigger.target)


def arrivals(traffic: Traffic, seed: int) -> Iterator[float]:
    """The times of a Poisson process whose rate changes from second to second; the same for every policy."""
    chance = np.random.default_rng(seed)
    for second in range(round(traffic.seconds)):
        count = chance.poisson(traffic.rate(second + 0.5))
        yield from (second + np.sort(chance.random(count))).tolist()


async def _watch(deployment: Deployment, watch: Callable[[Deployment], None]) -> None:
    while True:
        await asyncio.sleep(0.25)
        watch(deployment)
