"""The measurements of one way: closed loops, turns with the bare model, open loops, recovery."""

from __future__ import annotations

import asyncio
import statistics
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from bench.serve_bare import Bare
from bench.serve_load import Arrivals, Window, closed_loop, open_loop, percentiles, recovery
from bench.serve_report import Alone, Load, Peak, Point, Result
from bench.serve_subjects import Settings, Subject
from bench.serve_tree import Tree
from bench.serve_ways import Verdict, Way

_UNHURRIED_MS = 30_000  # timeout of a closed loop's requests
_CHECKERS = 4  # requests in flight while readings are compared
_TRIAL_CLIENTS = 64
_LOADS = (0.5, 0.8, 1.0, 2.0)
_PATIENCE = 0.5  # seconds that a client waits beyond its deadline
_SEED = 11

_Server: TypeAlias = tuple[Way[Any], Tree]


@dataclass(frozen=True, slots=True)
class Plan:
    """How long and how much. clients: of a closed loop, at most; rounds: turns with the bare model."""

    seconds: float = 10.0
    overload_seconds: float = 120.0
    recovery_seconds: float = 8.0
    clients: int = 128
    rounds: int = 3


async def choose(subject: Subject, bare: Bare, plan: Plan) -> tuple[Settings, list[dict[str, str | float]]]:
    """The settings with the highest throughput, and that of each; no trial where there is no choice."""
    if len(subject.candidates) == 1:
        return subject.candidates[0], []
    speeds: list[float] = []
    for settings in subject.candidates:
        async with _served(subject, settings, bare.material.crops, _UNHURRIED_MS) as (way, tree):
            for _ in range(2):  # some learn how to batch from what they are sent
                window = await closed_loop(way, _TRIAL_CLIENTS, plan.seconds, tree.cpu_seconds)
        speeds.append(_speed(window))
        _say(f"{subject.name} with {_shown(settings)}: {speeds[-1]:.1f} crops/s")
    tried: list[dict[str, str | float]] = [
        {**settings, "crops_per_second": speed}
        for settings, speed in zip(subject.candidates, speeds, strict=True)
    ]
    return subject.candidates[int(np.argmax(speeds))], tried


async def measure(subject: Subject, bare: Bare, plan: Plan, beside: Sequence[Subject] = ()) -> Result:
    """All figures of a way; its closed loops in turns with those of the ways `beside` it.

    Raises StartError when a server does not start.
    """
    settings, tried = await choose(subject, bare, plan)
    crops, texts = bare.material.crops, bare.material.texts
    async with AsyncExitStack() as companions:
        others = [await companions.enter_async_context(_companion(each, bare, plan)) for each in beside]
        async with _served(subject, settings, crops, _UNHURRIED_MS) as (way, tree):
            wrong = await compare(way, texts)
            servers = [(way, tree), *others]
            steps = [await _step(servers, clients, plan) for clients in ladder(plan.clients, way.crops)]
            await companions.aclose()
            points, *theirs = map(list, zip(*steps, strict=True))
            clients = max(points, key=lambda point: point["crops_per_second"])["clients"]
            peak = await _peak(way, clients, bare, plan, tree)
            alone = await _alone(way, bare, plan, tree) if way.crops == 1 else None
            peak_rss = tree.peak_rss()
    best = peak["crops_per_second"]
    pressed = {**settings, **subject.pressed(best)}
    async with _served(subject, pressed, crops, subject.timeout_ms) as (way, tree):
        await closed_loop(way, clients, plan.seconds, tree.cpu_seconds)  # warm
        loads, back = await _loads(way, subject.timeout_ms / 1000, best, plan, tree)
        peak_rss = max(peak_rss, tree.peak_rss())
    return {
        "name": subject.name,
        "title": subject.title,
        "ours": subject.ours,
        "crops": subject.crops,
        "timeout_ms": subject.timeout_ms,
        "settings": dict(settings),
        "candidates": tried,
        "wrong": wrong,
        "points": points,
        "beside": [{"title": each.title, "points": own} for each, own in zip(beside, theirs, strict=True)],
        "peak": peak,
        "alone": alone,
        "loads": loads,
        "recovery_s": back,
        "peak_rss": peak_rss,
    }


