"""What the study's results say, as Markdown: its rows, the results file's form, two tables."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import TypedDict

BASELINE = "baseline"


@dataclass(frozen=True, slots=True)
class Row:
    """A recipe of the study, what differs from the baseline in it, and what became of that in the paper."""

    name: str
    title: str
    paper: str = "–"


ROWS = (
    Row(BASELINE, "baseline: both branches, half of the text encoder frozen"),
    Row("image-1-frozen", "image encoder: 1 block of 3 frozen"),
    Row("image-2-frozen", "image encoder: 2 blocks of 3 frozen"),
    Row("image-frozen", "image encoder: all frozen", "much lower"),
    Row("text-trained", "text encoder: none frozen", "about the same"),
    Row("text-frozen", "text encoder: all frozen", "about the same"),
    Row("visual-only", "visual branch only", "−0.4"),
    Row("image-not-detached", "cross-modal loss trains the image encoder"),
    Row("context-predicted", "cross-modal context: predicted, not the label"),
    Row("cross-cloze", "cross-modal mask: cloze"),
    Row("decoder-only", "frozen image encoder, one decoder", "lower"),
    Row("adapter-linear", "the same with CLIP-Adapter", "lower, above the decoder alone"),
    Row("adapter-attention", "the same with an attention adapter"),
    Row("ladder", "the same with Ladder Side-Tuning"),
    Row(
        "ladder-pruned", "the same with Ladder Side-Tuning, pruned to a quarter", "lower, above CLIP-Adapter"
    ),
    Row("ladder-linear", "the same with a linear ladder"),
    Row("random", "everything starts at random", "lower (image encoder at random)"),
)


class Run(TypedDict):
    """One row trained with one seed, and measured."""

    row: str
    seed: int
    recipe: str  # digest of all that the recipe says
    accuracy_36: dict[str, dict[str, float]]  # set -> "final" and "visual" -> percent
    parameters: int
    trained_parameters: int
    peak_rss_bytes: int
    peak_gpu_bytes: int | None
    step_ms: float  # median
    crops_per_second: float


class Budget(TypedDict):
    """What all runs of a study have in common beside their recipes."""

    samples: int
    crops: dict[str, int]  # read of each validation set
    families: int  # of fonts
    default: str  # revision of the model that rows start from


class Study(TypedDict):
    """The results file."""

    machine: dict[str, str | int]
    budget: Budget
    runs: list[Run]


def report(study: Study | None) -> str:
    """The results as Markdown; None: nothing has been measured."""
    runs = [] if study is None else study["runs"]
    by_row = {row.name: [run for run in runs if run["row"] == row.name] for row in ROWS}
    sets = [] if study is None else list(study["budget"]["crops"])
    accuracy = _table(
        ["row", *sets, "mean", "visual branch", "to the baseline", "the paper"],
        [_accuracy(row, by_row[row.name], by_row[BASELINE], sets) for row in ROWS],
    )
    text = f"{_preface(study)}\n{accuracy}\n"
    if runs:
        cost = _table(
            ["row", "trained, M", "of, M", "step, ms", "crops/s", "memory, MB", "GPU memory, MB", "seeds"],
            [_cost(row, by_row[row.name]) for row in ROWS if by_row[row.name]],
        )
        text += f"What they cost to train:\n\n{cost}\n{_COSTS}\n"
    return text + _PAPER


def _preface(study: Study | None) -> str:
    text = (
        "Each row is a [recipe](../model/clip4str/training/recipes/study) for the default architecture, like the\n"
        "baseline but for what its name says, from the default model's encoders, which stand in for CLIP's, and new\n"
        "decoders. `python bench/study.py` trains and measures them. "
    )
    if study is None:
        return f"{text}No run has been measured yet.\n"
    machine, budget = study["machine"], study["budget"]
    read = ", ".join(f"{count:,} of {name}" for name, count in budget["crops"].items())
    fonts = "1 font" if budget["families"] == 1 else f"{budget['families']:,} font families"
    return (
        f"{text}Measured on {machine['device']}\n({machine['threads']} CPU threads, torch {machine['torch']}), "
        f"{budget['samples']:,} synthetic words a run, drawn with {fonts}.\n\n"
        f"accuracy_36 of the final answer in percent; crops read: {read}. The mean is over sets, then over seeds,\n"
        "with the range of seeds behind it. By the number of crops alone, differences between means below "
        f"{_noise(budget['crops']):.1f}\npoints may be chance (two standard errors, at most, with one seed).\n"
    )


_COSTS = """\
Trained parameters are those of the encoders and decoders; memory is the training process's peak, without the process
that makes words; steps are medians, without the wait for words, which crops/s include. Rows with one branch answer
with the visual branch's reading. Random weights train their batch statistics, on batches of mixed lengths, which
take longer.
"""
_PAPER = """\
"The paper" is how CLIP4STR-B fared on real words against its own baseline, as
[a review](https://docsaid.org/en/papers/text-recognition/clip4str) reports the paper's study: points where it names
them, else the direction; "–" where it says nothing. A tiny model, a tiny budget and other data: signs can be
compared, if those, and amounts cannot. These encoders have learnt to read from synthetic words, where CLIP's have
learnt from images of anything: freezing them is likely to cost less here than in the paper.
"""


def _accuracy(row: Row, runs: list[Run], baseline: list[Run], sets: list[str]) -> list[str]:
    """Cells; "–" where nothing is known."""
    if not runs:
        return [row.title, *["–"] * (len(sets) + 3), row.paper]
    means = {run["seed"]: _mean(run, "final") for run in runs}
    reference = {run["seed"]: _mean(run, "final") for run in baseline}
    mean = f"{statistics.fmean(means.values()):.1f}"
    if len(means) > 1:
        mean += f" ({min(means.values()):.1f}–{max(means.values()):.1f})"
    common = [means[seed] - reference[seed] for seed in means if seed in reference]
    difference = "–"
    if common and row.name != BASELINE:
        difference = f"{statistics.fmean(common):+.1f}".replace("-", "−")
    each = [f"{statistics.fmean(run['accuracy_36'][name]['final'] for run in runs):.1f}" for name in sets]
    visual = f"{statistics.fmean(_mean(run, 'visual') for run in runs):.1f}"
    return [row.title, *each, mean, visual, difference, row.paper]


def _cost(row: Row, runs: list[Run]) -> list[str]:
    gpu = [run["peak_gpu_bytes"] for run in runs if run["peak_gpu_bytes"] is not None]
    return [
        row.title,
        f"{runs[0]['trained_parameters'] / 1e6:.2f}",
        f"{runs[0]['parameters'] / 1e6:.2f}",
        f"{statistics.fmean(run['step_ms'] for run in runs):.1f}",
        f"{statistics.fmean(run['crops_per_second'] for run in runs):.1f}",
        f"{max(run['peak_rss_bytes'] for run in runs) / 1e6:,.0f}",
        f"{max(gpu) / 1e6:,.0f}" if gpu else "–",
        str(len(runs)),
    ]


def _mean(run: Run, branch: str) -> float:
    return statistics.fmean(branches[branch] for branches in run["accuracy_36"].values())


def _noise(crops: dict[str, int]) -> float:
    """Two standard errors of the difference of two means over sets, in points, where half of the words are right."""
    variance = sum(0.25 / count for count in crops.values()) / len(crops) ** 2
    return 200 * math.sqrt(2 * variance)


def _table(titles: list[str], rows: list[list[str]]) -> str:
    lines = [titles, ["---"] * len(titles), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
