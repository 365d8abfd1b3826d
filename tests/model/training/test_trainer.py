"""The loop really trains: losses fall, what is frozen stays, the best model is kept, a stopped run goes on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from clip4str import CheckpointError, Recognizer, checkpoint
from clip4str.config import VARIANTS
from clip4str.datasets import DatasetError
from clip4str.model import CLIP4STR
from clip4str.synth.stream import WordBatch
from clip4str.training.adapters import AdapterModel, load_adapter_model
from clip4str.training.network import Network
from clip4str.training.recipe import Recipe, RecipeError
from clip4str.training.trainer import Trainer, TrainingError
from tests.model.training.runs import FLAT, SAMPLES, SYNTHETIC, WORDS, fields, losses, records, trainer

RANDOM = {"init": "random", "freeze_statistics": False}
MIXED = SYNTHETIC | {"like_lengths": False}
FROM_SCRATCH = RANDOM | {"encoder_only": 16, "column_loss_weight": 0.2, "data": [MIXED]}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run from scratch, with everything in it."""
    folder = tmp_path_factory.mktemp("run")
    schedule = {"learning_rate": 1e-3, "rate_batch": 8, "decoder_rate_factor": 1, "schedule": FLAT}
    trainer(folder, validation=[SAMPLES], validation_crops=5, optimization=schedule, **FROM_SCRATCH).run()
    return folder


def weights(trained: Trainer) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in trained.model.state_dict().items()}


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {name for name, value in after.items() if not torch.equal(value, before[name])}


def test_log_tells_speed_losses_and_rate(run: Path) -> None:
    steps = [record for record in records(run) if "columns" in record]
    assert [record["samples"] for record in steps] == [32, 64]
    assert steps[1]["columns"] < steps[0]["columns"]
    told = {"visual", "cross_modal", "reading", "crops_per_second", "gradient_norm", "rate"}
    assert all(told <= set(record) for record in steps)
    assert list((run / "tensorboard").glob("events.*"))


def test_validation_measures_both_branches(run: Path) -> None:
    (validation,) = [record["accuracy_36"] for record in records(run) if "accuracy_36" in record]
    assert set(validation) == {SAMPLES.name}
    assert all(0 <= validation[SAMPLES.name][branch] <= 100 for branch in ("final", "visual"))


def test_saved_model_loads(run: Path) -> None:
    recognizer = Recognizer.load(str(run), device="cpu")
    assert recognizer.info.variant == "tiny"
    assert checkpoint.load(str(run)).config == VARIANTS["tiny"]


def test_both_branches_learn(tmp_path: Path) -> None:
    """Shown the same four words again and again, both branches learn them."""
    schedule = {"learning_rate": 1e-3, "rate_batch": 4, "decoder_rate_factor": 1, "schedule": FLAT}
    run = trainer(tmp_path, batch_size=4, samples=10_000, optimization=schedule, **RANDOM)
    images = torch.randint(256, (4, 3, 32, 128), dtype=torch.uint8)
    batch = WordBatch(images, ["one", "two", "Three", "4"])
    seen = []
    for _ in range(30):
        run.step([batch])
        seen.append(run.mean_losses())
    assert seen[-1]["visual"] < 0.6 * seen[0]["visual"]
    assert seen[-1]["cross_modal"] < 0.6 * seen[0]["cross_modal"]


def test_parts_of_a_step_are_one_batch(tmp_path: Path) -> None:
    """Two batches accumulated have the losses, and leave the weights, of one batch of both."""
    runs = {
        "whole": trainer(tmp_path / "whole", batch_size=8, samples=24, log_every=8),
        "parts": trainer(tmp_path / "parts", batch_size=4, accumulate=2, samples=24, log_every=8),
    }
    for run in runs.values():
        run.run()
    for whole, parts in zip(losses(tmp_path / "whole"), losses(tmp_path / "parts"), strict=True):
        assert parts == pytest.approx(whole, rel=1e-3)
    after = weights(runs["whole"])
    for name, value in weights(runs["parts"]).items():
        torch.testing.assert_close(value, after[name], atol=2e-5, rtol=1e-3, msg=name)


