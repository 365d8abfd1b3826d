"""`clip4str train` as users start it: killed and started again, under torchrun, and with bad recipes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from clip4str import Recognizer, checkpoint
from clip4str.cli import main
from clip4str.datasets import FolderSet
from clip4str.synth.sheet import write_dataset
from tests.model.training.runs import FLAT, SYNTHETIC, WORDS, fields, losses, write

ENTRY = "import sys; from clip4str.cli import main; sys.exit(main())"
COMMAND = [sys.executable, "-c", ENTRY, "train"]


def start(command: list[str], recipe: Path, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*command, str(recipe)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
    )


def run(command: list[str], recipe: Path, **environment: str) -> str:
    process = start(command, recipe, **environment)
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 0, output
    return output


def shown(folder: Path) -> int:
    try:
        return int(losses(folder)[-1]["samples"])
    except (OSError, IndexError, ValueError):  # not there, empty, or a line half written
        return 0


def test_killed_run_goes_on_with_the_same_losses(tmp_path: Path) -> None:
    """Everything that a state must hold is in this run: mixed sources, workers, parts of steps, an average."""
    recipe: dict[str, Any] = {
        "samples": 144,
        "batch_size": 4,
        "accumulate": 2,
        "workers": 1,
        "log_every": 16,
        "save_every": 24,  # so most saves are in the midst of a stretch of the log
        "validate_every": 144,
        "data": [WORDS | {"augment": True}, SYNTHETIC | {"full_difficulty_at": 120}],
        "column_loss_weight": 0.2,
        "average": {"kind": "ema", "decay": 0.9},
    }
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    run(COMMAND, write(tmp_path / "whole.yaml", fields(whole, **recipe)))
    path = write(tmp_path / "broken.yaml", fields(broken, **recipe))
    process = start(COMMAND, path)
    until = time.monotonic() + 150
    while shown(broken) < 40 and process.poll() is None and time.monotonic() < until:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    stopped_at = shown(broken)
    assert 40 <= stopped_at < 144
    run(COMMAND, path)
    assert losses(broken) == losses(whole)
    weights = checkpoint.load(str(whole / "model.safetensors")).state
    for name, value in checkpoint.load(str(broken / "model.safetensors")).state.items():
        assert torch.equal(value, weights[name]), name


def test_two_processes_have_the_losses_of_one_with_the_doubled_batch(tmp_path: Path) -> None:
    recipe: dict[str, Any] = {"samples": 48, "log_every": 8, "data": [WORDS | {"augment": True}]}
    recipe |= {"column_loss_weight": 0.2, "optimization": {"schedule": FLAT}}
    one, two = tmp_path / "one", tmp_path / "two"
    run(COMMAND, write(tmp_path / "one.yaml", fields(one, batch_size=8, **recipe)))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    program = tmp_path / "train.py"
    program.write_text(ENTRY)
    path = write(tmp_path / "two.yaml", fields(two, batch_size=4, **recipe))
    run([*launcher, str(program), "train"], path, CUDA_VISIBLE_DEVICES="")
    assert len(losses(two)) == 6
    for together, alone in zip(losses(two), losses(one), strict=True):
        assert together == pytest.approx(alone, rel=1e-3)


def test_default_learns_64_words_by_heart(tmp_path: Path) -> None:
    """The README's fine-tuning, on words not all of which the default reads."""
    folder = tmp_path / "words"
    write_dataset(folder, 64, seed=5, fonts=None)
    words = FolderSet(folder)

    def right(model: str) -> int:
        recognizer = Recognizer.load(model, device="cpu")
        readings = recognizer.read([words.image(index) for index in range(len(words))])
        return sum(reading.text == label for reading, label in zip(readings, words.labels, strict=True))

    assert right("default") < 60
    schedule = {"learning_rate": 5e-4, "rate_batch": 32, "decoder_rate_factor": 1}
    data = [WORDS | {"path": str(folder)}]
    recipe = fields(tmp_path / "run", batch_size=32, samples=1280, data=data, optimization=schedule)
    run(COMMAND, write(tmp_path / "recipe.yaml", recipe | {"save_every": 1280, "validate_every": 1280}))
    assert right(str(tmp_path / "run")) == 64


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 0}, "batch_size: Input should be greater than 0"),
        ({"data": [{"source": "files", "path": "nowhere"}]}, "nowhere: no such folder"),
        ({"init": "nothing.pt"}, "no model file 'nothing.pt'"),
        ({"freeze_text_layers": -2}, "freeze_text_layers: Input should be greater than or equal to -1"),
        ({"adapter": {"kind": "ladder", "blocks": [9]}}, "expected at least one index from 0 to 2"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_bad_recipes_get_one_line(
    changes: dict[str, Any], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "recipe.yaml", fields(tmp_path / "run", **changes))
    assert main(["train", str(path)]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("clip4str train: ")]
    assert message in line
