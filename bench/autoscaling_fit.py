"""What the windows of a measurement say of the service's speed: lines through points, and how far points lie off."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bench.autoscaling_report import Speed, Spread
from bench.autoscaling_spans import TracedBatch

_CALM = (
    0.002  # part of the requests: a window in which no more are refused tells what batches take by themselves
)
_LARGEST = (1, 2, 4, 8, 16, 24, 32, 48, 64)  # sizes of batches, in groups
_LEAST_BATCHES = 5  # in a group, else it is one with the next
_QUANTILES = 21


class FitError(ValueError):
    """The measurement does not tell; one line for the user."""


@dataclass(frozen=True, slots=True)
class Observed:
    """A stretch under one load: what was counted, CPU seconds of all processes, and batches that were traced."""

    seconds: float
    crops: float
    batches: float
    refused: float
    cpu: float
    traced: Sequence[TracedBatch]

    @property
    def calm(self) -> bool:
        """Whether hardly anything was refused."""
        return self.refused <= _CALM * (self.crops + self.refused)


def speed(windows: Sequence[Observed], besides_s: float) -> Speed:
    """What a worker does in a time. Raises FitError."""
    traced = [batch for window in windows if window.calm for batch in window.traced]
    if len(traced) < 2 * _LEAST_BATCHES or len({batch.crops for batch in traced}) < 2:
        raise FitError(
            f"{len(traced)} batches were traced: expected more, of several sizes; measure for longer"
        )
    crops, seconds = np.array([[batch.crops, batch.seconds] for batch in traced]).T
    # A batch's duration is the less certain the larger it is: the service's own estimate weighs them alike.
    columns = np.stack([crops, np.ones_like(crops)], axis=1) / np.sqrt(crops)[:, None]
    per_item, per_batch = nonnegative(columns, seconds / np.sqrt(crops))
    line = per_item * crops + per_batch
    counted = np.array([[window.crops, window.batches, window.refused] for window in windows])
    cpu = nonnegative(counted, np.array([window.cpu for window in windows]))
    return {
        "per_item_s": per_item,
        "per_batch_s": per_batch,
        "spreads": _spreads(crops, seconds, seconds / line),
        "slower_per_refusal_s": _slower(windows, per_item, per_batch),
        "besides_s": besides_s,
        "cpu_per_crop_s": cpu[0],
        "cpu_per_batch_s": cpu[1],
        "cpu_per_refusal_s": cpu[2],
    }


def nonnegative(columns: np.ndarray, values: np.ndarray) -> list[float]:
    """Least squares; a coefficient that would be negative is 0, the most negative first."""
    found = np.zeros(columns.shape[1])
    kept = list(range(columns.shape[1]))
    while kept:
        solved = np.linalg.lstsq(columns[:, kept], values, rcond=None)[0]
        if (solved >= 0).all():
            found[kept] = solved
            break
        del kept[int(solved.argmin())]
    return [float(each) for each in found]


def _spreads(crops: np.ndarray, seconds: np.ndarray, ratios: np.ndarray) -> list[Spread]:
    spreads: list[Spread] = []
    smallest = 0
    for largest in _LARGEST:
        inside = (crops > smallest) & (crops <= largest)
        if inside.sum() < _LEAST_BATCHES:
            continue
        points = np.quantile(ratios[inside], np.linspace(0, 1, _QUANTILES))
        spreads.append(
            {
                "largest": largest,
                "batches": int(inside.sum()),
                "mean_s": round(float(seconds[inside].mean()), 5),
                "quantiles": [round(float(each), 4) for each in points],
            }
        )
        smallest = largest
    return spreads


def _slower(windows: Sequence[Observed], per_item: float, per_batch: float) -> float:
    """By how much more batches take for each refusal a second: a line through no refusals and no more time."""
    points = [
        (
            window.refused / window.seconds,
            float(np.mean([batch.seconds / (per_item * batch.crops + per_batch) for batch in window.traced]))
            - 1,
        )
        for window in windows
        if not window.calm and window.traced
    ]
    if not points:
        return 0.0
    refusals, slower = np.array(points).T
    return max(0.0, float((refusals * slower).sum() / (refusals**2).sum()))
