"""What became of a simulated run's requests: in all, and every few seconds."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from bench.autoscaling_report import Run, Timeline

LOOK_SECONDS = 5.0
_OVER = 0.01  # part of what was asked that is refused or late: more is too much


class _Counts:
    """Of some time."""

    def __init__(self) -> None:
        self.asked = 0
        self.refused = 0
        self.late = 0
        self.seconds: list[float] = []  # of answers

    @property
    def lost(self) -> float:
        """The part of what was asked that nobody could use."""
        return (self.refused + self.late) / self.asked if self.asked else 0.0


class Ledger:
    """Counts. `timeout`: what is answered later, in seconds, is late."""

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._whole = _Counts()
        self._part = _Counts()
        self._lost: list[float] = []  # of each look
        self._replicas: list[int] = []
        self._pod_seconds = 0.0
        self.timeline: Timeline = {
            "time_s": [],
            "offered": [],
            "replicas": [],
            "ready": [],
            "load_ratio": [],
            "p99_ms": [],
            "refused": [],
        }

    def asked(self) -> None:
        """A request was sent."""
        for counts in (self._whole, self._part):
            counts.asked += 1

    def read(self, seconds: float) -> None:
        """It was answered after so many seconds."""
        if seconds > self._timeout:
            self.late()
        for counts in (self._whole, self._part):
            counts.seconds.append(seconds)

    def late(self) -> None:
        """It was accepted, and is not answered by its deadline."""
        for counts in (self._whole, self._part):
            counts.late += 1

    def refused(self) -> None:
        """It was not accepted."""
        for counts in (self._whole, self._part):
            counts.refused += 1

    def look(self, now: float, replicas: int, ready: int, pods: int, load_ratio: float) -> None:
        """Adds a line to the timeline. `pods`: all that there are, those that start and those that drain, too."""
        part, self._part = self._part, _Counts()
        line = self.timeline
        line["time_s"].append(round(now, 3))
        line["offered"].append(round(part.asked / LOOK_SECONDS, 1))
        line["replicas"].append(replicas)
        line["ready"].append(ready)
        line["load_ratio"].append(round(load_ratio, 4))
        line["p99_ms"].append(_ms(part.seconds, 99))
        line["refused"].append(round(part.refused / part.asked if part.asked else 0.0, 4))
        self._lost.append(part.lost)
        self._replicas.append(replicas)
        self._pod_seconds += pods * LOOK_SECONDS

    def run(self, case: str, policy: str) -> Run:
        """The whole of it."""
        whole = self._whole
        over = [time for time, lost in zip(self.timeline["time_s"], self._lost, strict=True) if lost > _OVER]
        p99s = [each for each in self.timeline["p99_ms"] if each is not None]
        changes, reversals = _changes(self._replicas)
        return {
            "case": case,
            "policy": policy,
            "requests": whole.asked,
            "refused": round(whole.refused / whole.asked, 5),
            "late": round(whole.late / whole.asked, 5),
            "p50_ms": _ms(whole.seconds, 50),
            "p99_ms": _ms(whole.seconds, 99),
            "worst_p99_ms": max(p99s, default=None),
            "pod_hours": round(self._pod_seconds / 3600, 4),
            "most": max(self._replicas),
            "changes": changes,
            "reversals": reversals,
            "over_after_s": over[-1] - over[0] + LOOK_SECONDS if over else None,
            "timeline": self.timeline,
        }


def _changes(replicas: Sequence[int]) -> tuple[int, int]:
    """How often the number changed, and how often in the other direction than the time before."""
    steps = [after - before for before, after in pairwise(replicas) if after != before]
    turns = sum((one > 0) != (other > 0) for one, other in pairwise(steps))
    return len(steps), turns


def _ms(seconds: Sequence[float], percent: float) -> float | None:
    return round(1000 * float(np.percentile(seconds, percent)), 1) if seconds else None
