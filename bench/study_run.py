"""Train one row of the study and measure it, in a process whose peak memory is the row's own.

`python bench/study_run.py JOB RESULT`, both JSON files; bench/study.py runs it.
"""

from __future__ import annotations

import json
import resource
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch

from clip4str import CheckpointError
from clip4str.benchmark.machine import wait
from clip4str.datasets import DatasetError
from clip4str.synth.fonts import FontError
from clip4str.synth.stream import WordBatch
from clip4str.training.processes import launch
from clip4str.training.recipe import Recipe, RecipeError
from clip4str.training.trainer import Trainer, TrainingError
from clip4str.training.validation import validate


class TimedTrainer(Trainer):
    """A trainer that keeps when each of its steps began and ended, in seconds of one clock."""

    times: list[tuple[float, float]]

    def step(self, parts: list[WordBatch]) -> None:
        """One optimiser step, and its times."""
        started = time.perf_counter()
        super().step(parts)
        wait(self.fabric.device)
        self.times.append((started, time.perf_counter()))


def measure(recipe: Recipe, sets: list[Path], crops: int) -> dict[str, Any]:
    """Train by the recipe, which names no validation sets, and read `crops` crops of each of the sets.

    The first step is left out of the times: it also pays for what is done once.
    """
    trainer = TimedTrainer(recipe, launch(recipe))
    trainer.times = []
    trainer.run()
    memory, gpu_memory = _peak_bytes(), None
    if trainer.fabric.device.type == "cuda":
        gpu_memory = torch.cuda.max_memory_allocated(trainer.fabric.device)
    parameters = list(trainer.model.parameters())
    started, ended = trainer.times[0][1], trainer.times[-1][1]
    later = trainer.times[1:]
    cross_modal = recipe.objective.cross_modal
    accuracy = validate(trainer.model, trainer.model_file, sets, crops, cross_modal=cross_modal)
    for (
        branches
    ) in accuracy.values():  # where nothing trained follows the visual branch, its answer is the final one
        branches.setdefault("final", branches["visual"])
    return {
        "accuracy_36": accuracy,
        "parameters": sum(parameter.numel() for parameter in parameters),
        "trained_parameters": sum(parameter.numel() for parameter in parameters if parameter.requires_grad),
        "peak_rss_bytes": memory,
        "peak_gpu_bytes": gpu_memory,
        "step_ms": round(1000 * statistics.median(end - begin for begin, end in later), 3),
        "crops_per_second": round(len(later) * trainer.step_crops / (ended - started), 2),
    }


def _peak_bytes() -> int:
    """The most memory this process has held. Not its data worker's."""
    try:  # where getrusage would count the process that started this one
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else 1024 * peak
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def main() -> int:
    """Do a job; return 2 after one line on standard error when it cannot be done."""
    job = json.loads(Path(sys.argv[1]).read_text())
    try:
        result = measure(
            Recipe.model_validate(job["recipe"]), [Path(path) for path in job["sets"]], job["crops"]
        )
    except (CheckpointError, DatasetError, FontError, OSError, RecipeError, TrainingError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    except KeyboardInterrupt:
        return 130
    Path(sys.argv[2]).write_text(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
