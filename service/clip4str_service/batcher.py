"""Gathers single items of many callers into batches for one runner. Knows nothing but asyncio.

A caller first takes places for its items (`admit`), so that what cannot be served is refused before any work
is spent on it; then it prepares each item and submits it to its place. A batch is sealed late: only when the
runner is free, and then from whoever waits at that moment. It waits for more, at most `max_delay` from the
oldest waiting item on, only while it is not full and admitted items are still being prepared.

Urgent items go first, yet of every `BULK_EVERY` items one is not urgent as long as such an item waits.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Generic, Literal, Protocol, TypeVar, cast

T = TypeVar("T")
R = TypeVar("R")

BULK_EVERY = 8

DropReason = Literal["cancelled", "deadline"]


class BatcherFullError(Exception):
    """There is no room for the items; the message says which bound is reached."""


class BatcherClosedError(Exception):
    """The batcher takes no more items, or runs no more."""


class ItemExpiredError(Exception):
    """The item's deadline passed before its batch was sealed."""


class ItemWithdrawnError(Exception):
    """The caller took the item back before it had an outcome."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a batcher may hold.

    `max_batch`: items in one batch. `max_delay`: seconds. `max_items`, `max_bytes`: items, and their bytes,
    that were admitted and have no outcome yet, those in the running batch included.
    """

    max_batch: int
    max_delay: float
    max_items: int
    max_bytes: int


class Observer(Protocol):
    """Is told what the batcher does."""

    def sealed(self, waits: Sequence[float]) -> None:
        """A batch was sealed; `waits` holds the seconds that each of its items had waited."""

    def dropped(self, reason: DropReason) -> None:
        """An admitted item will never run."""


class State(IntEnum):
    """Where an item is on its way."""

    PREPARING = 0
    WAITING = 1
    RUNNING = 2
    SETTLED = 3


class Place(Generic[T, R]):
    """One item's place, from admission to outcome. Times are the event loop's, in seconds, 0 before."""

    __slots__ = (
        "admission",
        "finished_at",
        "item",
        "nbytes",
        "outcome",
        "sealed_at",
        "state",
        "submitted_at",
    )

    def __init__(self, admission: Admission[T, R], nbytes: int) -> None:
        self.admission = admission
        self.nbytes = nbytes
        self.state = State.PREPARING
        self.item: T | None = None
        self.outcome: R | Exception = ItemWithdrawnError()
        self.submitted_at = 0.0
        self.sealed_at = 0.0
        self.finished_at = 0.0


