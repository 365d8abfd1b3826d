"""Gathers single items of many callers into batches for whoever runs them. Knows nothing but asyncio.

A caller first takes places for its items (`admit`), so that what cannot be served is refused before any work is
spent on it; then it prepares each item and submits it to its place. Runners take batches (`take`) and bring the
outcomes (`finish`), or die (`give_back`). A batch is sealed late: only when a runner waits for one, and then from
whoever waits at that moment. It waits for more, at most `max_delay` from the oldest waiting item on, only while it
is not full and admitted items are still being prepared.

The rules are in `batching`: who may come in (`gate`, `room`), whose turn it is (`line`, `turns`), when a batch is due
(`takers`), what can be done in time (`forecast`, `cost`). Here is what happens to a place, from admission to outcome.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Generic, TypeVar

from clip4str_service.batching.cost import Cost
from clip4str_service.batching.gate import (
    BatcherFullError,
    Bounds,
    DeadlineUnmeetableError,
    Gate,
    RefusedError,
)
from clip4str_service.batching.line import Line
from clip4str_service.batching.memory import Memory
from clip4str_service.batching.places import (
    Admission,
    Batch,
    BatcherClosedError,
    DropReason,
    ItemExpiredError,
    ItemWithdrawnError,
    Observer,
    Outcome,
    Owner,
    Place,
    RunnerDiedError,
    State,
    Work,
)
from clip4str_service.batching.takers import Fate, Taker, Takers

__all__ = [
    "Admission",
    "Batch",
    "Batcher",
    "BatcherClosedError",
    "BatcherFullError",
    "Bounds",
    "DeadlineUnmeetableError",
    "DropReason",
    "Fate",
    "ItemExpiredError",
    "ItemWithdrawnError",
    "Observer",
    "Outcome",
    "Owner",
    "Place",
    "RefusedError",
    "RunnerDiedError",
    "State",
    "Work",
]

T = TypeVar("T")
R = TypeVar("R")


class Batcher(Generic[T, R]):
    """Bounded, fair, prioritised, late-sealing batches of items T, whose outcomes are R. Made on its event loop.

    Nothing runs inside it but a timer: what is done is done when somebody calls. There never are more unreleased
    items than places that take room, which `Bounds` bounds.
    """

    def __init__(
        self, bounds: Bounds, observer: Observer[T, R], sizeof: Callable[[R], int] = sys.getsizeof
    ) -> None:
        """`sizeof`: the bytes of an outcome, for the cache's bound."""
        self.bounds = bounds
        self._observer = observer
        self._loop = asyncio.get_running_loop()
        self._line: Line[T, R] = Line(observer.released)
        self._gate = Gate(bounds, self._line)
        self._takers = Takers(self._line, self._gate.forecast, bounds.max_delay)
        self._memory = Memory(bounds.cache_bytes, sizeof)
        self._admissions: dict[Admission[T, R], None] = {}  # whose owner was not told of all outcomes yet
        self._batches: dict[Batch[T, R], Taker] = {}  # that run
        self._emptied = asyncio.Event()
        self._emptied.set()
        self._closed = False
        self._stopped = False

    @property
    def queued(self) -> int:
        """Places that were admitted and whose item is in no batch yet."""
        return self._line.queued

    @property
    def running(self) -> int:
        """Places whose item is in a batch; of an item that fills none any more, one."""
        return self._gate.items - self._line.queued

    @property
    def items(self) -> int:
        """Places that take room: those queued and those running."""
        return self._gate.items

    @property
    def nbytes(self) -> int:
        """The bytes of their items."""
        return self._gate.nbytes

    @property
    def cost(self) -> Cost:
        """What batches cost, as learned from those that ran."""
        return self._gate.forecast.cost

    def retry_after(self) -> float:
        """Seconds, from 0.05 to 60, after which what waits now will have been run; 1 while that is not known."""
        return self._gate.back_after(self._line.waiting + self._line.preparing, self._loop.time())

    def admit(
        self, sizes: Sequence[int], *, urgent: bool, deadline: float, tenant: str, owner: Owner[T, R]
    ) -> Admission[T, R]:
        """Takes places for items of these sizes in bytes, one at least: for all or for none.

        Args:
            deadline: of the outcomes, as a time of the event loop.
            tenant: on whose account; tenants share room and turns fairly.

        Raises:
            BatcherClosedError: `close` was called.
            BatcherFullError: a bound would be exceeded, or others' fair part of the room be taken.
            DeadlineUnmeetableError: by what waits before them and what batches cost, there is no time for them.
        """
        if self._closed:
            raise BatcherClosedError("the batcher takes no more items")
        nbytes = sum(sizes)
        now = self._loop.time()
        forecast = self._gate.check(
            len(sizes), nbytes, urgent=urgent, deadline=deadline, tenant=tenant, now=now
        )
        admission = Admission(sizes, urgent, deadline, tenant, owner, forecast)
        self._gate.enter(admission, nbytes)
        self._line.expect(admission)
        self._admissions[admission] = None
        self._emptied.clear()
        return admission

    def submit(self, place: Place[T, R], item: T, key: Hashable | None) -> None:
        """Puts the item of a place in line. If the place has its outcome already, the item is released at once.

        Args:
            key: what the outcome depends on. An item is not run if one of the same key waits or runs, or if the
                outcome of one before is still known: its place gets that outcome. None: it is run in any case.
        """
        if place.state is not State.PREPARING:
            self._observer.released(item)
            return
        now = self._loop.time()
        place.submitted_at = now
        if place.admission.deadline <= now:
            self._observer.released(item)
            self._line.leave(place)
            self._expire([place])
        elif key is not None and key in self._memory:
            self._observer.released(item)
            self._line.leave(place)
            place.sealed_at = place.finished_at = now
            self._settle(place, self._memory.recall(key))
            self._tell([place])
        else:
            self._free_vacated(self._line.put(place, item, key, now))  # the newcomer's room is enough
        self._takers.look(now)

    def withdraw(self, place: Place[T, R], reason: DropReason | None) -> None:
        """Gives a place back, unless it has its outcome.

        An item that waits for nobody else goes; one that runs, runs on. `reason` is told to the observer if the
        place was still queued.
        """
        if place.state is State.SETTLED:
            return
        runs = place.state is State.RUNNING
        if reason is not None and not runs:
            self._observer.dropped(reason)
        self._line.leave(place)
        vacates = runs and not place.work.places
        if vacates:
            place.work.vacated = place
        self._settle(place, ItemWithdrawnError("the place was given back"), keep_room=vacates)
        self._tell([place])
        self._takers.look(self._loop.time())

    async def take(self, runner: Hashable, limit: int | None = None, fate: Fate | None = None) -> Batch[T, R]:
        """The next batch for a runner, of `limit` items at most; returns when it is due, and seals it then.

        Each runner takes its part of what waits and runs; takers of the same runner do not share. A taker that is
        cancelled loses nothing. `fate`: what dies when the runner dies, if others share it.

        Raises:
            BatcherClosedError: the batcher was stopped.
        """
        if limit is not None and limit < 1:
            raise ValueError(f"a batch holds at least one item, not {limit}")
        limit = min(limit or self.bounds.max_batch, self.bounds.max_batch)
        taker = Taker(runner, self._gate.forecast.runner(runner, limit), fate or Fate(), limit)
        self._takers.add(taker)
        try:
            await asyncio.sleep(0)  # runners that become free together share what waits
            while not self._stopped:
                await taker.due()
                batch = self._seal(taker) if self._takers.may_go(taker) else None
                if batch is not None:
                    return batch
                self._takers.look(self._loop.time())
            raise BatcherClosedError("the batcher runs no more items")
        finally:
            self._takers.remove(taker)

    def finish(self, batch: Batch[T, R], outcomes: Sequence[Outcome[R]]) -> None:
        """Gives the items of a batch their outcomes, in order; of any other number of outcomes none is believed.

        Does nothing if the batch does not run any more: it was given back, and its runner answers late.
        """
        taker = self._batches.pop(batch, None)
        if taker is None:
            return
        now = self._loop.time()
        seconds = taker.end(len(batch), now)
        if len(outcomes) != len(batch):
            error = RuntimeError(f"the runner gave {len(outcomes)} outcomes for {len(batch)} items")
            outcomes = [error] * len(batch)
        if not all(isinstance(outcome, Exception) for outcome in outcomes):
            self.cost.learn(len(batch), seconds)
        for work, outcome in zip(batch.works, outcomes, strict=True):
            if work.key is not None and not isinstance(outcome, Exception):
                self._memory.keep(work.key, outcome)
            self._end(work, outcome, now)
        self._tell(place for work in batch.works for place in work.places)
        self._takers.look(now)

    def give_back(self, batch: Batch[T, R]) -> None:
        """A batch's runner died. Each of its items runs once more, alone and next; one that did has that it died.

        Does nothing if the batch does not run any more.
        """
        taker = self._batches.pop(batch, None)
        if taker is None:
            return
        now = self._loop.time()
        taker.end(len(batch), now)
        dead: list[Work[T, R]] = []
        for work in batch.works:
            if work.places and not work.replay:
                self._line.replay(work)
            else:
                self._end(work, RunnerDiedError("the runner died of this item"), now)
                dead.append(work)
        self._tell(place for work in dead for place in work.places)
        self._takers.look(now)

    def forget(self, runner: Hashable) -> None:
        """A runner is gone: nothing is expected of it until it takes again."""
        self._gate.forecast.forget(runner)

    def close(self) -> None:
        """Takes no more items; those admitted go on."""
        self._closed = True

    async def drained(self) -> None:
        """Returns when every place has its outcome and nothing runs. For use after `close`."""
        await self._emptied.wait()

    def stop(self) -> None:
        """Runs no more batches. What has no outcome yet has BatcherClosedError, and so have takers.

        The items of batches that run are released when those are finished or given back.
        """
        self._closed = self._stopped = True
        self._line.clear()
        for batch in self._batches:
            for work in batch.works:
                work.places.clear()
                self._free_vacated(work)
        places = [place for admission in self._admissions for place in admission.places]
        unsettled = [place for place in places if place.state is not State.SETTLED]
        for place in unsettled:
            self._settle(place, BatcherClosedError("the batcher was stopped"))
        self._takers.wake_all()
        self._tell(unsettled)

    def _seal(self, taker: Taker) -> Batch[T, R] | None:
        """The taker's batch, from whoever waits now and still has time; None if there is nobody."""
        now = self._loop.time()
        works, late, replay = self._line.seal(self._takers.size(taker), now, self.cost)
        batch = None
        if works:
            batch = Batch(works, taker.name, now, replay)
            self._batches[batch] = taker
            taker.begin(len(batch), replay, now)
            self._observer.sealed(batch)
        self._expire(late)
        return batch

    def _expire(self, places: Sequence[Place[T, R]]) -> None:
        """Settles places that left the line because their deadline passed."""
        for place in places:
            self._observer.dropped("deadline")
            self._settle(place, ItemExpiredError("the deadline passed"))
        self._tell(places)

    def _end(self, work: Work[T, R], outcome: Outcome[R], now: float) -> None:
        """A work ran: its item is released, and its places have the outcome."""
        self._line.end(work)
        self._free_vacated(work)
        for place in work.places:
            place.finished_at = now
            if not work.replay:
                self._gate.done(place, now)
            self._settle(place, outcome)

    def _free_vacated(self, work: Work[T, R]) -> None:
        if work.vacated is not None:
            self._gate.exit(work.vacated)
            work.vacated = None

    def _settle(self, place: Place[T, R], outcome: Outcome[R], *, keep_room: bool = False) -> None:
        """A place that left the line has its outcome; to be told as soon as everything is in order."""
        place.state = State.SETTLED
        place.outcome = outcome
        if not keep_room:
            self._gate.exit(place)

    def _tell(self, places: Iterable[Place[T, R]]) -> None:
        """Tells owners of outcomes, last of all: they may call the batcher."""
        for place in places:
            admission = place.admission
            admission.open -= 1
            if not admission.open:
                del self._admissions[admission]
            admission.owner.settled(place)
        if not self._gate.items:
            self._emptied.set()
