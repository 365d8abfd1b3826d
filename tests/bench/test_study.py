"""The study: rows that differ in one thing, results that are kept, a page that says what they say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from bench import study
from bench.study_report import ROWS, Run, Study, report
from clip4str.datasets import open_set
from clip4str.training.optimization import peak_rate
from clip4str.training.recipe import Recipe, read_recipe

SAMPLES = Path(__file__).parents[2] / "samples"
BASELINE = "baseline: both branches, half of the text encoder frozen"
# What an adapter's recipe must leave out, and its rate: test_all_rows_learn_at_the_same_rate
ADAPTER = dict.fromkeys(("freeze_text_layers", "new_decoders", "optimization.rate_batch")) | {
    "optimization.learning_rate": 0.016
}
DIFFERENCES: dict[str, dict[str, Any]] = {
    "baseline": {},
    "image-1-frozen": {"freeze_image_layers": 1},
    "image-2-frozen": {"freeze_image_layers": 2},
    "image-frozen": {"freeze_image_layers": 12},
    "text-trained": {"freeze_text_layers": -1},
    "text-frozen": {"freeze_text_layers": 12},
    "visual-only": {"objective.cross_modal": False, "freeze_text_layers": None},
    "image-not-detached": {"objective.detach_image": False},
    "context-predicted": {"objective.cross_context_is_truth": False},
    "cross-cloze": {"objective.cross_cloze": True},
    "decoder-only": ADAPTER | {"adapter.kind": "identity"},
    "adapter-linear": ADAPTER | {"adapter.kind": "linear"},
    "adapter-attention": ADAPTER | {"adapter.kind": "attention"},
    "ladder": ADAPTER | {"adapter.kind": "ladder", "adapter.blocks": [0, 1, 2]},
    "ladder-pruned": ADAPTER
    | {"adapter.kind": "ladder_pruning", "adapter.blocks": [0, 1, 2], "adapter.reduction": 4},
    "ladder-linear": ADAPTER | {"adapter.kind": "linear_ladder", "adapter.blocks": [0, 1, 2]},
    "random": {
        "init": "random",
        "new_decoders": None,
        "freeze_text_layers": None,
        "freeze_statistics": False,
        "data.like_lengths": False,
    },
}


def said(row: str) -> dict[str, Any]:
    """What a row's recipe says, by dotted name, but where its run lies."""
    fields = yaml.safe_load((study.RECIPES / f"{row}.yaml").read_text())
    assert fields.pop("output") == f"runs/study/{row}"
    (fields["data"],) = fields["data"]
    return dict(flat(fields, ""))


def flat(fields: dict[str, Any], prefix: str) -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for name, value in fields.items():
        found += flat(value, f"{prefix}{name}.") if isinstance(value, dict) else [(f"{prefix}{name}", value)]
    return found


def a_run(row: str, seed: int, final: float, visual: float) -> Run:
    return {
        "row": row,
        "seed": seed,
        "recipe": "1f",
        "accuracy_36": {
            "signs": {"final": final, "visual": visual},
            "forms": {"final": final + 10, "visual": visual + 10},
        },
        "parameters": 7_000_000,
        "trained_parameters": 5_000_000,
        "peak_rss_bytes": 1_200_000_000,
        "peak_gpu_bytes": None,
        "step_ms": 250.0,
        "crops_per_second": 60.0,
    }


def a_study(*runs: Run) -> Study:
    return {
        "machine": {"device": "A processor", "threads": 2, "system": "Linux", "python": "3", "torch": "2"},
        "budget": {"samples": 8000, "crops": {"signs": 1000, "forms": 250}, "families": 1, "default": "sha"},
        "runs": list(runs),
    }


def line(text: str, title: str, table: int) -> list[str]:
    """The cells behind a row's title in one of the report's tables."""
    found = [part.strip("| \n").split(" | ") for part in text.splitlines() if part.startswith(f"| {title} ")]
    return found[table][1:]


def test_there_is_a_recipe_for_each_row() -> None:
    assert {path.stem for path in study.RECIPES.iterdir()} == {row.name for row in ROWS} == set(DIFFERENCES)


@pytest.mark.parametrize("row", DIFFERENCES)
def test_a_row_differs_from_the_baseline_in_what_it_says(row: str) -> None:
    baseline, fields = said("baseline"), said(row)
    names = set(baseline) | set(fields)  # None: not said
    differences = {name: fields.get(name) for name in names if baseline.get(name) != fields.get(name)}
    assert differences == DIFFERENCES[row]


@pytest.mark.parametrize("row", DIFFERENCES)
def test_all_rows_learn_at_the_same_rate(row: str) -> None:
    recipe = read_recipe(study.RECIPES / f"{row}.yaml")
    adapter = recipe.adapter is not None
    rate = peak_rate(recipe.optimization, batch_size=16, accumulate=1, world=1, adapter=adapter)
    assert recipe.batch_size == 16
    assert rate == pytest.approx(1e-3)


