"""A running service as its surroundings see it: processes, metrics, health."""

import time
from collections.abc import Callable
from pathlib import Path

import httpx
from prometheus_client.parser import text_string_to_metric_families

from samples.demo import RunningService

FRONT_END, WORKER = "clip4str_service.frontend", "clip4str_service.worker"

PATIENT = 120.0
"""Seconds for what must happen, on a machine that does much else."""

Metrics = dict[tuple[str, ...], float]


def metrics(service: RunningService) -> Metrics:
    """(name, label values by label name...) -> value."""
    families = text_string_to_metric_families(httpx.get(f"{service.metrics}/metrics").text)
    return {
        (sample.name, *(sample.labels[label] for label in sorted(sample.labels))): sample.value
        for family in families
        for sample in family.samples
    }


def total(measured: Metrics, name: str, *labels: str) -> float:
    """The sum of a family's samples that have these label values among theirs."""
    return sum(value for key, value in measured.items() if key[0] == name and set(labels) <= set(key[1:]))


def ready(service: RunningService) -> bool:
    """Whether the supervisor says so."""
    return httpx.get(f"{service.metrics}/readyz").status_code == httpx.codes.OK


def until(condition: Callable[[], bool], seconds: float = PATIENT) -> float:
    """Waits for a condition, and returns when it was seen (CLOCK_MONOTONIC); the test fails if it never is."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds:g} s"
        time.sleep(0.01)
    return time.monotonic()


def children(service: RunningService, module: str) -> list[int]:
    """Ids of the service's processes that run a module."""
    tasks = Path(f"/proc/{service.process.pid}/task").glob("*/children")
    ids = [int(number) for task in tasks for number in task.read_text().split()]
    return [number for number in ids if module.encode() in _command(number)]


def resident(process: int) -> int:
    """Bytes of memory that a process has."""
    return _memory(process, "VmRSS:")


def most_resident(process: int) -> int:
    """Bytes of memory that a process ever had."""
    return _memory(process, "VmHWM:")


def alive(process: int) -> bool:
    """Whether a process runs, and is no zombie."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _memory(process: int, figure: str) -> int:
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(figure))


def _command(process: int) -> list[bytes]:
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes().split(b"\0")
    except OSError:  # gone
        return []