def test_frozen_parts_and_statistics_stay(tmp_path: Path) -> None:
    run = trainer(tmp_path, freeze_text_layers=1, freeze_image_layers=2, samples=16)
    before = weights(run)
    run.run()
    moved = changed(before, run.model.state_dict())
    assert not any("running_" in name or "num_batches" in name for name in moved)
    assert not any(name.startswith("clip_model.transformer.resblocks.0.") for name in moved)
    assert any(name.startswith("clip_model.transformer.resblocks.1.") for name in moved)
    assert not any(name.startswith("clip_model.visual.transformer.resblocks.1.") for name in moved)
    assert any(name.startswith("clip_model.visual.transformer.resblocks.2.") for name in moved)


def test_cross_modal_branch_alone(tmp_path: Path) -> None:
    run = trainer(tmp_path, freeze_image_layers=12, freeze_visual_decoder=True, samples=16)
    before = weights(run)
    run.run()
    moved = changed(before, run.model.state_dict())
    assert any(name.startswith("cross_decoder.") for name in moved)
    assert not any(name.startswith(("visual_decoder.", "clip_model.visual.")) for name in moved)


def test_statistics_move_where_they_are_trained(tmp_path: Path) -> None:
    run = trainer(tmp_path, freeze_statistics=False, samples=8)
    before = weights(run)
    run.run()
    assert any("running_mean" in name for name in changed(before, run.model.state_dict()))


def test_visual_branch_alone(tmp_path: Path) -> None:
    only = {"cross_modal": False}
    run = trainer(tmp_path, objective=only, samples=16, log_every=8, validation=[SAMPLES], validation_crops=4)
    before = weights(run)
    run.run()
    moved = changed(before, run.model.state_dict())
    assert all(name.startswith(("clip_model.visual.", "visual_decoder.")) for name in moved)
    assert all("cross_modal" not in step for step in losses(tmp_path))
    assert [set(r["accuracy_36"]["samples"]) for r in records(tmp_path) if "accuracy_36" in r] == [{"visual"}]


def test_new_decoders_on_trained_encoders(tmp_path: Path) -> None:
    """The default's encoders are taken, its decoders are not."""
    default = checkpoint.build(checkpoint.load("default")).state_dict()
    run = trainer(tmp_path, new_decoders=True)
    assert {name.split(".")[0] for name in changed(default, run.model.state_dict())} == {
        "visual_decoder",
        "cross_decoder",
    }


@pytest.mark.parametrize("kind", ["linear", "ladder"])
def test_adapter_learns_beside_a_frozen_encoder(kind: str, tmp_path: Path) -> None:
    adapter = {"kind": kind, "blocks": [0, 2]}
    run = trainer(tmp_path, adapter=adapter, samples=16, validation=[SAMPLES], validation_crops=4)
    before = weights(run)
    run.run()
    moved = changed(before, run.model.state_dict())
    assert any(name.startswith("adapter.") for name in moved)
    assert not any(name.startswith("clip_model.") for name in moved)
    assert [set(r["accuracy_36"]["samples"]) for r in records(tmp_path) if "accuracy_36" in r] == [{"visual"}]
    loaded = load_adapter_model(run.model_file).state_dict()
    assert not changed(dict(run.model.state_dict()), loaded)


@pytest.mark.parametrize("average", [{"kind": "ema", "decay": 0.5}, {"kind": "swa", "start": 8}], ids=str)
def test_average_is_what_is_saved(average: dict[str, object], tmp_path: Path) -> None:
    schedule = {"learning_rate": 1e-3, "rate_batch": 8, "schedule": FLAT | {"warmup": 0, "decay": 0}}
    run = trainer(tmp_path, samples=32, average=average, optimization=schedule)
    run.run()
    saved = checkpoint.load(str(run.model_file)).state
    assert run.average is not None
    averaged, last = run.average.module.state_dict(), run.model.state_dict()
    for name, value in saved.items():
        torch.testing.assert_close(value, averaged[name].to(value.dtype), atol=0, rtol=0, msg=name)
    name = "visual_decoder.head.weight"
    assert not torch.equal(saved[name], last[name].half())


