"""The HorizontalPodAutoscaler (autoscaling/v2) as kubernetes.io documents its algorithm, without a cluster.

Each metric first proposes how many pods there should be: `by_pods`, `by_average`. `Autoscaler` takes the largest
proposal, and then no more of it than stabilisation windows, scaling policies and bounds let it.
KEDA leaves all of this to the same controller: its triggers are external metrics, `by_average`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import Literal, NamedTuple

SYNC_SECONDS = 15.0  # --horizontal-pod-autoscaler-sync-period
TOLERANCE = 0.1  # --horizontal-pod-autoscaler-tolerance


class Seen(NamedTuple):
    """A pod that is not being deleted, as a metric shows it.

    `value`: None when it is missing. `unready`: the pod has not started to run; of CPU, too, if it is not ready or
    was not yet when its value was taken.
    """

    value: float | None
    unready: bool = False


def by_pods(current: int, seen: Sequence[Seen], target: float) -> int | None:
    """Pods so that each has `target` of a metric that each has for itself; None where no value is known.

    Of `current` pods, those without a value count as on target against a scale-down and as idle against a scale-up,
    and so do those that are not ready against a scale-up.
    """
    values = [_milli(each.value) for each in seen if each.value is not None and not each.unready]
    missing = sum(each.value is None and not each.unready for each in seen)
    unready = sum(each.unready for each in seen)
    if not values:
        return None
    ratio = sum(values) // len(values) / _milli(target)
    heed_unready = unready > 0 and ratio > 1
    if not missing and not heed_unready:
        return current if _close(ratio) else ceil(ratio * len(values))
    values += [_milli(target) if ratio < 1 else 0] * missing
    if heed_unready:
        values += [0] * unready
    careful = sum(values) // len(values) / _milli(target)
    if _close(careful) or (careful > 1) != (ratio > 1):
        return current
    proposed = ceil(careful * len(values))
    return current if (proposed > current) != (careful > 1) else proposed


def by_average(current: int, value: float | None, target: float) -> int | None:
    """Pods so that each has `target` of a metric that is divided among them."""
    if value is None:
        return None
    ratio = _milli(value) / _milli(target)
    return current if _close(ratio / current) else ceil(ratio)


def _milli(value: float) -> int:
    """As the metrics APIs have it: in thousandths, so that no rounding of floats asks for one pod more."""
    return round(1000 * value)


def _close(ratio: float) -> bool:
    return abs(1.0 - ratio) <= TOLERANCE


class Policy(NamedTuple):
    """At most so many pods, or so many of a hundred, more or fewer within so many seconds."""

    kind: Literal["Pods", "Percent"]
    value: int
    seconds: float

    def more(self, start: int) -> int:
        """How many pods there may be at most, of `start` before."""
        return start + self.value if self.kind == "Pods" else -(-start * (100 + self.value) // 100)

    def fewer(self, start: int) -> int:
        """How many there may be at least."""
        return start - self.value if self.kind == "Pods" else start * (100 - self.value) // 100


@dataclass(frozen=True, slots=True)
class Rules:
    """Of one direction: the most cautious proposal of the last `window` seconds counts; policies bound the step.

    `select`: Max takes the policy that allows most, Min the one that allows least, Disabled forbids the direction.
    """

    window: float
    policies: Sequence[Policy]
    select: Literal["Max", "Min", "Disabled"] = "Max"


@dataclass(frozen=True, slots=True)
class Behavior:
    """The `behavior` of a HorizontalPodAutoscaler."""

    up: Rules
    down: Rules


DEFAULT = Behavior(
    up=Rules(0.0, (Policy("Percent", 100, 15.0), Policy("Pods", 4, 15.0))),
    down=Rules(300.0, (Policy("Percent", 100, 15.0),)),
)
"""What counts where nothing is said."""


class _At(NamedTuple):
    time: float
    pods: int


class Autoscaler:
    """Decides about one Deployment. Remembers what was proposed and done, as windows and policies need it."""

    def __init__(self, least: int, most: int, behavior: Behavior = DEFAULT) -> None:
        self._least = least
        self._most = most
        self._behavior = behavior
        self._proposed: list[_At] = []
        self._added: list[_At] = []
        self._removed: list[_At] = []

    def decide(self, now: float, current: int, proposals: Sequence[int | None]) -> int:
        """How many pods there shall be, by what each metric proposes; None: it proposes nothing, for want of values.

        Call it once in each sync period, and do what it says.
        """
        known = [each for each in proposals if each is not None]
        if not known or (len(known) < len(proposals) and max(known) < current):
            return current  # what is not known might be against fewer
        wanted = self._limited(now, current, self._stable(now, current, max(known)))
        if wanted > current:
            self._added.append(_At(now, wanted - current))
        elif wanted < current:
            self._removed.append(_At(now, current - wanted))
        return wanted

    def _stable(self, now: float, current: int, proposed: int) -> int:
        """No more than the least, and no fewer than the most, that was proposed in the window of the direction."""
        up, down = self._behavior.up, self._behavior.down
        floor = min([proposed, *(each.pods for each in self._proposed if each.time > now - up.window)])
        ceiling = max([proposed, *(each.pods for each in self._proposed if each.time > now - down.window)])
        oldest = now - max(up.window, down.window)
        self._proposed = [each for each in self._proposed if each.time > oldest]
        self._proposed.append(_At(now, proposed))
        return min(max(current, floor), ceiling)

    def _limited(self, now: float, current: int, wanted: int) -> int:
        """What policies and bounds leave of the step."""
        if wanted > current:
            wanted = min(wanted, max(current, self._bound(now, current, self._behavior.up, up=True)))
        elif wanted < current:
            wanted = max(wanted, self._bound(now, current, self._behavior.down, up=False))
        return max(self._least, min(self._most, wanted))

    def _bound(self, now: float, current: int, rules: Rules, *, up: bool) -> int:
        if rules.select == "Disabled":
            return current
        bounds = []
        for policy in rules.policies:
            since = now - policy.seconds
            added, removed = (
                sum(each.pods for each in events if each.time > since)
                for events in (self._added, self._removed)
            )
            start = current - added + removed
            bounds.append(policy.more(start) if up else policy.fewer(start))
        return max(bounds) if up == (rules.select == "Max") else min(bounds)
