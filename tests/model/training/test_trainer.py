"""The loop really trains: losses fall, the state goes on where it stopped, the saved model loads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from clip4str import Recognizer, checkpoint
from clip4str.charset import EOS, encode
from clip4str.config import VARIANTS
from clip4str.synth.stream import SyntheticBatch
from clip4str.training.auxiliary import ColumnClassifier
from clip4str.training.recipe import Recipe
from clip4str.training.trainer import Trainer

SAMPLES = Path(__file__).parents[3] / "samples"


def recipe(folder: Path, **changes: Any) -> Recipe:
    small = {"samples": 64, "batch_size": 8, "save_every": 32, "validate_every": 64, "warmup": 8, "decay": 8}
    small |= {"encoder_only": 16, "permutations": 4, "bf16": False, "seed": 3}
    return Recipe.model_validate({"output": folder, **small, **changes})


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    Trainer(recipe(folder, validation=[SAMPLES], validation_crops=5)).run()
    return folder


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_log_tells_speed_and_losses(run: Path) -> None:
    steps = [record for record in records(run) if "columns" in record]
    assert [record["samples"] for record in steps] == [32, 64]
    assert steps[1]["columns"] < steps[0]["columns"]
    assert all({"visual", "cross_modal", "crops_per_second"} <= set(record) for record in steps)


def test_validation_measures_both_branches(run: Path) -> None:
    (validation,) = [record["accuracy_36"] for record in records(run) if "accuracy_36" in record]
    assert set(validation) == {SAMPLES.name}
    assert all(0 <= validation[SAMPLES.name][branch] <= 100 for branch in ("final", "visual"))


def test_both_branches_learn(tmp_path: Path) -> None:
    """Shown the same four words again and again, both branches learn them."""
    trainer = Trainer(recipe(tmp_path, encoder_only=0, samples=10_000))
    images = torch.randint(256, (4, 3, 32, 128), dtype=torch.uint8)
    batch = SyntheticBatch(images, ["one", "two", "Three", "4"])
    losses = [trainer.step(batch) for _ in range(30)]
    assert losses[-1]["visual"] < 0.6 * losses[0]["visual"]
    assert losses[-1]["cross_modal"] < 0.6 * losses[0]["cross_modal"]


def test_saved_model_loads(run: Path) -> None:
    recognizer = Recognizer.load(str(run), device="cpu")
    assert recognizer.info.variant == "tiny"
    assert checkpoint.load(str(run)).config == VARIANTS["tiny"]


def test_continued_run_starts_from_its_state(run: Path) -> None:
    longer = recipe(run, samples=72)
    trainer = Trainer(longer)
    assert trainer.samples == 64
    again = Trainer(longer)
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[name])
    trainer.run()
    assert trainer.samples == 72


def test_learning_rate_warms_up_and_decays(tmp_path: Path) -> None:
    trainer = Trainer(recipe(tmp_path, samples=1000, warmup=100, decay=200))
    rates = []
    for samples in (0, 92, 500, 900, 1000):
        trainer.samples = samples
        rates.append(trainer.learning_rate_factor())
    assert rates == pytest.approx([0.08, 1.0, 1.0, 0.5, 0.01])


def test_column_classifier_learns_a_word() -> None:
    """CTC over columns: its loss of a fixed word goes to almost nothing."""
    torch.manual_seed(0)
    classifier = ColumnClassifier(VARIANTS["tiny"])
    features = torch.nn.Parameter(torch.randn(2, 33, 256))
    optimizer = torch.optim.Adam([features, *classifier.parameters()], lr=0.05)
    targets = encode(["hello", "Go"])
    for _ in range(60):
        loss = classifier.loss(features, targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.05
    best = classifier(features).argmax(-1).T.tolist()  # [N, columns]
    collapsed = [
        [i for i, before in zip(row, [EOS, *row], strict=False) if i not in (EOS, before)] for row in best
    ]
    assert collapsed == [encode(["hello"])[0, 1:-1].tolist(), encode(["Go"])[0, 1:-1].tolist()]
