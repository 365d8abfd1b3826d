"""A whole run of the benchmark: what it measures, and its figures as JSON and as tables."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from clip4str.benchmark.machine import Ceiling, ceiling, this_machine
from clip4str.benchmark.measure import STAGES, Result, load_baseline, measure
from clip4str.benchmark.workload import WORD_LENGTH, workload
from clip4str.hardware import resolve_device, resolve_precision
from clip4str.recognizer import Recognizer

_COLD_START = """
import time; start = time.perf_counter()
import torch; torch_imported = time.perf_counter()
import clip4str; imported = time.perf_counter()
recognizer = clip4str.Recognizer.load("default", device="cpu"); loaded = time.perf_counter()
from PIL import Image
recognizer.read([Image.new("RGB", (128, 32))]); read = time.perf_counter()
for _ in range(4):
    recognizer.read([Image.new("RGB", (128, 32))] * 32)
try:  # getrusage would count the process that started this one
    (peak,) = (line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
except OSError:
    import resource
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
memory = 1024 * int(peak)
print(torch_imported - start, imported - torch_imported, loaded - imported, read - loaded, memory)
"""
_COLD_FIGURES = ("import_torch_s", "import_rest_s", "load_s", "first_read_s", "peak_rss_bytes")


@dataclass(frozen=True, slots=True)
class Plan:
    """What to measure. `device` and `precisions` as `Recognizer.load` takes them."""

    models: Sequence[str]
    batch_sizes: Sequence[int]
    device: str | None
    precisions: Sequence[str]
    baseline: Path | None


def run(plan: Plan) -> Iterator[Result | dict[str, Any]]:
    """Every result as soon as it is there, and last the report of all, as plain JSON types.

    Raises CheckpointError for a model or baseline that is not there, HardwareError for a device or precision.
    """
    device = resolve_device(plan.device)
    for precision in plan.precisions:
        resolve_precision(precision, device)
    results: list[Result] = []
    ceilings: dict[str, Ceiling] = {}
    for model in plan.models:
        work = workload(model)
        for precision in plan.precisions:
            recognizer = Recognizer.from_checkpoint(work.checkpoint, device=str(device), precision=precision)
            dtype = getattr(torch, recognizer.info.dtype)
            if recognizer.info.dtype not in ceilings:
                ceilings[recognizer.info.dtype] = ceiling(device, dtype)
            limit = ceilings[recognizer.info.dtype]
            baseline = None
            if plan.baseline is not None:
                # The published code computes in fp32; on a GPU both sides get the same format, as its users do.
                its = dtype if device.type == "cuda" else torch.float32
                baseline = load_baseline(plan.baseline, work, device, its)
            for batch in plan.batch_sizes:
                results.append(measure(work, recognizer, batch, limit, baseline))
                yield results[-1]
    yield {
        "machine": asdict(this_machine(device)),
        "ceilings": [asdict(limit) for limit in ceilings.values()],
        "word_length": WORD_LENGTH,
        "results": [asdict(result) for result in results],
        "cold_start": cold_start(),
    }


def cold_start() -> dict[str, float]:
    """Seconds that a new process takes to import the library, load the default model on the CPU and read a crop.

    And the most memory it takes to read batches of 32, in bytes.
    """
    command = [sys.executable, "-c", _COLD_START]
    output = subprocess.run(  # noqa: S603 (our own program)
        command, capture_output=True, text=True, check=True
    ).stdout
    return dict(zip(_COLD_FIGURES, map(float, output.split()), strict=True))


def line(result: Result | None = None) -> str:
    """One result as a line on a terminal; without one, what its columns are called."""
    titles = ("crops/s", "from images", "latency ms", *STAGES[:-1], "decoding", "of ceiling", "x baseline")
    if result is None:
        return f"{'model':<16}{'dtype':<10}{'batch':>5}" + "".join(f"{title:>12}" for title in titles)
    figures = (
        f"{result.crops_per_second:.1f}",
        f"{result.end_to_end_crops_per_second:.1f}",
        f"{result.latency_ms:.1f}",
        *(f"{result.stages_ms[stage]:.1f}" for stage in STAGES[:-1]),
        f"{result.decode_share:.1%}",
        f"{result.utilisation:.0%}",
        "" if result.baseline is None else f"{result.baseline.speedup:.2f}",
    )
    return f"{result.model:<16}{result.dtype:<10}{result.batch:>5}" + "".join(
        f"{each:>12}" for each in figures
    )


def summary(report: dict[str, Any]) -> str:
    """What holds for all lines: the machine, its ceilings, and how a new process starts on it."""
    limits = [
        f"{limit['dtype']} ceiling {limit['flops'] / 1e9:,.0f} GFLOP/s, {limit['bandwidth'] / 1e9:,.0f} GB/s"
        for limit in report["ceilings"]
    ]
    cold, machine = report["cold_start"], report["machine"]
    seconds = sum(value for name, value in cold.items() if name.endswith("_s"))
    start = f"first answer of a new process after {seconds:.1f} s, {cold['peak_rss_bytes'] / 1e6:,.0f} MB"
    return "; ".join([f"{machine['device']}, {machine['threads']} threads", *limits, start])
