"""Measure serving: this service by each of its ways, the bare model, and the same model behind other frameworks.

`python bench/serve.py [--only NAME ...] [--seconds N] [--quick]` measures everything in one run, with the same model
and the same crops, each server in turns with the bare model and each framework in turns with REST, and writes what
came out into docs/performance.md; with --check it measures nothing and returns 1 where the page is not what the
results say. The frameworks to compare with have an environment of their own: `python bench/rivals/install.py`
makes it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

# Of a program's own modules, Python finds only those beside it.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.serve_bare import Bare
from bench.serve_promises import promises
from bench.serve_report import Report
from bench.serve_run import Plan, measure
from bench.serve_subjects import RIVALS_PYTHON, SUBJECTS, Subject
from bench.serve_tables import NOTHING, tables
from bench.serve_tree import orphans_adopted
from clip4str import CheckpointError
from clip4str.hardware import HardwareError
from samples.demo import StartError

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "performance.md"
RESULTS = ROOT / "bench" / "results" / "serve"
BEGIN, END = "<!-- serving: begin -->\n", "<!-- serving: end -->\n"
_SEED = 2024  # of the crops
_CROPS, _QUICK_CROPS = 4096, 64
_QUICK = Plan(seconds=0.5, overload_seconds=1.0, recovery_seconds=2.0, clients=4, rounds=1)


class ServeError(ValueError):
    """The run cannot go on; one line for the user."""


async def run(subjects: Sequence[Subject], plan: Plan, crops: int, path: Path) -> Report:
    """Measure; the file has each way as soon as it is measured. Raises ServeError, StartError."""
    with orphans_adopted(), Bare() as bare:
        bare.load(os.environ.get("CLIP4STR_MODEL", "default"), _device(), crops, _SEED, plan.seconds / 5)
        material = bare.material
        report: Report = {
            "machine": material.machine,
            "model": material.model,
            "crops": len(material.crops),
            "crop_bytes": sum(map(len, material.crops)) / len(material.crops),
            "best_batch": material.best_batch,
            "seconds": plan.seconds,
            "overload_seconds": plan.overload_seconds,
            "results": [],
        }
        for subject in subjects:
            sys.stderr.write(f"serve: {subject.title}\n")
            report["results"].append(await measure(subject, bare, plan, () if subject.ours else SUBJECTS[:1]))
            _write(path, report)
    return report


def page(reports: Sequence[Report]) -> str:
    """docs/performance.md as it should be. Raises ServeError where it has no place for the report."""
    text = PAGE.read_text(encoding="utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ServeError(f"{PAGE}: expected the lines {BEGIN.strip()} and {END.strip()}, once each")
    before, rest = text.split(BEGIN)
    told = "\n".join(map(tables, reports)) or NOTHING
    return f"{before}{BEGIN}\n{told}\n{END}{rest.split(END)[1]}"


def read_results(folder: Path) -> list[Report]:
    """The reports of a folder, by name. Raises ServeError."""
    reports = []
    for file in sorted(folder.glob("*.json")):
        try:
            report = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ServeError(f"{file}: not JSON ({error}); measure again") from None
        if not isinstance(report, dict) or set(report) != set(Report.__annotations__):
            raise ServeError(f"{file}: no results of this program; measure again")
        reports.append(cast(Report, report))
    return reports


def _write(path: Path, report: Report) -> None:
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    partial.replace(path)


def _writable(path: Path) -> None:
    """Better known before the work than after it. Raises ServeError, OSError."""
    if path.is_dir():
        raise ServeError(f"--output {path} is a folder: name a file")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.touch()
    partial.unlink()


def _device() -> str | None:
    """The device that the service would take."""
    device = os.environ.get("CLIP4STR_DEVICES", "auto")
    return None if device == "auto" else device


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Measure serving, in one run, beside the bare model.")
    names = [subject.name for subject in SUBJECTS]
    parser.add_argument(
        "--only", nargs="+", choices=names, default=names, metavar="NAME", help=", ".join(names)
    )
    parser.add_argument("--seconds", type=float, metavar="N", help="of a closed loop (default: 10)")
    parser.add_argument(
        "--overload-seconds", type=float, metavar="N", help="at twice the best (default: 120)"
    )
    parser.add_argument("--clients", type=int, metavar="N", help="of a closed loop, at most (default: 128)")
    parser.add_argument("--quick", action="store_true", help="a smoke run: its figures mean nothing")
    parser.add_argument(
        "--output",
        type=Path,
        default=RESULTS / "this-machine.json",
        help="results; elsewhere than in bench/results/serve, the report is printed",
    )
    parser.add_argument("--check", action="store_true", help="measure nothing; fail when the page is stale")
    return parser


def _measured(arguments: argparse.Namespace) -> Report:
    plan = _QUICK if arguments.quick else Plan()
    changes = {
        name: getattr(arguments, name)
        for name in ("seconds", "overload_seconds", "clients")
        if getattr(arguments, name) is not None
    }
    if any(value <= 0 for value in changes.values()):
        raise ServeError(f"{', '.join(changes)} must be above 0")
    subjects = [subject for subject in SUBJECTS if subject.name in arguments.only]
    if not all(subject.ours for subject in subjects) and not RIVALS_PYTHON.exists():
        raise ServeError(
            "the frameworks to compare with are not installed: make bench-rivals, or choose --only"
        )
    _writable(arguments.output)
    crops = _QUICK_CROPS if arguments.quick else _CROPS
    return asyncio.run(run(subjects, replace(plan, **changes), crops, arguments.output))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns 1 for a stale page or wrong readings, 2 after one line for bad input, 130 when interrupted.
    """
    arguments = _parser().parse_args(argv)
    try:
        if arguments.check:
            if page(read_results(RESULTS)) == PAGE.read_text(encoding="utf-8"):
                return 0
            sys.stderr.write(
                "docs/performance.md is not what bench/results/serve says: run python bench/serve.py\n"
            )
            return 1
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # servers are stopped at any end
        report = _measured(arguments)
        if arguments.output.resolve().parent == RESULTS:
            PAGE.write_text(page(read_results(RESULTS)), encoding="utf-8")
        else:
            sys.stdout.write(tables(report))
        for each in promises(report):
            if not each.kept and not arguments.quick:
                sys.stderr.write(f"serve: not kept: {each.what}: {each.figure} ({each.bound})\n")
        return 1 if any(result["wrong"] for result in report["results"]) else 0
    except KeyboardInterrupt:
        return 130
    except (ServeError, StartError, CheckpointError, HardwareError, OSError) as error:
        sys.stderr.write(f"serve: {error}\n")
        return 2


if __name__ == "__main__":
    sys.exit(main())
