"""One model at one batch size: throughput, latency, where the time goes, and the distance to a baseline."""

from __future__ import annotations

import runpy
import statistics
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clip4str import stages
from clip4str.benchmark.flops import flops_per_crop
from clip4str.benchmark.machine import Ceiling, timed, wait
from clip4str.benchmark.workload import Workload
from clip4str.checkpoint import CheckpointError
from clip4str.image import Pixels
from clip4str.reading import Reading, ReadOptions
from clip4str.recognizer import Recognizer

STAGES = ("preprocess", *stages.STAGES)
_SECONDS = 3.0  # that each figure is measured for, at least
_ROUNDS = 5  # at least


@dataclass(frozen=True, slots=True)
class BaselineResult:
    """A plain implementation on the same crops, measured in turns with ours."""

    dtype: str
    latency_ms: float
    crops_per_second: float
    speedup: float  # its latency over ours, medians of the turns


@dataclass(frozen=True, slots=True)
class Result:
    """Times are medians, in milliseconds, of a whole batch."""

    model: str
    variant: str
    weights: str
    dtype: str
    batch: int
    mean_characters: float
    agreement: float  # share of the crops in which both branches read the same
    latency_ms: float  # prepared crops in, readings out, one batch at a time
    crops_per_second: float  # the same with as many batches in flight as the runtime serves
    end_to_end_crops_per_second: float  # images in, readings out, one batch at a time
    stages_ms: dict[str, float]
    decode_share: float  # of the time from prepared crops to readings: all that comes after the image encoder
    gflops_per_crop: float
    utilisation: float  # of the ceiling's FLOP/s
    baseline: BaselineResult | None


@dataclass(frozen=True, slots=True)
class Baseline:
    """Another implementation: uint8 crops [N, 3, H, W] on the CPU in, logits out, in a format of its own."""

    read: Callable[[Tensor], Tensor]
    dtype: str


def load_baseline(file: Path, work: Workload, device: torch.device, dtype: torch.dtype) -> Baseline:
    """The network of `file`, which must define `PublishedCLIP4STR.from_state_dict(state, config)` and `read`."""
    if not file.is_file():
        raise CheckpointError(f"{file}: no such file")
    try:
        names = runpy.run_path(str(file), run_name="baseline")
    except Exception as error:
        raise CheckpointError(f"{file}: {type(error).__name__}: {error}") from error
    if not {"PublishedCLIP4STR", "read"} <= names.keys():
        raise CheckpointError(
            f"{file}: a baseline defines PublishedCLIP4STR and read, as bench/published.py does"
        )
    config = work.checkpoint.config
    state = {key: value.float() for key, value in work.checkpoint.state.items()}
    model = names["PublishedCLIP4STR"].from_state_dict(state, config).to(device, dtype)
    mean, std = (torch.tensor(each, device=device).view(3, 1, 1) for each in (config.mean, config.std))

    def read(crops: Tensor) -> Tensor:
        logits: Tensor = names["read"](model, ((crops.to(device) / 255 - mean) / std).to(dtype))
        return logits

    return Baseline(read, str(dtype).removeprefix("torch."))


