"""The pictures of simulated runs: replicas, load ratio, p99 and refusals over time, a case's policies together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from bench.autoscaling_report import Run

_INCHES, _DPI = (9.0, 8.4), 90
_COLOURS = ("#0b6e99", "#c4501b", "#5b8c2a")  # told apart by those who see fewer colours, too
_STYLES = ("-", "--", ":")


def draw(
    path: Path,
    title: str,
    runs: Sequence[Run],
    titles: Mapping[str, str],
    capacity: float,
    deadline: float,
) -> None:
    """One PNG for a case.

    Args:
        titles: of the policies, by their names.
        capacity: crops per second that a pod reads at best.
        deadline: of a request, in seconds.
    """
    with mpl.rc_context({"font.size": 9, "axes.grid": True, "grid.alpha": 0.3}):
        figure = Figure(figsize=_INCHES, dpi=_DPI, layout="constrained")
        pods, load, wait, lost = figure.subplots(4, 1, sharex=True)
        first = runs[0]["timeline"]
        minutes = [time / 60 for time in first["time_s"]]
        worth = [rate / capacity for rate in first["offered"]]
        pods.fill_between(minutes, worth, color="0.88", label="load, in pods at their best")
        for run, colour, style in zip(runs, _COLOURS, _STYLES, strict=False):
            line = run["timeline"]
            look = {"color": colour, "linestyle": style, "label": titles[run["policy"]]}
            pods.step(minutes, line["replicas"], where="post", **look)
            load.plot(minutes, line["load_ratio"], **look)
            # A gap, where nothing was read, stays one.
            wait.plot(minutes, [float("nan") if each is None else each for each in line["p99_ms"]], **look)
            lost.plot(minutes, [100 * each for each in line["refused"]], **look)
        wait.axhline(1000 * deadline, color="0.4", linewidth=0.8)
        pods.set_ylabel("replicas wanted")
        load.set_ylabel("load ratio")
        wait.set_ylabel("p99 of what was read, ms")
        lost.set_ylabel("refused, %")
        lost.set_xlabel("minutes")
        figure.legend(*pods.get_legend_handles_labels(), loc="outside upper center", ncols=4, title=title)
        for axes in (pods, load, wait, lost):
            axes.set_ylim(bottom=0)
            axes.set_xlim(0, minutes[-1])
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, metadata={"Software": None}, pil_kwargs={"optimize": True})
