"""What this machine can do: its devices, the number format that suits them, the processors we may use."""

from __future__ import annotations

import math
import os
from pathlib import Path

import torch

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_CGROUP = Path("/sys/fs/cgroup")


class HardwareError(ValueError):
    """A device or number format that is not there; the message is one line for the user."""


def resolve_device(device: str | None) -> torch.device:
    """The named device, or the first GPU, or the CPU. Raises HardwareError when it is not there."""
    if device is None:
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
    except RuntimeError:
        raise HardwareError(
            f"device {device!r} is not a device name: use 'cpu', 'cuda' or 'cuda:N'"
        ) from None
    if resolved.type not in ("cpu", "cuda"):
        raise HardwareError(f"device {device!r} is not supported: use 'cpu', 'cuda' or 'cuda:N'")
    if resolved.type == "cuda":
        if not torch.cuda.is_available():
            raise HardwareError(f"device {device!r} was asked for, but no GPU is available: use 'cpu'")
        resolved = torch.device("cuda", resolved.index or 0)
        if resolved.index >= torch.cuda.device_count():
            raise HardwareError(
                f"device {device!r} is not there: this machine has {torch.cuda.device_count()} GPUs"
            )
    return resolved


def resolve_precision(precision: str, device: torch.device) -> torch.dtype:
    """The dtype of weights and activations. Raises HardwareError.

    "auto" is bf16 where the device multiplies matrices in it, on GPUs since Ampere and on CPUs with AVX512-BF16 or
    AMX, and fp32 elsewhere: there bf16 is emulated and several times slower.
    """
    if precision == "auto":
        ampere = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
        native = ampere or (device.type == "cpu" and _cpu_bf16())
        return torch.bfloat16 if native else torch.float32
    if precision not in PRECISIONS:
        raise HardwareError(f"precision {precision!r} is unknown: use auto, {', '.join(PRECISIONS)}")
    return PRECISIONS[precision]


def _cpu_bf16() -> bool:
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def fit_threads(threads: int | None = None) -> int:
    """Let PyTorch use `threads` threads, or no more than the processors this process may use; returns how many.

    For programs, not libraries: the number is the whole process's. PyTorch itself counts the machine's processors,
    of which a container may hold few; more threads than processors are many times slower.
    """
    if threads is None:
        threads = torch.get_num_threads() if "OMP_NUM_THREADS" in os.environ else available_processors()
    torch.set_num_threads(threads)
    return threads


def available_processors(cgroup: Path = _CGROUP) -> int:
    """Processors that this process may use, 1 or more: by its affinity, and by its control group's quota."""
    count = min(_affinity(), torch.get_num_threads())
    quota = _quota(cgroup)
    return count if quota is None else max(1, min(count, math.ceil(quota)))


def _affinity() -> int:
    if hasattr(os, "sched_getaffinity"):  # not on macOS and Windows
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _quota(cgroup: Path) -> float | None:
    """Processors' worth of time that a control group grants (version 2, then 1); None for all of it, or odd text."""
    try:
        granted, period = (cgroup / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            granted = (cgroup / "cpu/cpu.cfs_quota_us").read_text()
            period = (cgroup / "cpu/cpu.cfs_period_us").read_text()
        except (OSError, ValueError):
            return None
    try:
        quota = int(granted) / int(period)
    except (ValueError, ArithmeticError):  # "max" is all of it
        return None
    return quota if quota > 0 else None  # -1 is all of it
