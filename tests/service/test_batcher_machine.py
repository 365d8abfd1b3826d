"""Whatever callers and runners do, in any order: nothing is lost, nothing is told twice, nothing sleeps on."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from itertools import count
from typing import TypeVar

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from bench.virtual_time import VirtualTimeLoop
from clip4str_service.batcher import (
    Admission,
    Batch,
    Batcher,
    BatcherClosedError,
    Bounds,
    DropReason,
    Fate,
    ItemExpiredError,
    ItemWithdrawnError,
    Outcome,
    Place,
    RefusedError,
    RunnerDiedError,
    State,
)

T = TypeVar("T")

BOUNDS = Bounds(max_batch=3, max_delay=0.002, max_items=12, max_bytes=100, cache_bytes=600)
KEYS = 3


class UnreadableError(Exception):
    """What runners answer now and then."""


class Owner:
    """Counts how often it was told of each place; gives up all its places at the first outcome if `fickle`."""

    admission: Admission[int, int]

    def __init__(self, machine: BatcherMachine, fickle: bool) -> None:
        self._machine = machine
        self._fickle = fickle

    def settled(self, place: Place[int, int]) -> None:
        """As the batcher's owner."""
        self._machine.told(place)
        if self._fickle:
            for other in self.admission.places:
                self._machine.batcher.withdraw(other, "cancelled")