def measure(
    work: Workload, recognizer: Recognizer, batch: int, ceiling: Ceiling, baseline: Baseline | None
) -> Result:
    """Measure one batch size. Ours and the baseline take turns, so that what else the machine does slows both."""
    device = torch.device(recognizer.info.device)
    images = work.images(batch)
    crops = [recognizer.prepare(image) for image in images]
    options = [ReadOptions()] * batch
    readings = recognizer.read_prepared(crops, options)

    def ours() -> object:
        return recognizer.read_prepared(crops, options)

    stacked = torch.from_numpy(np.stack(crops))
    if baseline is None:
        latencies, others = [timed(ours, device) for _ in _rounds()], []
    else:
        theirs = partial(baseline.read, stacked)
        theirs()  # warm, as ours is
        turns = [(timed(ours, device), timed(theirs, device)) for _ in _rounds()]
        latencies, others = [turn[0] for turn in turns], [turn[1] for turn in turns]
    latency = statistics.median(latencies)
    compared = None
    if baseline is not None:
        other = statistics.median(others)
        compared = BaselineResult(baseline.dtype, 1e3 * other, batch / other, other / latency)

    speed = _throughput(recognizer, crops, device)
    stages = _stages(recognizer, images, device)
    whole_read = sum(stages[stage] for stage in STAGES[1:])
    steps, captions = _work_of(readings)
    flops = flops_per_crop(work.checkpoint.config, steps, captions)
    whole = statistics.median(timed(lambda: recognizer.read(images), device) for _ in _rounds())
    return Result(
        model=recognizer.info.name,
        variant=recognizer.info.variant,
        weights=work.weights,
        dtype=recognizer.info.dtype,
        batch=batch,
        mean_characters=statistics.fmean(len(reading.text) for reading in readings),
        agreement=statistics.fmean(reading.agreement for reading in readings),
        latency_ms=1e3 * latency,
        crops_per_second=speed,
        end_to_end_crops_per_second=batch / whole,
        stages_ms={stage: 1e3 * seconds for stage, seconds in stages.items()},
        decode_share=1 - stages["encode"] / whole_read,
        gflops_per_crop=flops / 1e9,
        utilisation=speed * flops / ceiling.flops,
        baseline=compared,
    )


def _rounds() -> Iterator[int]:
    """Counts, until enough of both rounds and time has passed."""
    started, count = time.perf_counter(), 0
    while count < _ROUNDS or time.perf_counter() - started < _SECONDS:
        yield count
        count += 1


def _work_of(readings: list[Reading]) -> tuple[float, float]:
    """Mean steps of a row, EOS included, and mean number of captions encoded for it."""
    steps = statistics.fmean(len(reading.visual.characters) + 1 for reading in readings)
    return steps, len({reading.visual.text for reading in readings}) / len(readings)


def _throughput(recognizer: Recognizer, crops: list[Pixels], device: torch.device) -> float:
    """Crops per second with as many callers as are served side by side."""
    options = [ReadOptions()] * len(crops)

    def caller(_: int) -> list[list[Reading]]:
        return [recognizer.read_prepared(crops, options, spread=callers == 1) for _ in range(_ROUNDS)]

    callers = recognizer.batches_in_flight
    with ThreadPoolExecutor(callers) as pool:

        def all_callers() -> None:
            if callers == 1:
                caller(0)
            else:
                list(pool.map(caller, range(callers)))

        all_callers()  # every lane is warm
        seconds = statistics.median(timed(all_callers, device) for _ in range(3))
    return callers * _ROUNDS * len(crops) / seconds


def _stages(recognizer: Recognizer, images: list[Any], device: torch.device) -> dict[str, float]:
    """Median seconds of each part, a mean over the threads that took part in it.

    The device comes to rest around each part, so their sum is a little more than the whole.
    """
    rounds = []
    for _ in _rounds():
        spent: dict[str, dict[int, float]] = {name: defaultdict(float) for name in stages.STAGES}

        @contextmanager
        def stage(name: str, spent: dict[str, dict[int, float]] = spent) -> Iterator[None]:
            wait(device)
            started = time.perf_counter()
            yield
            wait(device)
            spent[name][threading.get_ident()] += time.perf_counter() - started

        started = time.perf_counter()
        crops = [recognizer.prepare(image) for image in images]
        prepared = time.perf_counter() - started
        recognizer.read_prepared(crops, [ReadOptions()] * len(crops), stage)
        parts = {name: statistics.fmean(of_threads.values()) for name, of_threads in spent.items()}
        rounds.append({"preprocess": prepared, **parts})
    return {name: statistics.median(parts[name] for parts in rounds) for name in STAGES}
