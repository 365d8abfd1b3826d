"""Who waits for a batch, and when it is due."""

from __future__ import annotations

import asyncio
from collections.abc import Hashable
from typing import Generic, TypeVar

from clip4str_service.batching.forecast import Forecast, Runner
from clip4str_service.batching.line import Line

T = TypeVar("T")
R = TypeVar("R")


class Fate:
    """What runners share that die together. A replay runs alone in it: if they die again, it was of that item."""

    __slots__ = ("_replaying", "_running")

    def __init__(self) -> None:
        self._running = 0
        self._replaying = False

    def allows(self, replay: bool) -> bool:
        """Whether such a batch may run beside those that run."""
        return not self._replaying and not (replay and self._running)

    def begin(self, replay: bool) -> None:
        """Such a batch runs."""
        self._running += 1
        self._replaying = replay

    def end(self) -> None:
        """One of those that ran does not any more."""
        self._running -= 1
        self._replaying = False


class Taker:
    """Waits for a batch of `limit` items at most. `woken`: a batch is due, or there will be none any more."""

    __slots__ = ("fate", "limit", "name", "runner", "woken")

    def __init__(self, name: Hashable, runner: Runner, fate: Fate, limit: int) -> None:
        self.name = name
        self.runner = runner
        self.fate = fate
        self.limit = limit
        self.woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def begin(self, items: int, replay: bool, now: float) -> None:
        """It has its batch."""
        self.runner.begin(items, now)
        self.fate.begin(replay)

    def end(self, items: int, now: float) -> float:
        """Its batch runs no more. The seconds that it took of the runner's time."""
        self.fate.end()
        return self.runner.end(items, now)

    def wake(self) -> None:
        """Lets it look for its batch."""
        if not self.woken.done():
            self.woken.set_result(None)

    async def due(self) -> None:
        """Returns once it was woken; it can then be woken again."""
        await self.woken
        self.woken = asyncio.get_running_loop().create_future()


class Takers(Generic[T, R]):
    """Those who wait for a batch of a line.

    One at a time is woken, and seals its batch when it runs: from whoever waits at that moment. Whoever changes
    what waits calls `look`, and so does every taker that leaves, so that no batch is left due with nobody awake.
    """

    def __init__(self, line: Line[T, R], forecast: Forecast, max_delay: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._line = line
        self._forecast = forecast
        self._max_delay = max_delay
        self._takers: dict[Taker, None] = {}  # the first to come first
        self._alarm: asyncio.TimerHandle | None = None

    def add(self, taker: Taker) -> None:
        """The taker waits."""
        self._takers[taker] = None
        self.look(self._loop.time())

    def remove(self, taker: Taker) -> None:
        """The taker has a batch, or wants none any more."""
        del self._takers[taker]
        self.look(self._loop.time())

    def look(self, now: float) -> None:
        """Wakes the taker whose turn it is if a batch is due, or sees to it that this is looked at when it will be.

        It is the turn of a taker whose runner has the least in hand; of several, of the one that waits the shortest:
        its caches still hold what it needs.
        """
        if not self._takers or not (self._line.waiting or self._line.replays):
            return
        taker = min(filter(self.may_go, reversed(self._takers)), key=_in_hand, default=None)
        if taker is None or taker.woken.done():
            return  # each of them looks when it runs, or when what it waits for has run
        due_at = self._due_at(taker)
        if due_at <= now:
            taker.wake()
        elif self._alarm is None:  # one that is set rings no later: what waits the longest is ever younger
            self._alarm = self._loop.call_at(due_at, self._ring)

    def may_go(self, taker: Taker) -> bool:
        """Whether the next batch may run beside those that share the taker's fate."""
        return taker.fate.allows(self._line.replays > 0)

    def size(self, taker: Taker) -> int:
        """How many items the taker's batch may hold now.

        Runners that are free share what waits. But none takes more than an even part of that and of what others are
        busy with: they would soon be back for theirs, from behind a batch that takes long. So few who ask again and
        again end up in batches of the same size, not in one that is large and one of a single item.
        """
        waiting = self._line.waiting
        free = {each.runner for each in self._takers if self.may_go(each)}
        return min(taker.limit, -(-waiting // len(free)), self._forecast.part(waiting, free))

    def wake_all(self) -> None:
        """There will be no more batches."""
        if self._alarm is not None:
            self._alarm.cancel()
        for taker in self._takers:
            taker.wake()

    def _due_at(self, taker: Taker) -> float:
        if self._line.replays or not self._line.preparing or self.size(taker) == taker.limit:
            return 0.0
        return self._line.oldest + self._max_delay

    def _ring(self) -> None:
        self._alarm = None
        self.look(self._loop.time())


def _in_hand(taker: Taker) -> int:
    return len(taker.runner.busy)