def test_the_report_compares_rows_over_the_seeds_they_share() -> None:
    runs = [a_run("baseline", 1, 50, 40), a_run("baseline", 2, 60, 40), a_run("visual-only", 2, 52.5, 52.5)]
    text = report(a_study(*runs))

    assert line(text, BASELINE, 0) == ["55.0", "65.0", "60.0 (55.0–65.0)", "45.0", "–", "–"]
    assert line(text, "visual branch only", 0) == ["52.5", "62.5", "57.5", "57.5", "−7.5", "−0.4"]
    assert line(text, "text encoder: all frozen", 0) == [*["–"] * 5, "about the same"]
    assert line(text, BASELINE, 1) == ["5.00", "7.00", "250.0", "60.0", "1,200", "–", "2"]
    assert "1,000 of signs, 250 of forms" in text
    # Two standard errors of a difference, each mean's variance being (0.25 / 1000 + 0.25 / 250) / 4.
    assert "below 5.0\npoints" in text


def test_the_report_without_results_has_what_the_paper_found() -> None:
    text = report(None)
    assert "No run has been measured yet." in text
    assert line(text, "image encoder: all frozen", 0) == ["–", "–", "–", "much lower"]
    assert "What they cost" not in text


def test_the_page_is_fresh() -> None:
    assert study.main(["--check"]) == 0


def test_a_stale_page_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    results = tmp_path / "study.json"
    results.write_text(json.dumps(a_study(a_run("baseline", 1, 50, 40))))
    monkeypatch.setattr(study, "PAGE", tmp_path / "training.md")
    study.PAGE.write_text(f"before\n{study.BEGIN}{study.END}after\n")
    assert study.main(["--check", "--output", str(results)]) == 1
    assert "run python bench/study.py" in capsys.readouterr().err

    study.PAGE.write_text(study.page(study.read_results(results)))
    assert study.main(["--check", "--output", str(results)]) == 0
    text = study.PAGE.read_text()
    assert text.startswith(f"before\n{study.BEGIN}")
    assert text.endswith(f"{study.END}after\n")


def test_one_row_end_to_end_and_then_kept(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "study.json"
    command = [
        "--rows",
        "decoder-only",
        "--samples",
        "32",
        "--output",
        str(path),
        "--validation",
        str(SAMPLES),
    ]
    assert study.main(command) == 0
    assert line(capfd.readouterr().out, "frozen image encoder, one decoder", 1)[-1] == "1"
    results = json.loads(path.read_text())
    (run,) = results["runs"]
    assert results["budget"]["crops"] == {"samples": len(open_set(SAMPLES))}
    assert set(run["accuracy_36"]["samples"]) == {"final", "visual"}
    assert 0 < run["trained_parameters"] < run["parameters"]
    assert run["peak_rss_bytes"] > 100e6
    assert run["step_ms"] > 0
    assert run["crops_per_second"] > 0

    run["step_ms"] = 1234.5
    path.write_text(json.dumps(results))
    assert study.main(command) == 0  # trains nothing
    assert json.loads(path.read_text()) == results
    capfd.readouterr()

    command[command.index("32")] = "64"
    assert study.main(command) == 2
    assert capfd.readouterr().err == (
        f"study: {path} holds a study with other samples (was 32, is 64); take another --output\n"
    )
    assert json.loads(path.read_text()) == results


def test_a_changed_recipe_is_another_run() -> None:
    plan = study.Plan(rows=["ladder"], seeds=[1])
    fields = plan.recipe("ladder", 1)
    moved = study.Plan(rows=["ladder"], seeds=[1], fonts=Path("elsewhere")).recipe("ladder", 1)
    assert study.digest(fields) == study.digest(moved)
    assert study.digest(fields) != study.digest(plan.recipe("ladder", 2))
    assert study.digest(fields) != study.digest(fields | {"batch_size": 32})


def test_overrides_reach_the_recipe() -> None:
    recipe = Recipe.model_validate(study.Plan([], [], samples=640, fonts=Path("fonts")).recipe("random", 7))
    assert (recipe.seed, recipe.samples) == (7, 640)
    (source,) = recipe.data
    assert source.source == "synthetic"
    assert (source.fonts, source.like_lengths) == (Path("fonts"), False)


def test_held_out_words_are_the_same_for_everyone(tmp_path: Path) -> None:
    first, second = (open_set(study.held_out(tmp_path / name, None)) for name in ("first", "second"))
    assert first.labels == second.labels
    assert len(first) == 512
    assert first.image(511).size == (128, 32)
    assert first.image(511).tobytes() == second.image(511).tobytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--samples", "16"], "samples is 16: expected more than one batch of 16"),
        (["--samples", "0"], "baseline: samples: Input should be greater than 0"),
        (["--fonts", "no-fonts"], "the fonts folder no-fonts does not exist"),
        (["--validation", "nowhere"], "nowhere: no such folder"),
        (["--validation", str(SAMPLES), str(SAMPLES)], "two sets of one name among samples, samples"),
    ],
)
def test_bad_input_is_answered_in_one_line(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    validation = [] if "--validation" in arguments else ["--validation", str(SAMPLES)]
    assert study.main([*arguments, *validation, "--output", str(tmp_path / "study.json")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(("text", "message"), [("{", "not JSON"), ("[]", "no results of a study")])
def test_other_files_are_refused(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "study.json"
    path.write_text(text)
    with pytest.raises(study.StudyError, match=message):
        study.read_results(path)
