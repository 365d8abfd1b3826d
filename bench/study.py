"""The paper's empirical study at small scale: train each of its rows, write what came out into docs/training.md.

`python bench/study.py [--rows NAME ...] [--samples N] [--seeds N ...] [--fonts DIR] [--validation DIR ...]` keeps
each run in --output as it ends, so that a stopped study goes on; with --check it trains nothing and returns 1 where
the page is not what the results say. The rows are the recipes in model/clip4str/training/recipes/study.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
import yaml
from PIL import Image
from pydantic import ValidationError

from clip4str import CheckpointError, checkpoint
from clip4str.benchmark.machine import this_machine
from clip4str.config import VARIANTS
from clip4str.datasets import LABELS_FILE, DatasetError, open_set
from clip4str.synth.fonts import FontError, FontLibrary
from clip4str.synth.stream import WordStream
from clip4str.training.recipe import Recipe

# Of a program's own modules, Python finds only those beside it.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.study_report import BASELINE, ROWS, Budget, Run, Study, report

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "training.md"
RECIPES = ROOT / "model" / "clip4str" / "training" / "recipes" / "study"
RESULTS = ROOT / "bench" / "results" / "study" / "tiny.json"
BEGIN, END = "<!-- study: begin -->\n", "<!-- study: end -->\n"
_SET_CROPS = 1000  # read of each set at most, spread evenly over it
_HELD_OUT_CROPS, _HELD_OUT_CHUNK = 512, 64
_HELD_OUT_SEED = 0  # a stream of its own: the seeds of training's streams have more parts


class StudyError(ValueError):
    """The study cannot go on; one line for the user."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to train and measure.

    samples: crops of each run, None: as the recipes say. fonts: folder, None: Pillow's one font. validation: sets,
    none: words that training never draws.
    """

    rows: Sequence[str]
    seeds: Sequence[int]
    samples: int | None = None
    fonts: Path | None = None
    validation: Sequence[Path] = ()

    def recipe(self, row: str, seed: int) -> dict[str, Any]:
        """A row's recipe with what the plan overrides. Raises StudyError for a value that no recipe takes."""
        fields: dict[str, Any] = yaml.safe_load((RECIPES / f"{row}.yaml").read_text(encoding="utf-8"))
        fields |= {"seed": seed, "samples": fields["samples"] if self.samples is None else self.samples}
        for source in fields["data"]:
            source["fonts"] = None if self.fonts is None else str(self.fonts)
        try:
            recipe = Recipe.model_validate(fields)
        except ValidationError as error:
            first = error.errors()[0]
            raise StudyError(f"{row}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
        if recipe.samples <= recipe.batch_size:
            raise StudyError(
                f"samples is {recipe.samples}: expected more than one batch of {recipe.batch_size}"
            )
        return fields


def measure(plan: Plan, path: Path) -> Study:
    """Train and measure what the results file lacks of the plan; the file has each run as soon as it ends.

    Raises StudyError, and CheckpointError, DatasetError or FontError for what the runs would start from.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sets = list(plan.validation) or [held_out(folder / "synthetic", plan.fonts)]
        study = resume(path, _machine(), _budget(plan, sets))
        _write(path, study)  # where it cannot be written, say so before the work
        for seed in plan.seeds:
            for row in plan.rows:
                fields = plan.recipe(row, seed)
                said = digest(fields)
                before = [run for run in study["runs"] if (run["row"], run["seed"]) == (row, seed)]
                if any(run["recipe"] == said for run in before):
                    continue
                sys.stderr.write(f"study: {row}, seed {seed}\n")
                measures = _train(fields, sets, folder / f"{row}-{seed}")
                kept = [run for run in study["runs"] if run not in before]
                study["runs"] = [*kept, cast(Run, {"row": row, "seed": seed, "recipe": said, **measures})]
                _write(path, study)
    return study


def resume(path: Path, machine: dict[str, str | int], budget: Budget) -> Study:
    """The study in a file, to be gone on with, or a new one. Raises StudyError where it was begun otherwise."""
    study = read_results(path)
    if study is None:
        return {"machine": machine, "budget": budget, "runs": []}
    before: dict[str, object] = {**study["machine"], **study["budget"]}
    now: dict[str, object] = {**machine, **budget}
    changed = [f"{key} (was {before.get(key)}, is {now[key]})" for key in now if before.get(key) != now[key]]
    if changed:
        raise StudyError(f"{path} holds a study with other {', '.join(changed)}; take another --output")
    return study


def read_results(path: Path) -> Study | None:
    """A results file, or None where there is none. Raises StudyError."""
    if not path.exists():
        return None
    try:
        study = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise StudyError(f"{path}: not JSON ({error}); take another --output") from None
    if not isinstance(study, dict) or set(study) != set(Study.__annotations__):
        raise StudyError(f"{path}: no results of a study; take another --output")
    return cast(Study, study)


def page(study: Study | None) -> str:
    """docs/training.md as it should be. Raises StudyError where it has no place for the report."""
    text = PAGE.read_text(encoding="utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise StudyError(f"{PAGE}: expected the lines {BEGIN.strip()} and {END.strip()}, once each")
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n{report(study)}\n{END}{rest.split(END)[1]}"


def held_out(folder: Path, fonts: Path | None) -> Path:
    """Write a set of words that no training draws, each drawn once. Raises FontError."""
    folder.mkdir()
    stream = WordStream(
        fonts,
        seed=_HELD_OUT_SEED,
        size=VARIANTS["tiny"].vision.image_size,
        chapter=_HELD_OUT_CROPS,
        reuse=1,
        chunk=_HELD_OUT_CHUNK,
    )
    lines: list[str] = []
    for batch, _ in zip(stream.crops(), range(_HELD_OUT_CROPS // _HELD_OUT_CHUNK), strict=False):
        for image, label in zip(batch.images, batch.labels, strict=True):
            lines.append(f"{len(lines)}.png\t{label}\n")
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{len(lines) - 1}.png")
    (folder / LABELS_FILE).write_text("".join(lines), encoding="utf-8")
    return folder


def digest(fields: dict[str, Any]) -> str:
    """Of all that a recipe's fields say but where things lie, 12 hexadecimal digits: equal for equal runs."""
    data = [{key: value for key, value in source.items() if key != "fonts"} for source in fields["data"]]
    rest = {**fields, "data": data, "output": None}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()[:12]


def _machine() -> dict[str, str | int]:
    return asdict(this_machine(torch.device("cuda" if torch.cuda.is_available() else "cpu")))


def _budget(plan: Plan, sets: Sequence[Path]) -> Budget:
    names = [path.resolve().name for path in sets]
    if len(set(names)) < len(names):
        raise StudyError(f"--validation: two sets of one name among {', '.join(names)}; rename one")
    counts = [min(_SET_CROPS, len(open_set(path))) for path in sets]
    return {
        "samples": plan.recipe(BASELINE, 1)["samples"],
        "crops": dict(zip(names, counts, strict=True)),
        "families": len(FontLibrary.open(plan.fonts).families),
        "default": checkpoint.load("default").revision,
    }


def _train(fields: dict[str, Any], sets: Sequence[Path], folder: Path) -> dict[str, Any]:
    """What study_run.py measures of a recipe."""
    folder.mkdir()
    job, result = folder / "job.json", folder / "result.json"
    recipe = {**fields, "output": str(folder)}
    job.write_text(json.dumps({"recipe": recipe, "sets": [str(path) for path in sets], "crops": _SET_CROPS}))
    command = [sys.executable, str(ROOT / "bench" / "study_run.py"), str(job), str(result)]
    if subprocess.run(command, check=False).returncode != 0:  # noqa: S603 (our own program)
        raise StudyError("a run failed, for the reason above; those before it are kept")
    measures: dict[str, Any] = json.loads(result.read_text())
    return measures


def _write(path: Path, study: Study) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(study, indent=1) + "\n", encoding="utf-8")
    partial.replace(path)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Train and measure the paper's empirical study at small scale."
    )
    names = [row.name for row in ROWS]
    parser.add_argument(
        "--rows", nargs="+", choices=names, default=names, metavar="NAME", help=", ".join(names)
    )
    parser.add_argument("--samples", type=int, metavar="N", help="crops of each run (default: the recipes')")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1], metavar="N")
    parser.add_argument("--fonts", type=Path, metavar="DIR", help="default: the one font that Pillow ships")
    parser.add_argument(
        "--validation",
        nargs="+",
        type=Path,
        default=[],
        metavar="DIR",
        help="sets of words (default: synthetic)",
    )
    parser.add_argument(
        "--output", type=Path, default=RESULTS, help="results; of another file, the report is printed"
    )
    parser.add_argument("--check", action="store_true", help="train nothing; fail when the page is stale")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return 1 for a stale page, 2 after one line on standard error for bad input."""
    arguments = _parser().parse_args(argv)
    try:
        if arguments.check:
            if page(read_results(arguments.output)) == PAGE.read_text(encoding="utf-8"):
                return 0
            sys.stderr.write("docs/training.md is not what the results say: run python bench/study.py\n")
            return 1
        plan = Plan(
            arguments.rows, arguments.seeds, arguments.samples, arguments.fonts, tuple(arguments.validation)
        )
        study = measure(plan, arguments.output)
        if arguments.output.resolve() == RESULTS:
            PAGE.write_text(page(study), encoding="utf-8")
        else:
            sys.stdout.write(report(study))
    except KeyboardInterrupt:
        return 130
    except OSError as error:
        sys.stderr.write(f"study: {error.filename}: {error.strerror}\n")
        return 2
    except (CheckpointError, DatasetError, FontError, StudyError) as error:
        sys.stderr.write(f"study: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
