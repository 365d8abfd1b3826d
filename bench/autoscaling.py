"""What to scale the service on, and at which figures: measured, simulated, drawn.

`python bench/autoscaling.py` measures the service here (about three minutes), simulates a Deployment of it under a
HorizontalPodAutoscaler (a few minutes), and writes what came out into docs/operations.md and its pictures. With
--simulate it does the second alone, from what was measured before; with --check it does neither and returns 1 where
the page is not what the results say.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar, cast

# Of a program's own modules, Python finds only those beside it.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench import autoscaling_cases as cases
from bench.autoscaling_fit import FitError
from bench.autoscaling_measure import Plan, measure
from bench.autoscaling_plots import draw
from bench.autoscaling_report import Measured, Simulated
from bench.autoscaling_tables import NOTHING, section
from samples.demo import StartError

R = TypeVar("R")

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "operations.md"
PICTURES = ROOT / "docs" / "autoscaling"
RESULTS = ROOT / "bench" / "results" / "autoscaling"
MEASURED, SIMULATED = RESULTS / "measured.json", RESULTS / "simulated.json"
BEGIN, END = "<!-- autoscaling: begin -->\n", "<!-- autoscaling: end -->\n"


class AutoscalingError(ValueError):
    """The run cannot go on; one line for the user."""


def simulate(measured: Measured) -> Simulated:
    """Every run, as many at a time as there are processors."""
    workers = len(os.sched_getaffinity(0))
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:

        def each(function: Callable[..., R], *arguments: tuple[Any, ...]) -> list[Future[R]]:
            return [pool.submit(function, measured, *one) for one in arguments]

        names = [(case, policy) for case in cases.CASES for policy in cases.POLICIES]
        grid = each(cases.case, *names)
        spike = each(cases.variant, *((name,) for name in cases.VARIANTS))
        slow = each(cases.slow, *((name,) for name in cases.SLOW))
        levels = each(cases.level, *((share,) for share in cases.LEVELS))
        pod = each(cases.pod, *((number,) for number in range(len(measured["open"]))))
        return {
            "digest": digest(measured),
            "grid": _results(grid),
            "spike": _results(spike),
            "slow": _results(slow),
            "levels": _results(levels),
            "pod": _results(pod),
        }


def _results(futures: Sequence[Future[R]]) -> list[R]:
    found = []
    for future in futures:
        found.append(future.result())
        sys.stderr.write(".")
        sys.stderr.flush()
    return found


def digest(measured: Measured) -> str:
    """Tells results of this measurement from those of another."""
    return hashlib.sha256(json.dumps(measured, sort_keys=True).encode()).hexdigest()[:16]


def page() -> str:
    """docs/operations.md as it should be, by the stored results. Raises AutoscalingError, OSError."""
    text = PAGE.read_text(encoding="utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise AutoscalingError(f"{PAGE}: expected the lines {BEGIN.strip()} and {END.strip()}, once each")
    told = NOTHING
    if MEASURED.exists() or SIMULATED.exists():
        measured, simulated = (
            cast(Measured, _read(MEASURED, Measured)),
            cast(Simulated, _read(SIMULATED, Simulated)),
        )
        if simulated["digest"] != digest(measured):
            raise AutoscalingError(
                f"{SIMULATED}: not of what was measured; run python bench/autoscaling.py --simulate"
            )
        told = section(measured, simulated)
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n{told}\n{END}{rest.split(END)[1]}"


def pictures(measured: Measured, simulated: Simulated) -> None:
    """Draws all cases anew."""
    titles = {name: policy.title for name, policy in cases.POLICIES.items()}
    for name, case in cases.CASES.items():
        runs = [run for run in simulated["grid"] if run["case"] == name]
        draw(PICTURES / f"{name}.png", case.title, runs, titles, measured["capacity"], cases.TIMEOUT)


def _read(path: Path, form: type) -> Any:
    """Raises AutoscalingError, OSError."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise AutoscalingError(f"{path}: not JSON ({error}); run python bench/autoscaling.py") from None
    if not isinstance(found, dict) or set(found) != set(form.__annotations__):
        raise AutoscalingError(f"{path}: no results of this program; run python bench/autoscaling.py")
    return found


def write(path: Path, report: Measured | Simulated) -> None:
    """Stores results, with a line for each entry of a list: what changed can be seen."""
    path.parent.mkdir(parents=True, exist_ok=True)
    parts = []
    for name, value in report.items():
        lines = ",\n  ".join(map(json.dumps, value)) if isinstance(value, list) else None
        parts.append(f' "{name}": {json.dumps(value)}' if lines is None else f' "{name}": [\n  {lines}\n ]')
    path.write_text("{\n" + ",\n".join(parts) + "\n}\n", encoding="utf-8")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Measure the service, and simulate how it is scaled.")
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--simulate", action="store_true", help="from what was measured before")
    only.add_argument("--check", action="store_true", help="measure nothing; fail when the page is stale")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return 1 for a stale page, 2 after one line for what cannot be done."""
    arguments = _parser().parse_args(argv)
    try:
        if arguments.check:
            if page() == PAGE.read_text(encoding="utf-8"):
                return 0
            sys.stderr.write(
                "docs/operations.md is not what bench/results/autoscaling says: run python bench/autoscaling.py\n"
            )
            return 1
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # the service is stopped at any end
        if not arguments.simulate:
            write(MEASURED, measure(Plan()))
        measured = cast(Measured, _read(MEASURED, Measured))
        simulated = simulate(measured)
        write(SIMULATED, simulated)
        pictures(measured, simulated)
        PAGE.write_text(page(), encoding="utf-8")
    except KeyboardInterrupt:
        return 130
    except (AutoscalingError, FitError, StartError, OSError) as error:
        sys.stderr.write(f"autoscaling: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