class BatcherMachine(RuleBasedStateMachine):
    """Items are numbers of which the last digit is what identifies them, 0: nothing; it is their outcome, too."""

    batcher: Batcher[int, int]

    def __init__(self) -> None:
        super().__init__()
        self.loop = VirtualTimeLoop()
        self.places: list[Place[int, int]] = []
        self.settled: dict[Place[int, int], Outcome[int]] = {}
        self.held: set[int] = set()  # items submitted and not released
        self.batches: list[Batch[int, int]] = []  # that run
        self.takers: list[asyncio.Task[Batch[int, int]]] = []
        self.fates = [Fate(), Fate()]
        self.fate_of: dict[asyncio.Task[Batch[int, int]], Fate] = {}
        self.fated: dict[Batch[int, int], Fate] = {}
        self.keys: dict[Place[int, int], int] = {}
        self.retries: list[float] = []
        self.numbers = count(1)
        self.stopped = False

    @initialize()
    def begin(self) -> None:
        async def make() -> Batcher[int, int]:
            return Batcher(BOUNDS, self, sizeof=lambda _: 40)

        self.batcher = self.wait(make())

    def wait(self, coroutine: Coroutine[None, None, T]) -> T:
        """Runs the event loop until that is done."""
        return self.loop.run_until_complete(coroutine)

    def told(self, place: Place[int, int]) -> None:
        """An owner was told of an outcome."""
        assert place not in self.settled
        assert place.state is State.SETTLED
        self.settled[place] = place.outcome

    def sealed(self, batch: Batch[int, int]) -> None:
        """As the batcher's observer."""
        assert 1 <= len(batch) <= (1 if batch.replay else BOUNDS.max_batch)
        assert all(work.places for work in batch.works)
        now = self.loop.time()
        assert all(place.admission.deadline > now for work in batch.works for place in work.places)
        assert self.held.issuperset(batch.items)
        running = {item for other in self.batches for item in other.items}
        assert running.isdisjoint(batch.items)
        self.batches.append(batch)

    def dropped(self, reason: DropReason) -> None:
        """As the batcher's observer."""
        assert reason in ("cancelled", "deadline")

    def released(self, item: int) -> None:
        """As the batcher's observer."""
        self.held.remove(item)
        assert all(item not in batch.items for batch in self.batches)

    def open_places(self, state: State) -> list[Place[int, int]]:
        """Those in that state."""
        return [place for place in self.places if place.state is state]

    @rule(
        sizes=st.lists(st.integers(0, 20), min_size=1, max_size=5),
        urgent=st.booleans(),
        patience=st.sampled_from([0.0, 0.001, 0.01, 1000.0]),
        tenant=st.sampled_from("ab"),
        fickle=st.booleans(),
    )
    def admit(self, sizes: list[int], urgent: bool, patience: float, tenant: str, fickle: bool) -> None:
        owner = Owner(self, fickle)
        deadline = self.loop.time() + patience
        try:
            admission = self.batcher.admit(
                sizes, urgent=urgent, deadline=deadline, tenant=tenant, owner=owner
            )
        except RefusedError as refused:
            self.retries.append(refused.retry_after)
        except BatcherClosedError:
            assert self.stopped
        else:
            assert patience > 0
            owner.admission = admission
            self.places += admission.places

    @precondition(lambda self: self.places)
    @rule(which=st.integers(0, 1000), key=st.integers(0, KEYS))
    def submit(self, which: int, key: int) -> None:
        candidates = self.open_places(State.PREPARING) or self.open_places(State.SETTLED)
        if candidates:
            self.put(candidates[which % len(candidates)], key)

    def put(self, place: Place[int, int], key: int) -> None:
        """Submits an item that is identified by the key, unless that is 0."""
        item = 10 * next(self.numbers) + key
        self.keys.setdefault(place, key)
        self.held.add(item)
        self.batcher.submit(place, item, key or None)

    @precondition(lambda self: self.places)
    @rule(which=st.integers(0, 1000), reason=st.sampled_from(["cancelled", "deadline", None]))
    def withdraw(self, which: int, reason: DropReason | None) -> None:
        self.batcher.withdraw(self.places[which % len(self.places)], reason)

    @rule(runner=st.sampled_from("xy"), limit=st.none() | st.integers(1, 4), fate=st.integers(0, 1))
    def take(self, runner: str, limit: int | None, fate: int) -> None:
        taker = self.loop.create_task(self.batcher.take(runner, limit, self.fates[fate]))
        self.takers.append(taker)
        self.fate_of[taker] = self.fates[fate]

    @precondition(lambda self: self.takers)
    @rule(which=st.integers(0, 1000), soon=st.booleans())
    def cancel(self, which: int, soon: bool) -> None:
        if soon:  # after it was woken, before it runs
            self.look(1)
        self.takers[which % len(self.takers)].cancel()

    @precondition(lambda self: self.batches)
    @rule(which=st.integers(0, 1000), failing=st.integers(0, 7))
    def finish(self, which: int, failing: int) -> None:
        batch = self.batches.pop(which % len(self.batches))
        outcomes: list[Outcome[int]] = [item % 10 for item in batch.items]
        for index in range(len(outcomes)):
            if failing >> index & 1:
                outcomes[index] = UnreadableError()
        self.batcher.finish(batch, outcomes)
        self.batcher.finish(batch, outcomes)

    @precondition(lambda self: self.batches)
    @rule(which=st.integers(0, 1000), forget=st.booleans())
    def die(self, which: int, forget: bool) -> None:
        batch = self.batches.pop(which % len(self.batches))
        self.batcher.give_back(batch)
        self.batcher.finish(batch, [0] * len(batch))
        if forget:
            self.batcher.forget(batch.runner)

    @rule(seconds=st.sampled_from([0.0005, 0.002, 0.02, 2.0]))
    def pass_time(self, seconds: float) -> None:
        self.wait(asyncio.sleep(seconds))

    @precondition(lambda self: len(self.places) > 20)
    @rule()
    def stop(self) -> None:
        self.stopped = True
        self.batcher.stop()

    @rule(turns=st.integers(1, 3))
    def look(self, turns: int) -> None:
        """Lets whoever can run, run, for so many turns of the loop."""

        async def pause() -> None:
            for _ in range(turns):
                await asyncio.sleep(0)

        self.wait(pause())

    @invariant()
    def bounds_hold(self) -> None:
        unsettled = [place for place in self.places if place.state is not State.SETTLED]
        batcher = self.batcher
        assert len(unsettled) <= batcher.items <= BOUNDS.max_items
        assert sum(place.nbytes for place in unsettled) <= batcher.nbytes <= BOUNDS.max_bytes
        assert batcher.items == batcher.queued + batcher.running
        assert batcher.queued == sum(place.state in (State.PREPARING, State.WAITING) for place in unsettled)
        if not self.stopped:
            assert len(self.held) + len(self.open_places(State.PREPARING)) <= batcher.items
        assert len(self.settled) == len(self.places) - len(unsettled)

    @invariant()
    def nobody_waits_for_nothing(self) -> None:
        """Once everybody who could run did, no taker waits while an item that is due does."""
        self.look(8)
        waiting = self.open_places(State.WAITING)
        due = not self.open_places(State.PREPARING) or any(
            place.submitted_at + 2 * BOUNDS.max_delay < self.loop.time() for place in waiting
        )
        taking = [taker for taker in self.takers if not taker.done()]
        for taker in self.takers:
            if taker.done() and not taker.cancelled() and not taker.exception():
                self.fated[taker.result()] = self.fate_of[taker]
        beside = {fate: [batch for batch in self.batches if self.fated[batch] is fate] for fate in self.fates}
        for batches in beside.values():
            assert len(batches) <= 1 or not any(batch.replay for batch in batches)
        replay = any(place.work.replay for place in waiting)
        for taker in taking:
            running = beside[self.fate_of[taker]]
            free = not running if replay else not any(batch.replay for batch in running)
            assert not (waiting and (due or replay) and free)
        if self.stopped:
            assert not taking
        else:
            assert not any(
                not taker.cancelled() and taker.exception() for taker in self.takers if taker.done()
            )
        self.takers = taking

    def teardown(self) -> None:
        if hasattr(self, "batcher"):
            self.end()
        for taker in self.takers:
            taker.cancel()
        self.wait(asyncio.sleep(0))
        self.loop.close()

    def end(self) -> None:
        """Callers submit what they still prepare, a runner runs all; everything has come to its end."""
        self.batcher.close()
        for place in self.open_places(State.PREPARING):
            self.put(place, 0)
        self.take("z", None, 0)
        self.nobody_waits_for_nothing()
        while self.batches:
            self.finish(0, 0)
            self.take("z", None, 0)
            self.nobody_waits_for_nothing()
        assert len(self.settled) == len(self.places)
        assert self.batcher.items == self.batcher.nbytes == 0
        assert not self.held
        self.wait(self.batcher.drained())
        assert all(0.05 <= retry_after <= 60 for retry_after in self.retries)
        for place, outcome in self.settled.items():
            assert outcome is place.outcome
            if isinstance(outcome, int):
                assert outcome == self.keys[place]
                assert place.submitted_at <= place.sealed_at <= place.finished_at
            else:
                assert isinstance(
                    outcome,
                    ItemExpiredError
                    | ItemWithdrawnError
                    | RunnerDiedError
                    | UnreadableError
                    | BatcherClosedError,
                )
                assert self.stopped or not isinstance(outcome, BatcherClosedError)


TestBatcherMachine = BatcherMachine.TestCase
TestBatcherMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