def test_best_model_is_kept(tmp_path: Path) -> None:
    """A run that unlearns keeps the model that read best, and the last beside it."""
    schedule = {"learning_rate": 1e-6, "rate_batch": 8, "schedule": {"kind": "flat", "warmup": 0, "decay": 0}}
    first = {"samples": 8, "validate_every": 8, "save_every": 8, "validation": [SAMPLES]}
    trainer(tmp_path, optimization=schedule, **first).run()
    run = trainer(tmp_path, optimization=schedule, **first | {"samples": 16})
    assert isinstance(run.model, CLIP4STR)
    with torch.no_grad():
        for parameter in run.model.cross_decoder.parameters():
            parameter.zero_()
    run.run()
    accuracies = [r["accuracy_36"]["samples"]["final"] for r in records(tmp_path) if "accuracy_36" in r]
    assert accuracies[1] < accuracies[0]
    assert run.model_file.read_bytes() != run.last_file.read_bytes()


def test_continued_run_starts_from_its_state(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    schedule = {"schedule": FLAT}
    trainer(folder, optimization=schedule).run()
    longer = trainer(folder, optimization=schedule, samples=72)
    assert longer.samples == 64
    longer.run()
    assert longer.samples == 72


def test_run_cannot_go_on_by_another_recipe(tmp_path: Path) -> None:
    trainer(tmp_path, samples=8, save_every=8).run()
    with pytest.raises(RecipeError, match=r"began otherwise: batch_size, seed; take another output folder"):
        trainer(tmp_path, samples=8, seed=4, batch_size=4)
    with pytest.raises(RecipeError, match="began otherwise: samples"):  # a cycle has its length
        trainer(tmp_path, samples=16)


def test_loss_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    schedule = {"learning_rate": 1e8, "rate_batch": 8, "schedule": {"kind": "flat", "warmup": 0}}
    with pytest.raises(TrainingError, match=r"not finite after \d+ crops: lower optimization.learning_rate"):
        trainer(tmp_path, optimization=schedule, log_every=8).run()


def test_state_of_a_run_that_went_wrong_is_not_kept(tmp_path: Path) -> None:
    """The last state is a good one, though a bad step came before the next word of the log."""
    schedule = {"learning_rate": 1e8, "rate_batch": 8, "schedule": {"kind": "flat", "warmup": 0}}
    with pytest.raises(TrainingError, match="not finite"):
        trainer(tmp_path, optimization=schedule, log_every=64, save_every=8).run()
    states = list(tmp_path.glob("run.state"))
    for path in states:
        network = torch.load(path, weights_only=True)["network"]
        assert all(value.isfinite().all() for value in network.values())


def test_saves_between_the_log_lines_change_no_line(tmp_path: Path) -> None:
    """A run that stops where it saves, in the midst of a stretch of its log, goes on with that stretch."""
    flat = {"schedule": FLAT | {"decay": 0}}
    trainer(tmp_path / "whole", samples=96, log_every=48, save_every=96, optimization=flat).run()
    broken = tmp_path / "broken"
    part = trainer(broken, samples=96, log_every=48, save_every=32, optimization=flat)
    stream = iter(part.batches())
    for _ in range(4):
        part.step([next(stream)])
    part.save()
    trainer(broken, samples=96, log_every=48, save_every=32, optimization=flat).run()
    assert losses(broken) == losses(tmp_path / "whole")


def test_losses_are_means_over_the_steps_that_had_them(tmp_path: Path) -> None:
    """Where the decoders join in the midst of a stretch of the log."""
    fields = FROM_SCRATCH | {"samples": 32, "encoder_only": 16, "optimization": {"schedule": FLAT}}
    trainer(tmp_path / "each", log_every=8, **fields).run()
    trainer(tmp_path / "all", log_every=32, **fields).run()
    each, (together,) = losses(tmp_path / "each"), losses(tmp_path / "all")
    visual = [step["visual"] for step in each if "visual" in step]
    assert len(visual) == 2
    assert together["visual"] == pytest.approx(sum(visual) / 2, rel=1e-4)
    assert together["columns"] == pytest.approx(sum(step["columns"] for step in each) / 4, rel=1e-4)


def test_published_groups_and_rates_are_those_of_the_run(tmp_path: Path) -> None:
    """CLIP's own weights learn at the published rate, all others 19 times as fast."""
    run = trainer(tmp_path, column_loss_weight=0.2, freeze_text_layers=1)
    groups = run.stepper.optimizer.param_groups
    clip = [p for p in run.model.clip_model.parameters() if p.requires_grad]
    assert {id(p) for group in groups[:2] for p in group["params"]} == {id(p) for p in clip}
    rates = [group["initial_lr"] for group in groups]
    assert rates == pytest.approx([8.4e-5 * 8 / 512] * 2 + [19 * 8.4e-5 * 8 / 512] * 2)
    ladder = trainer(tmp_path / "ladder", adapter={"kind": "ladder", "blocks": [0, 2]})
    slow = {id(p) for group in ladder.stepper.optimizer.param_groups[:2] for p in group["params"]}
    assert isinstance(ladder.model, AdapterModel)
    assert slow == {id(p) for p in ladder.model.adapter.parameters()}


def test_best_is_forgotten_with_the_words_it_was_measured_on(tmp_path: Path) -> None:
    flat = {"schedule": FLAT | {"decay": 0}}
    first = {"samples": 8, "validate_every": 8, "validation": [SAMPLES], "optimization": flat}
    trainer(tmp_path, **first).run()
    assert trainer(tmp_path, **first).best > 0
    assert trainer(tmp_path, **first | {"validation_crops": 5}).best == -1


def test_sets_that_cannot_be_measured_are_named_before_training(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no such folder"):
        trainer(tmp_path, validation=[tmp_path / "none"])
    marks = tmp_path / "marks"
    marks.mkdir()
    (marks / "labels.tsv").write_text("1.png\t!?\n")
    with pytest.raises(DatasetError, match="no label has a letter or digit"):
        trainer(tmp_path, validation=[marks])
    with pytest.raises(DatasetError, match="two validation sets are named samples"):
        trainer(tmp_path, validation=[SAMPLES, SAMPLES])


def test_damaged_files_of_a_run_are_named(tmp_path: Path) -> None:
    trainer(tmp_path, samples=8, save_every=8, log_every=8).run()
    log = tmp_path / "log.jsonl"
    log.write_text(log.read_text() + "{half a li")
    flat = {"schedule": FLAT}
    (tmp_path / "run.state").write_bytes((tmp_path / "run.state").read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=r"run.state: is no state to go on from; take another"):
        trainer(tmp_path, samples=8, save_every=8, log_every=8)
    (tmp_path / "run.state").unlink()
    trainer(tmp_path, samples=16, log_every=8, optimization=flat).run()
    assert [step["samples"] for step in losses(tmp_path)] == [8, 16]
    (tmp_path / "file").write_text("")
    with pytest.raises(RecipeError, match="is a file, not a folder"):
        trainer(tmp_path / "file")


def test_columns_need_a_wide_grid(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="this image encoder has 14 columns"):
        Network(Recipe.model_validate(fields(tmp_path, init="random", variant="base16", encoder_only=8)))


def test_missing_data_is_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no such folder"):
        trainer(tmp_path, data=[WORDS | {"path": str(tmp_path / "none")}]).run()


def test_cross_modal_decoder_starts_as_the_visual_one(tmp_path: Path) -> None:
    run = trainer(tmp_path, cross_from_visual=True)
    assert isinstance(run.model, CLIP4STR)
    visual = run.model.visual_decoder.state_dict()
    assert not changed(visual, run.model.cross_decoder.state_dict())
