"""Measure of the real service what the simulation needs: batches under each load, processor time, starts."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from statistics import median
from typing import NamedTuple, TypeVar

import httpx
from prometheus_client.parser import text_string_to_metric_families

from bench.autoscaling_fit import FitError, Observed, speed
from bench.autoscaling_report import Closed, Measured, Open
from bench.autoscaling_spans import EXPORT_SECONDS, Collector, collecting
from bench.serve_bare import draw
from bench.serve_load import Arrivals, Window, closed_loop, open_loop, percentiles
from bench.serve_tree import Tree, machine_cpu_seconds, orphans_adopted
from bench.serve_ways import HttpWay, Verdict, rest
from samples.demo import RunningService, StartError, running_service

T = TypeVar("T")

CORES = len(os.sched_getaffinity(0))
_CROPS, _SEED = 1024, 2026
_CLIENTS = (1, 2, 4, 8, 16, 32, 64, 128)
_LOADS = (0.5, 0.8, 0.95, 1.1, 1.5, 2.5)  # of the best closed loop
_TIMEOUT_MS, _UNHURRIED_MS = 1000, 30_000
_PATIENCE = 0.5  # seconds that a client waits beyond its deadline
_COMPLETE_SECONDS = 120.0
_QUIET, _TRIES = (
    0.1,
    3,
)  # part of the processors: where others use more, it is measured again, so often in all


@dataclass(frozen=True, slots=True)
class Plan:
    """Seconds of each closed and each open loop; the part of their requests that is traced; how many starts."""

    closed_seconds: float = 5.0
    open_seconds: float = 12.0
    traced: float = 0.1
    starts: int = 4


class _Counted(NamedTuple):
    crops: float
    batches: float
    refused: float
    workers: int
    buckets: list[float]


def measure(plan: Plan) -> Measured:
    """About three minutes on two processors. Raises StartError, FitError."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        crops = pool.submit(draw, _CROPS, _SEED).result()
        machine = pool.submit(_machine).result()
    measured = asyncio.run(_loads(plan, crops, machine))
    for number in range(plan.starts):
        ready, complete = _start(measured["workers"])
        _say(f"start {number + 1}: ready after {ready:.1f} s, complete after {complete:.1f} s")
        measured["ready_s"].append(ready)
        measured["complete_s"].append(complete)
    return measured


def _machine() -> dict[str, str | int]:
    """In a process of its own: it imports the model's libraries."""
    from clip4str.benchmark.machine import this_machine
    from clip4str.hardware import fit_threads, resolve_device

    fit_threads()
    return asdict(this_machine(resolve_device(None)))


async def _loads(plan: Plan, crops: Sequence[bytes], machine: dict[str, str | int]) -> Measured:
    async with AsyncExitStack() as stack:
        stack.enter_context(orphans_adopted())
        collector = stack.enter_context(collecting())
        tree = Tree()
        traces = {
            "CLIP4STR_OTLP_ENDPOINT": collector.address,
            "CLIP4STR_OTLP_SAMPLE_RATIO": str(plan.traced),
            "CLIP4STR_LOG_LEVEL": "warning",
        }
        service = stack.enter_context(running_service(None, **traces))
        patient = rest(service.http, crops, _UNHURRIED_MS)
        stack.push_async_callback(patient.close)
        await closed_loop(
            patient, _CLIENTS[-1], plan.closed_seconds, tree.cpu_seconds
        )  # all workers come, warm
        watch = _Watch(service, tree, collector)
        closed = [await watch.closed(patient, clients, plan.closed_seconds) for clients in _CLIENTS]
        capacity = max(each["crops_per_second"] for each in closed)
        hurried = rest(service.http, crops, _TIMEOUT_MS)
        stack.push_async_callback(hurried.close)
        opened = [
            await watch.open(hurried, load * capacity, plan.open_seconds, number)
            for number, load in enumerate(_LOADS)
        ]
        await asyncio.sleep(EXPORT_SECONDS)
        windows = watch.observed()
        counted = await _counted(service)
        alone = [batch.seconds for batch in windows[0].traced if batch.crops == 1]
        if not alone or closed[0]["p50_ms"] is None:
            raise FitError("one client's batches were not traced; measure for longer")
        async with httpx.AsyncClient() as client:
            model = (await client.get(f"{service.http}/v1/models")).json()["models"][0]
    besides = max(0.0, closed[0]["p50_ms"] / 1000 - median(alone))
    return {
        "machine": machine,
        "model": {name: model[name] for name in ("name", "revision", "dtype", "device")},
        "workers": counted.workers,
        "cores": CORES,
        "capacity": capacity,
        "others": round(max(0.0, watch.others), 4),
        "timeout_s": _TIMEOUT_MS / 1000,
        "wait_buckets_s": counted.buckets,
        "ready_s": [],
        "complete_s": [],
        "speed": speed(windows, besides),
        "closed": closed,
        "open": opened,
    }