def ladder(most: int, crops: int) -> list[int]:
    """1, 2, 4 ... clients; of requests with many crops a sixteenth as many."""
    most = max(1, most if crops == 1 else most // 16)
    return [1 << step for step in range(most.bit_length())]


async def compare(way: Way[Any], texts: Sequence[str]) -> int:
    """Send each request once; how many of its crops were read otherwise than `texts` says, or not at all."""
    numbers = iter(range(len(way.requests)))
    wrong = 0

    async def checker() -> None:
        nonlocal wrong
        for number in numbers:
            expected = texts[number * way.crops : (number + 1) * way.crops]
            try:
                found = way.texts(await way.ask(number))
            except (ValueError, LookupError) as error:
                _say(f"request {number}: {error}")
                found = []
            wrong += len(expected) - sum(a == b for a, b in zip(expected, found, strict=False))

    async with asyncio.TaskGroup() as group:
        for _ in range(_CHECKERS):
            group.create_task(checker())
    return wrong


async def _step(servers: Sequence[_Server], clients: int, plan: Plan) -> list[Point]:
    """The same closed loop of each server; of several in turns, some rounds of them, while the others are stopped."""
    windows: list[list[Window]] = [[] for _ in servers]
    for _ in range(plan.rounds if len(servers) > 1 else 1):
        for (way, tree), own in zip(servers, windows, strict=True):
            with ExitStack() as stopped:
                for _, other in servers:
                    if other is not tree:
                        stopped.enter_context(other.paused())
                own.append(await closed_loop(way, clients, plan.seconds, tree.cpu_seconds))
    points = [_point(clients, own) for own in windows]
    _say(f"  {clients} clients: " + " beside ".join(f"{each['crops_per_second']:.1f}" for each in points))
    return points


def _point(clients: int, windows: Sequence[Window]) -> Point:
    samples = [sample for window in windows for sample in window.samples]
    waited = percentiles(samples)
    return {
        "clients": clients,
        "crops_per_second": statistics.mean(map(_speed, windows)),
        "p50_ms": waited["p50_ms"],
        "p95_ms": waited["p95_ms"],
        "p99_ms": waited["p99_ms"],
        "not_read": sum(each.outcome.verdict is not Verdict.READ for each in samples),
        "server_cpu": statistics.mean(_per_thousand(window.server_cpu, window) for window in windows),
        "client_cpu": statistics.mean(_per_thousand(window.client_cpu, window) for window in windows),
    }


async def _peak(way: Way[Any], clients: int, bare: Bare, plan: Plan, tree: Tree) -> Peak:
    ceilings = [await bare.best(plan.seconds)]
    windows = []
    for _ in range(plan.rounds):
        windows.append(await closed_loop(way, clients, plan.seconds, tree.cpu_seconds))
        ceilings.append(await bare.best(plan.seconds))
    rounds = [
        [before, _speed(window), after]
        for before, window, after in zip(ceilings, windows, ceilings[1:], strict=False)
    ]
    ratio = statistics.median(2 * speed / (before + after) for before, speed, after in rounds)
    _say(f"  at its best {ratio:.2f} of the bare model")
    return {
        "clients": clients,
        "crops_per_second": statistics.median(speed for _, speed, _ in rounds),
        "of_ceiling": ratio,
        "rounds": rounds,
        "server_cpu": statistics.median(_per_thousand(window.server_cpu, window) for window in windows),
        "client_cpu": statistics.median(_per_thousand(window.client_cpu, window) for window in windows),
    }


async def _alone(way: Way[Any], bare: Bare, plan: Plan, tree: Tree) -> Alone:
    bares = [await bare.single(plan.seconds / 2)]
    served = []
    for _ in range(plan.rounds):
        window = await closed_loop(way, 1, plan.seconds / 2, tree.cpu_seconds)
        served.append(1000 * statistics.median(each.seconds for each in window.samples))
        bares.append(await bare.single(plan.seconds / 2))
    added = [
        latency - (before + after) / 2
        for before, latency, after in zip(bares, served, bares[1:], strict=False)
    ]
    return {
        "p50_ms": statistics.median(served),
        "bare_ms": statistics.median(bares),
        "added_ms": statistics.median(added),
    }


async def _loads(
    way: Way[Any], within: float, peak: float, plan: Plan, tree: Tree
) -> tuple[list[Load], float | None]:
    """Open loops from half to twice what the way can do, and how long it then takes to be itself again.

    within: seconds that an answer is good for.
    """
    loads: list[Load] = []
    normal = 0.0
    for load in _LOADS:
        seconds = plan.overload_seconds if load > 1 else 3 * plan.seconds
        before = tree.rss()
        arrivals = await open_loop(way, load * peak / way.crops, seconds, within + _PATIENCE, _SEED)
        loads.append(_load(load, load * peak, arrivals, within, before, tree.rss()))
        _say(f"  {load} of its best offered: {loads[-1]['goodput']:.1f} crops/s in time")
        if load == _LOADS[0]:
            normal = 1.5 * (percentiles(arrivals.of(Verdict.READ))["p99_ms"] or 0) / 1000
    start = asyncio.get_running_loop().time()
    calm = _LOADS[0] * peak / way.crops
    after = await open_loop(way, calm, plan.recovery_seconds, within + _PATIENCE, _SEED)
    return loads, recovery(after, normal, start)


def _load(load: float, offered: float, arrivals: Arrivals, within: float, before: int, after: int) -> Load:
    count = max(1, len(arrivals.samples))
    read, refused = percentiles(arrivals.of(Verdict.READ)), arrivals.of(Verdict.REFUSED)
    said = sum(each.outcome.retry_after for each in refused)
    return {
        "load": load,
        "offered": offered,
        "goodput": arrivals.goodput(within),
        "answered_p50_ms": read["p50_ms"],
        "answered_p99_ms": read["p99_ms"],
        "refused": len(refused) / count,
        "refused_p50_ms": percentiles(refused)["p50_ms"],
        "refused_p99_ms": percentiles(refused)["p99_ms"],
        "retry_after": said / len(refused) if refused else None,
        "held_back": len(arrivals.of(Verdict.HELD_BACK)) / count,
        "late": len(arrivals.of(Verdict.LATE)) / count,
        "failed": len(arrivals.of(Verdict.FAILED)) / count,
        "lag_p99_ms": 1000 * float(np.percentile(arrivals.lags, 99)) if arrivals.lags else 0.0,
        "rss_before": before,
        "rss_after": after,
    }


@asynccontextmanager
async def _companion(subject: Subject, bare: Bare, plan: Plan) -> AsyncIterator[_Server]:
    """A warm server to take turns with; processes that start later are none of it."""
    settings = subject.candidates[0]
    async with _served(subject, settings, bare.material.crops, _UNHURRIED_MS) as (way, tree):
        await closed_loop(way, _TRIAL_CLIENTS, plan.seconds, tree.cpu_seconds)
        tree.settle()
        yield way, tree


@asynccontextmanager
async def _served(
    subject: Subject, settings: Settings, crops: Sequence[bytes], timeout_ms: int
) -> AsyncIterator[_Server]:
    """A way to a server of its own, and that server's processes; none is left at the end."""
    tree = Tree()
    try:
        with subject.start(settings, crops[0]) as make:
            way = make(crops, timeout_ms)
            await way.open()
            try:
                yield way, tree
            finally:
                await way.close()
    finally:
        tree.end()


def _speed(window: Window) -> float:
    return window.crops / (window.ended - window.begun)


def _per_thousand(seconds: float, window: Window) -> float:
    """Seconds per 1,000 crops read."""
    return 1000 * seconds / max(1.0, window.crops)


def _shown(settings: Settings) -> str:
    return " ".join(f"{name}={value}" for name, value in settings.items()) or "its defaults"


def _say(text: str) -> None:
    sys.stderr.write(f"serve: {text}\n")
