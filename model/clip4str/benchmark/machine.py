"""The machine, and the two limits that no model can pass on it: its matrix products and its memory."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

_REPEATS = 8


@dataclass(frozen=True, slots=True)
class Machine:
    """Where it was measured."""

    device: str
    threads: int
    system: str
    python: str
    torch: str


@dataclass(frozen=True, slots=True)
class Ceiling:
    """What the machine reaches at its best: FLOP/s of a large matrix product in a dtype, bytes/s of a copy."""

    dtype: str
    flops: float
    bandwidth: float


def this_machine(device: torch.device) -> Machine:
    """What is known of the machine."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    return Machine(
        name, torch.get_num_threads(), platform.system(), platform.python_version(), torch.__version__
    )


def ceiling(device: torch.device, dtype: torch.dtype) -> Ceiling:
    """Measure both limits now: on a shared machine they change by the minute."""
    size = 8192 if device.type == "cuda" else 2048
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    product = fastest(lambda: left @ right, device)
    source = torch.empty(
        (2 << 30) if device.type == "cuda" else (256 << 20), dtype=torch.uint8, device=device
    )
    target = torch.empty_like(source)
    copy = fastest(lambda: target.copy_(source), device)
    return Ceiling(str(dtype).removeprefix("torch."), 2 * size**3 / product, 2 * source.numel() / copy)


def fastest(function: Callable[[], object], device: torch.device, repeats: int = _REPEATS) -> float:
    """Seconds of the fastest of several calls."""
    function()
    return min(timed(function, device) for _ in range(repeats))


def timed(function: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call, until the device is done."""
    wait(device)
    started = time.perf_counter()
    function()
    wait(device)
    return time.perf_counter() - started


def wait(device: torch.device) -> None:
    """Until the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