class _Watch:
    """Loops, and what the service counted and traced meanwhile."""

    def __init__(self, service: RunningService, tree: Tree, collector: Collector) -> None:
        self._service = service
        self._tree = tree
        self._collector = collector
        self._windows: list[tuple[float, float, Observed]] = []
        self.others = 0.0  # part of the processors that they used, in the worst window

    async def closed(self, way: HttpWay, clients: int, seconds: float) -> Closed:
        """A closed loop."""
        window: Window = await self._during(
            lambda: closed_loop(way, clients, seconds, self._tree.cpu_seconds)
        )
        waited = percentiles(window.samples)
        rate = window.crops / (window.ended - window.begun)
        _say(f"{clients} clients: {rate:.1f} crops/s, p99 {waited['p99_ms']:.0f} ms")
        return {
            "clients": clients,
            "crops_per_second": rate,
            "p50_ms": waited["p50_ms"],
            "p99_ms": waited["p99_ms"],
        }

    async def open(self, way: HttpWay, rate: float, seconds: float, seed: int) -> Open:
        """An open loop."""
        patience = _TIMEOUT_MS / 1000 + _PATIENCE
        arrivals: Arrivals = await self._during(lambda: open_loop(way, rate, seconds, patience, seed))
        read = percentiles(arrivals.of(Verdict.READ))
        asked = len(arrivals.samples)
        refused = len(arrivals.of(Verdict.REFUSED)) / asked
        in_time = arrivals.goodput(_TIMEOUT_MS / 1000)
        if arrivals.of(Verdict.FAILED):
            raise FitError(f"{len(arrivals.of(Verdict.FAILED))} requests failed at {rate:.0f} a second")
        _say(f"{rate:.0f} a second: {in_time:.1f} in time, {refused:.1%} refused")
        return {
            "offered": asked / seconds,
            "in_time": in_time,
            "p50_ms": read["p50_ms"],
            "p99_ms": read["p99_ms"],
            "refused": refused,
            "late": 1 - refused - in_time * seconds / asked,
        }

    async def _during(self, loop: Callable[[], Awaitable[T]]) -> T:
        machine, client = machine_cpu_seconds(), time.process_time()
        before, cpu, began = await _counted(self._service), self._tree.cpu_seconds(), time.time()
        result = await loop()
        ended, after = time.time(), await _counted(self._service)
        observed = Observed(
            seconds=ended - began,
            crops=after.crops - before.crops,
            batches=after.batches - before.batches,
            refused=after.refused - before.refused,
            cpu=self._tree.cpu_seconds() - cpu,
            traced=(),
        )
        ours = observed.cpu + time.process_time() - client
        others = (machine_cpu_seconds() - machine - ours) / (observed.seconds * CORES)
        self.others = max(self.others, others)
        self._windows.append((began, ended, observed))
        return result

    def observed(self) -> list[Observed]:
        """All loops, with their batches: to be asked for when those have been exported."""
        found = []
        for began, ended, each in self._windows:
            traced = [batch for batch in self._collector.batches if began <= batch.sealed_at < ended]
            found.append(Observed(each.seconds, each.crops, each.batches, each.refused, each.cpu, traced))
        return found


async def _counted(service: RunningService) -> _Counted:
    """The service's own counters."""
    async with httpx.AsyncClient() as client:
        text = (await client.get(f"{service.metrics}/metrics")).text
    sums: dict[tuple[str, str], float] = {}
    buckets = []
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            label = sample.labels.get("outcome") or sample.labels.get("reason") or ""
            sums[sample.name, label] = sums.get((sample.name, label), 0.0) + sample.value
            if sample.name == "clip4str_queue_wait_seconds_bucket" and sample.labels["le"] != "+Inf":
                buckets.append(float(sample.labels["le"]))
    return _Counted(
        crops=sums.get(("clip4str_crops_total", "ok"), 0.0),
        batches=sums.get(("clip4str_batch_size_count", ""), 0.0),
        refused=sums.get(("clip4str_dropped_total", "shed"), 0.0),
        workers=round(sums["clip4str_workers", ""]),
        buckets=buckets,
    )


def _start(workers: int) -> tuple[float, float]:
    """Seconds from the start of the process until it is ready, and until so many workers are. Raises StartError."""
    began = time.monotonic()
    with running_service() as service:
        ready = time.monotonic() - began
        while (spent := time.monotonic() - began) < _COMPLETE_SECONDS:
            if asyncio.run(_counted(service)).workers >= workers:
                return ready, spent
            time.sleep(0.2)
    raise StartError(f"not {workers} workers after {_COMPLETE_SECONDS:g} s")


def _say(text: str) -> None:
    sys.stderr.write(f"autoscaling: {text}\n")
