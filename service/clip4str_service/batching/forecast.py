"""When items would be done: from what batches cost, and what each runner is busy with."""

from __future__ import annotations

from collections.abc import Hashable, Set
from itertools import accumulate

from clip4str_service.batching.cost import Cost


class Runner:
    """What runs one batch after the other, perhaps with several in hand so that it never waits for the next.

    `limit`: how many items its batches may hold. `busy`: the sizes of the batches in hand, in order.
    """

    __slots__ = ("busy", "limit", "since")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.busy: list[int] = []
        self.since = 0.0  # it finished a batch, or had one after it had none

    def begin(self, items: int, now: float) -> None:
        """It has a batch of so many items in hand."""
        if not self.busy:
            self.since = now
        self.busy.append(items)

    def end(self, items: int, now: float) -> float:
        """It has one of so many less. The seconds since the one before: what the batch took of its time."""
        self.busy.remove(items)
        seconds = now - self.since
        self.since = now
        return seconds


class Forecast:
    """The runners that are known, and what a batch costs them."""

    def __init__(self) -> None:
        self.cost = Cost()
        self._runners: dict[Hashable, Runner] = {}

    def runner(self, name: Hashable, limit: int) -> Runner:
        """The runner of that name, known from now on."""
        runner = self._runners.get(name)
        if runner is None:
            runner = self._runners[name] = Runner(limit)
        runner.limit = limit
        return runner

    def forget(self, name: Hashable) -> None:
        """The runner is gone."""
        self._runners.pop(name, None)

    def part(self, waiting: int, free: Set[Runner]) -> int:
        """An even part of what waits and what is in hand, for each runner that is free or has something in hand."""
        busy = {runner for runner in self._runners.values() if runner.busy}
        in_hand = sum(sum(runner.busy) for runner in busy)
        return -(-(waiting + in_hand) // len(free | busy))

    def seconds(self, items: int, now: float) -> float | None:
        """How long, at least, until so many items are run besides those in hand; None when there is no telling.

        The last of them are in a batch as large as is usual, since others come while they wait. As if the work
        could be divided among the runners at will, so that all end at the same moment: each gets what it can do
        from when it has nothing in hand any more.
        """
        cost = self.cost
        if not self._runners or not cost.known:
            return None
        limit = max(runner.limit for runner in self._runners.values())
        batches, rest = divmod(items, limit)
        work = batches * cost.at_least(limit)
        if rest:
            work += cost.at_least(max(rest, min(limit, cost.usual)))
        in_hand = sorted(
            max(0.0, sum(map(cost.at_least, runner.busy)) - (now - runner.since)) if runner.busy else 0.0
            for runner in self._runners.values()
        )
        return min((work + sum_) / count for count, sum_ in enumerate(accumulate(in_hand), 1))
