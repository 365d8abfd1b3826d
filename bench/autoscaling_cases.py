"""What is simulated: four kinds of traffic, three ways to scale for them, and what else the spike was tried with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import cos, pi
from statistics import mean

from bench.autoscaling_cluster import Policy, Traffic, Trigger, play
from bench.autoscaling_deployment import Deployment
from bench.autoscaling_hpa import DEFAULT, Behavior, Rules
from bench.autoscaling_hpa import Policy as Step
from bench.autoscaling_ledger import Ledger
from bench.autoscaling_monitoring import WAIT_PART
from bench.autoscaling_pod import Pod, quantile
from bench.autoscaling_report import Level, Measured, Open, Run

SEED = 2026
TIMEOUT = 1.0  # seconds: the deadline of a request

QUEUE_CROPS = 256
LOAD_RATIO = 0.08
QUEUE_WAIT = 0.25
BEHAVIOR = Behavior(
    up=Rules(0.0, (Step("Percent", 100, 60.0), Step("Pods", 4, 60.0))),
    down=Rules(300.0, (Step("Percent", 10, 60.0), Step("Pods", 1, 60.0))),
)
"""The chart's defaults: these four."""

OURS = Policy(
    "load ratio and queue wait",
    (Trigger("load_ratio", LOAD_RATIO), Trigger("queue_wait", QUEUE_WAIT)),
    BEHAVIOR,
    queue_crops=QUEUE_CROPS,
)
POLICIES: Mapping[str, Policy] = {
    "ours": OURS,
    "cpu": replace(OURS, title="CPU, 70 %", triggers=(Trigger("cpu", 0.7),), behavior=DEFAULT),
    "queue": replace(
        OURS,
        title="queue length, 64 crops a pod",
        triggers=(Trigger("queued", 64.0, external=True),),
        behavior=DEFAULT,
    ),
}
"""The others with the behavior that Kubernetes has where nothing is said: they never ask for too much at once."""

_LOAD = Trigger("load_ratio", LOAD_RATIO)
VARIANTS: Mapping[str, Policy] = {
    "fixed": replace(OURS, title="not scaled: 2 pods", triggers=()),
    "late": replace(
        OURS, title="load ratio 0.7 of 1,024 crops", triggers=(Trigger("load_ratio", 0.7),), queue_crops=1024
    ),
    "half": replace(OURS, title="load ratio 0.5 of 256 crops", triggers=(Trigger("load_ratio", 0.5),)),
    "quarter": replace(OURS, title="load ratio 0.25 of 256 crops", triggers=(Trigger("load_ratio", 0.25),)),
    "load": replace(OURS, title="load ratio alone", triggers=(_LOAD,)),
    "least": replace(OURS, title="the same, least load instead of round robin", balance="least load"),
    "default": replace(OURS, title="the same, default behavior", behavior=DEFAULT),
    "keda": replace(
        OURS,
        title="the same, by KEDA",
        triggers=tuple(each._replace(external=True) for each in OURS.triggers),
    ),
    "four": replace(OURS, title="the same, at least 4 pods", least=4),
    "six": replace(OURS, title="the same, at least 6 pods", least=6),
}
"""What the spike is tried with besides."""


@dataclass(frozen=True, slots=True)
class Case:
    """Traffic in units of what one pod can read at best, and how many pods it begins with."""

    title: str
    rate: Callable[[float], float]
    seconds: float
    replicas: int = 2


def _ramp(time: float) -> float:
    return 1.0 + 3.0 * min(1.0, time / 480)


def _spike(time: float) -> float:
    return 4.0 if 120 <= time < 300 else 1.0


def _daily(time: float) -> float:
    return 0.4 + 3.1 * ((1 - cos(2 * pi * time / 1200)) / 2) ** 2


CASES: Mapping[str, Case] = {
    "steady": Case("Steady: two and a half pods' worth", lambda _: 2.5, 600, 4),
    "ramp": Case("Ramp: from one pod's worth to four in eight minutes", _ramp, 600),
    "spike": Case("Spike: one pod's worth, four for three minutes", _spike, 720),
    "daily": Case("Daily: a day's curve, squeezed into twenty minutes", _daily, 1200),
}

SLOW_TIMES, SLOW_TIMEOUT = 10.0, 10.0
"""A larger model: batches take so many times as long, and requests have so many seconds."""

SLOW: Mapping[str, Policy] = {
    "load": replace(OURS, title="load ratio alone", triggers=(_LOAD,)),
    "ours": OURS,
}


LEVELS = (0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.2)
_LEVEL_SECONDS = 120.0
_ALONE = replace(OURS, triggers=(), least=1)  # one pod that stays one


def case(measured: Measured, name: str, policy: str) -> Run:
    """A policy in a case."""
    return _played(measured, POLICIES[policy], CASES[name]).run(name, policy)


def variant(measured: Measured, policy: str) -> Run:
    """What else the spike is tried with."""
    return _played(measured, VARIANTS[policy], CASES["spike"]).run("spike", policy)


def slow(measured: Measured, policy: str) -> Run:
    """The spike for a larger model."""
    ledger = _played(measured, SLOW[policy], CASES["spike"], SLOW_TIMES, SLOW_TIMEOUT)
    return ledger.run("slow", policy)


def pod(measured: Measured, number: int) -> Open:
    """One pod under the load of the open loop of this number."""
    real = measured["open"][number]
    seconds = 60.0
    traffic = Traffic(lambda _: real["offered"], seconds, measured["timeout_s"])
    run = play(measured, replace(_ALONE, queue_crops=1024), traffic, 1, SEED).run("", "")
    in_time = run["requests"] / seconds * (1 - run["refused"] - run["late"])
    return {
        "offered": run["requests"] / seconds,
        "in_time": in_time,
        "p50_ms": run["p50_ms"],
        "p99_ms": run["p99_ms"],
        "refused": run["refused"],
        "late": run["late"],
    }


def level(measured: Measured, utilisation: float) -> Level:
    """One pod under a constant load."""
    rate = utilisation * measured["capacity"]
    items: list[int] = []
    pods: list[Pod] = []

    def watch(deployment: Deployment) -> None:
        pods[:] = deployment.ready
        items.append(pods[0].items)

    traffic = Traffic(lambda _: rate, _LEVEL_SECONDS, TIMEOUT)
    run = play(measured, _ALONE, traffic, 1, SEED, watch=watch).run("", "")
    return {
        "utilisation": utilisation,
        "items": round(mean(items), 2),
        "wait_p95_ms": round(1000 * quantile(measured["wait_buckets_s"], pods[0].waits, WAIT_PART), 1),
        "cpu": round(min(1.0, pods[0].cpu_seconds / _LEVEL_SECONDS / measured["cores"]), 4),
        "p99_ms": run["p99_ms"],
        "refused": run["refused"],
    }


def _played(
    measured: Measured, policy: Policy, case: Case, times: float = 1.0, timeout: float = TIMEOUT
) -> Ledger:
    unit = measured["capacity"] / times
    traffic = Traffic(lambda time: unit * case.rate(time), case.seconds, timeout)
    return play(measured, policy, traffic, max(case.replicas, policy.least), SEED, times)
