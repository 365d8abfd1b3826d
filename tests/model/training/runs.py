"""Small runs for the tests of training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml
from lightning_fabric import Fabric

from clip4str.training.recipe import Recipe
from clip4str.training.trainer import Trainer

SAMPLES = Path(__file__).parents[3] / "samples"
WORDS = {"source": "files", "path": str(SAMPLES), "augment": False}
SYNTHETIC = {"source": "synthetic"}
FLAT = {"kind": "flat", "warmup": 8, "decay": 8}


def fields(folder: Path, **changes: Any) -> dict[str, Any]:
    """A recipe of a few seconds."""
    small: dict[str, Any] = {"samples": 64, "batch_size": 8, "workers": 0, "bf16": False, "seed": 3}
    small |= {"save_every": 32, "validate_every": 64, "log_every": 32, "data": [WORDS], "init": "default"}
    return {"output": str(folder), **small, **changes}


def trainer(folder: Path, **changes: Any) -> Trainer:
    """Ready to run, in this process, on the CPU."""
    recipe = Recipe.model_validate(fields(folder, **changes))
    return Trainer(recipe, Fabric(accelerator="cpu", devices=1))


def write(path: Path, recipe: dict[str, Any]) -> Path:
    """As a file for `clip4str train`."""
    path.write_text(yaml.safe_dump(recipe))
    return path


def records(folder: Path) -> list[dict[str, Any]]:
    """What the run in a folder told."""
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def losses(folder: Path) -> list[dict[str, float]]:
    """Of these, all but speeds, which no two runs share."""
    steps = [record for record in records(folder) if "visual" in record or "columns" in record]
    return [{name: value for name, value in step.items() if name != "crops_per_second"} for step in steps]
