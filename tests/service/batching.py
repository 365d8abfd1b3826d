"""Callers and runners for batchers under test, and the stage on which they play, in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Hashable, Sequence

from bench.virtual_time import run
from clip4str_service.batcher import (
    Admission,
    Batch,
    Batcher,
    BatcherClosedError,
    Bounds,
    DropReason,
    Outcome,
    Place,
)

BOUNDS = Bounds(max_batch=4, max_delay=0.002, max_items=16, max_bytes=1000)
FOREVER = 1e9


class UnreadableError(Exception):
    """The runner fails on one item."""


class Caller:
    """Owns places, and remembers in which order it was told of their outcomes."""

    admission: Admission[int, int]

    def __init__(self) -> None:
        self.told: list[int] = []
        self._all = asyncio.Event()

    def settled(self, place: Place[int, int]) -> None:
        """As the batcher's owner."""
        assert place.index not in self.told
        self.told.append(place.index)
        if not self.admission.open:
            self._all.set()

    async def answered(self) -> list[Outcome[int]]:
        """The outcomes of all places, once there are all."""
        await self._all.wait()
        return self.outcomes

    @property
    def places(self) -> list[Place[int, int]]:
        """In the order in which they were asked for."""
        return self.admission.places

    @property
    def outcomes(self) -> list[Outcome[int]]:
        """Of all places, which must be settled."""
        return [place.outcome for place in self.places]

    @property
    def kinds(self) -> list[type]:
        """What kinds of outcomes they are."""
        return [type(outcome) for outcome in self.outcomes]


class Stage:
    """A batcher of numbers, what its observer was told, and runners whose outcome is a number's double."""

    def __init__(self, bounds: Bounds = BOUNDS) -> None:
        self.batcher: Batcher[int, int] = Batcher(bounds, self, sizeof=lambda outcome: outcome)
        self.batches: list[Batch[int, int]] = []
        self.drops: list[DropReason] = []
        self.gone: list[int] = []
        self.unreadable: set[int] = set()
        self.deadly: set[int] = set()
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def now(self) -> float:
        """The event loop's time, in seconds."""
        return asyncio.get_running_loop().time()

    @property
    def ran(self) -> list[list[int]]:
        """The items of each batch."""
        return [batch.items for batch in self.batches]

    @property
    def starts(self) -> list[float]:
        """When each batch was sealed."""
        return [batch.sealed_at for batch in self.batches]

    def sealed(self, batch: Batch[int, int]) -> None:
        """As the batcher's observer."""
        self.batches.append(batch)

    def dropped(self, reason: DropReason) -> None:
        """As the batcher's observer."""
        self.drops.append(reason)

    def released(self, item: int) -> None:
        """As the batcher's observer."""
        self.gone.append(item)

    def ask(self, *sizes: int, urgent: bool = True, deadline: float = FOREVER, tenant: str = "one") -> Caller:
        """A caller with places for items of these sizes. Raises RefusedError."""
        caller = Caller()
        caller.admission = self.batcher.admit(
            sizes, urgent=urgent, deadline=deadline, tenant=tenant, owner=caller
        )
        return caller

    def submit(
        self,
        *items: int,
        urgent: bool = True,
        deadline: float = FOREVER,
        tenant: str = "one",
        key: Hashable | None = None,
    ) -> Caller:
        """A caller whose items, of one byte each, are in line."""
        caller = self.ask(*[1] * len(items), urgent=urgent, deadline=deadline, tenant=tenant)
        for place, item in zip(caller.places, items, strict=True):
            self.batcher.submit(place, item, key)
        return caller

    def runner(
        self,
        name: Hashable = "runner",
        seconds: Callable[[int], float] = lambda _: 0.010,
        *,
        lanes: int = 1,
        limit: int | None = None,
    ) -> None:
        """Has a runner take batches, each for so many seconds by its size, until the stage is left."""
        for _ in range(lanes):
            self._tasks.append(asyncio.create_task(self._run(name, seconds, limit)))

    def background(self, work: Coroutine[None, None, None]) -> None:
        """Has something done beside the scenario, by the time that the stage is left."""
        self._tasks.append(asyncio.create_task(work))

    async def _run(self, name: Hashable, seconds: Callable[[int], float], limit: int | None) -> None:
        while True:
            try:
                batch = await self.batcher.take(name, limit)
            except BatcherClosedError:
                return
            await asyncio.sleep(seconds(len(batch)))
            if self.deadly.intersection(batch.items):
                self.batcher.give_back(batch)
            else:
                self.batcher.finish(batch, [self._outcome(item) for item in batch.items])

    def _outcome(self, item: int) -> Outcome[int]:
        return UnreadableError() if item in self.unreadable else 2 * item

    async def leave(self) -> None:
        """Stops the batcher and waits for the runners."""
        self.batcher.stop()
        await asyncio.gather(*self._tasks)


def play(
    scenario: Callable[[Stage], Awaitable[None]],
    bounds: Bounds = BOUNDS,
    *,
    runners: Sequence[Hashable] = ("runner",),
) -> Stage:
    """Plays a scenario in virtual time, with these runners, and returns the stage it was played on."""

    async def main() -> Stage:
        stage = Stage(bounds)
        for runner in runners:
            stage.runner(runner)
        await scenario(stage)
        await stage.leave()
        return stage

    return run(main())