class Admission(Generic[T, R]):
    """The places of one caller. `deadline` is a time of the event loop."""

    __slots__ = ("_batcher", "_waiter", "deadline", "open", "places", "urgent")

    def __init__(self, batcher: Batcher[T, R], sizes: Sequence[int], urgent: bool, deadline: float) -> None:
        self._batcher = batcher
        self._waiter: asyncio.Future[None] | None = None
        self.urgent = urgent
        self.deadline = deadline
        self.places = [Place(self, nbytes) for nbytes in sizes]
        self.open = len(sizes)

    def submit(self, index: int, item: T) -> None:
        """Puts a prepared item in line. Its place must still be open."""
        self._batcher.submit(self.places[index], item)

    def withdraw(self, index: int) -> None:
        """Gives back the place of an item that could not be prepared."""
        self._batcher.withdraw(self.places[index], None)

    def withdraw_all(self, reason: DropReason) -> None:
        """Gives back every place that has no outcome yet; what runs already runs on, unheeded."""
        for place in self.places:
            self._batcher.withdraw(place, reason)

    async def settled(self) -> None:
        """Returns when no place is open any more. One task at a time."""
        if self.open:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter

    def close_one(self) -> None:
        """Counts one place as settled (for the batcher)."""
        self.open -= 1
        if not self.open and self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class Batcher(Generic[T, R]):
    """Bounded, prioritised, late-sealing batches for `run`, which is called with one batch at a time.

    `run` answers a batch with one outcome for each item, in order. When it raises, or answers another number,
    the items of that batch alone have the exception as their outcome.
    """

    def __init__(
        self, run: Callable[[list[T]], Awaitable[Sequence[R]]], bounds: Bounds, observer: Observer
    ) -> None:
        self.bounds = bounds
        self.running = 0
        self._run = run
        self._observer = observer
        self._queues: dict[bool, OrderedDict[Place[T, R], None]] = {True: OrderedDict(), False: OrderedDict()}
        self._preparing = 0
        self._nbytes = 0
        self._urgent_in_a_row = 0  # urgent items taken while others waited
        self._waker: asyncio.Future[None] | None = None
        self._emptied: asyncio.Future[None] | None = None
        self._task: asyncio.Task[None] | None = None
        self._closed = False
        self._stopped = False

    @property
    def queued(self) -> int:
        """Items that were admitted and are in no batch yet."""
        return self._preparing + len(self._queues[True]) + len(self._queues[False])

    @property
    def serving(self) -> bool:
        """True while batches are run."""
        return self._task is not None and not self._task.done()

    def start(self) -> None:
        """Begins to run batches, on the running event loop."""
        self._task = asyncio.get_running_loop().create_task(self._serve())

    def admit(self, sizes: Sequence[int], *, urgent: bool, deadline: float) -> Admission[T, R]:
        """Takes places for items of these sizes in bytes: for all or for none.

        Raises:
            BatcherClosedError: `close` was called.
            BatcherFullError: a bound would be exceeded.
        """
        if self._closed:
            raise BatcherClosedError
        items = self.queued + self.running + len(sizes)
        nbytes = self._nbytes + sum(sizes)
        if items > self.bounds.max_items:
            raise BatcherFullError(f"the queue has room for {self.bounds.max_items} items")
        if nbytes > self.bounds.max_bytes:
            raise BatcherFullError(f"the queue has room for {self.bounds.max_bytes} bytes")
        self._preparing += len(sizes)
        self._nbytes = nbytes
        return Admission(self, sizes, urgent, deadline)

    def submit(self, place: Place[T, R], item: T) -> None:
        """Puts the item of an open place in line, or expires it at once."""
        now = asyncio.get_running_loop().time()
        self._preparing -= 1
        place.submitted_at = now
        if self._stopped:
            self._settle(place, BatcherClosedError())
        elif place.admission.deadline <= now:
            self._settle(place, ItemExpiredError())
            self._observer.dropped("deadline")
        else:
            place.item = item
            place.state = State.WAITING
            self._queues[place.admission.urgent][place] = None
        self._wake()

    def withdraw(self, place: Place[T, R], reason: DropReason | None) -> None:
        """Gives a place back, unless its item runs or has an outcome. `reason` is told to the observer."""
        if place.state is State.PREPARING:
            self._preparing -= 1
        elif place.state is State.WAITING:
            del self._queues[place.admission.urgent][place]
        else:
            return
        self._settle(place, place.outcome)
        if reason is not None:
            self._observer.dropped(reason)
        self._wake()

    def close(self) -> None:
        """Takes no more items; those admitted go on."""
        self._closed = True

    async def drained(self) -> None:
        """Returns when every admitted item has an outcome. For use after `close`, by one task."""
        if self.queued or self.running:
            self._emptied = asyncio.get_running_loop().create_future()
            await self._emptied

    async def stop(self) -> None:
        """Runs no more batches. The outcome of what has none yet, and of what still comes, is the closure."""
        self._closed = self._stopped = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        for place in self._in_turn():
            self._settle(place, BatcherClosedError())

    async def _serve(self) -> None:
        while True:
            await self._due()
            batch = self._seal()
            if batch:
                await self._run_batch(batch)

    async def _due(self) -> None:
        """Returns when the next batch should be sealed."""
        loop = asyncio.get_running_loop()
        while (wait := self._wait(loop.time())) != 0:
            self._waker = loop.create_future()
            timer = None if wait is None else loop.call_later(wait, self._wake)
            await self._waker
            if timer is not None:
                timer.cancel()

    def _wait(self, now: float) -> float | None:
        """Seconds until a batch is due if nothing happens; None when nothing waits."""
        waiting = self.queued - self._preparing
        if not waiting:
            return None
        if waiting >= self.bounds.max_batch or not self._preparing:
            return 0
        oldest = min(next(iter(queue)).submitted_at for queue in self._queues.values() if queue)
        return max(0, oldest + self.bounds.max_delay - now)

    def _wake(self) -> None:
        if self._waker is not None and not self._waker.done():
            self._waker.set_result(None)

    def _seal(self) -> list[Place[T, R]]:
        now = asyncio.get_running_loop().time()
        batch: list[Place[T, R]] = []
        for place in self._in_turn():
            if place.admission.deadline <= now:
                self._settle(place, ItemExpiredError())
                self._observer.dropped("deadline")
                continue
            place.state = State.RUNNING
            place.sealed_at = now
            self.running += 1
            batch.append(place)
            if len(batch) == self.bounds.max_batch:
                break
        if batch:
            self._observer.sealed([now - place.submitted_at for place in batch])
        return batch

    def _in_turn(self) -> Iterator[Place[T, R]]:
        """Takes waiting items out of the queues, each in its turn."""
        urgent, bulk = self._queues[True], self._queues[False]
        while urgent or bulk:
            if not urgent or (bulk and self._urgent_in_a_row >= BULK_EVERY - 1):
                self._urgent_in_a_row = 0
                yield bulk.popitem(last=False)[0]
            else:
                self._urgent_in_a_row += bool(bulk)
                yield urgent.popitem(last=False)[0]

    async def _run_batch(self, batch: list[Place[T, R]]) -> None:
        items = [cast("T", place.item) for place in batch]
        outcomes: Sequence[R | Exception]
        try:
            outcomes = await self._run(items)
            if len(outcomes) != len(batch):
                raise RuntimeError(f"the runner gave {len(outcomes)} outcomes for {len(batch)} items")
        except Exception as error:  # noqa: BLE001 (whatever it is, it is the outcome of these items alone)
            outcomes = [error] * len(batch)
        except asyncio.CancelledError:
            self._finish(batch, [BatcherClosedError()] * len(batch))
            raise
        self._finish(batch, outcomes)

    def _finish(self, batch: Sequence[Place[T, R]], outcomes: Sequence[R | Exception]) -> None:
        now = asyncio.get_running_loop().time()
        self.running -= len(batch)
        for place, outcome in zip(batch, outcomes, strict=True):
            place.finished_at = now
            self._settle(place, outcome)

    def _settle(self, place: Place[T, R], outcome: R | Exception) -> None:
        place.state = State.SETTLED
        place.outcome = outcome
        place.item = None
        self._nbytes -= place.nbytes
        place.admission.close_one()
        if self._emptied is not None and not self._emptied.done() and not (self.queued or self.running):
            self._emptied.set_result(None)
