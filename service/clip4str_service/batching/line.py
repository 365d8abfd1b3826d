"""Works, from the submission of their items to the release: those that wait, in turn, and those that run."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from math import inf
from typing import Generic, NamedTuple, TypeVar

from clip4str_service.batching.cost import Cost
from clip4str_service.batching.places import Admission, Place, State, Work
from clip4str_service.batching.turns import Turns

T = TypeVar("T")
R = TypeVar("R")

_MARGIN = 1.1  # times what a batch is expected to take: the time that an item must have to go with it


class Sealed(NamedTuple, Generic[T, R]):
    """Works that are to run now, and places whose deadline passed while they waited; both have left the line."""

    works: list[Work[T, R]]
    late: list[Place[T, R]]
    replay: bool


class Line(Generic[T, R]):
    """What is to be run and what runs. Knows the places' states, but nothing of room, time or outcomes.

    A work goes when the first of its places has its turn: so it is as urgent as the most urgent of them, and of two
    tenants who want the same neither waits behind the other's queue. A replay goes before everything else, alone.

    `queued`: places that are being prepared or wait.
    """

    def __init__(self, released: Callable[[T], None]) -> None:
        """`released` is called once with each item that was put in, when nobody needs it any more."""
        self.queued = 0
        self._released = released
        self._turns: Turns[T, R] = Turns()
        self._shared: dict[Hashable, Work[T, R]] = {}  # what waits or runs, by its key
        self._waiting: OrderedDict[Work[T, R], None] = OrderedDict()  # but replays; the oldest first
        self._replays: OrderedDict[Work[T, R], None] = OrderedDict()
        self._hopeless: dict[Place[T, R], None] = {}  # they wait, but their turn came too late

    @property
    def preparing(self) -> int:
        """Places that are being prepared."""
        return self._turns.preparing

    @property
    def waiting(self) -> int:
        """Works that wait for their turn."""
        return len(self._waiting)

    @property
    def replays(self) -> int:
        """Works that wait to run once more."""
        return len(self._replays)

    @property
    def oldest(self) -> float:
        """When the work that waits the longest was submitted. There must be one."""
        return next(iter(self._waiting)).submitted_at

    def ahead(self, tenant: str, urgent: bool, count: int) -> int:
        """About how many works run before the last of `count` that the tenant would add now."""
        return min(self._turns.ahead(tenant, urgent, count), self.preparing + self.waiting)

    def expect(self, admission: Admission[T, R]) -> None:
        """The admission's places are being prepared."""
        self._turns.expect(admission)
        self.queued += len(admission.places)

    def put(self, place: Place[T, R], item: T, key: Hashable | None, now: float) -> Work[T, R]:
        """A place that was being prepared has its item, which is released if one of the same key waits or runs."""
        work = self._shared.get(key) if key is not None else None
        if work is not None:
            self._released(item)
        else:
            work = Work(item, key, now)
            self._waiting[work] = None
            if key is not None:
                self._shared[key] = work
        if work.running or work.replay:
            self._turns.leave(place)
        else:
            self._turns.join(place)
        if work.running:
            place.state = State.RUNNING
            place.sealed_at = now
            self.queued -= 1
        else:
            place.state = State.WAITING
        place.work = work
        work.places[place] = None
        return work

    def leave(self, place: Place[T, R]) -> None:
        """A place that was being prepared, waited or ran is given up; a work that waits for nobody else goes."""
        if place.state is State.PREPARING:
            self._turns.leave(place)
            self.queued -= 1
            return
        work = place.work
        del work.places[place]
        if work.running:
            return
        self.queued -= 1
        if not work.replay:
            self._out_of_turn(place)
        if not work.places:
            del (self._replays if work.replay else self._waiting)[work]
            self.end(work)

    def seal(self, size: int, now: float, cost: Cost) -> Sealed[T, R]:
        """Takes the next works to run out of the line: one replay, or else up to `size` in turn.

        Fewer if all would be too much to be done by the first deadline among them, but never so few that the
        batch is no longer economic: then that one is not in time any more. Such places give way to those that are;
        they are not dropped before their deadline, since what a batch costs is only an estimate.
        """
        late: list[Place[T, R]] = []
        replay = bool(self._replays)
        works = self._next_replay(now, late) if replay else self._in_turn(size, now, cost, late)
        for work in works:
            work.running = True
            self.queued -= len(work.places)
            for place in work.places:
                place.state = State.RUNNING
                place.sealed_at = now
        return Sealed(works, late, replay)

    def replay(self, work: Work[T, R]) -> None:
        """A work that ran is to run once more."""
        work.running = False
        work.replay = True
        self._replays[work] = None
        self.queued += len(work.places)
        for place in work.places:
            place.state = State.WAITING

    def end(self, work: Work[T, R]) -> None:
        """A work is over: its item is released, and the next with its key is a work of its own."""
        if work.key is not None:
            del self._shared[work.key]
        self._released(work.item)

    def clear(self) -> None:
        """Gives up everything that does not run."""
        for work in [*self._waiting, *self._replays]:
            self.end(work)
        self._waiting.clear()
        self._replays.clear()
        self._hopeless.clear()
        self._turns = Turns()
        self.queued = 0

    def _next_replay(self, now: float, late: list[Place[T, R]]) -> list[Work[T, R]]:
        work, _ = self._replays.popitem(last=False)
        self._drop_late(work, now, late)
        if work.places:
            return [work]
        self.end(work)
        return []

    def _in_turn(self, size: int, now: float, cost: Cost, late: list[Place[T, R]]) -> list[Work[T, R]]:
        for place in [place for place in self._hopeless if place.admission.deadline <= now]:
            self.leave(place)
            late.append(place)
        works: list[Work[T, R]] = []
        pressing = inf
        least = cost.economic(min(size, self.waiting))
        while len(works) < size and self._turns:
            place = self._turns.next()
            done_at = now + _MARGIN * cost.seconds(max(least, len(works) + 1))
            if done_at > pressing:
                break
            deadline = place.admission.deadline
            if deadline <= now:
                self.leave(place)
                late.append(place)
            elif deadline < done_at:
                self._turns.leave(place)
                self._hopeless[place] = None
            else:
                self._turns.serve(place)
                works.append(self._pick(place, now, late))
                pressing = min(pressing, deadline)
        while len(works) < size and self._hopeless and pressing == inf:
            place = next(iter(self._hopeless))
            del self._hopeless[place]
            works.append(self._pick(place, now, late))
        return works

    def _pick(self, place: Place[T, R], now: float, late: list[Place[T, R]]) -> Work[T, R]:
        """The work of a place whose turn it is, with those of its other places that are in time."""
        work = place.work
        if len(work.places) > 1:
            for other in work.places:
                if other is not place:
                    self._out_of_turn(other)
            self._drop_late(work, now, late)
        del self._waiting[work]
        return work

    def _out_of_turn(self, place: Place[T, R]) -> None:
        if place in self._hopeless:
            del self._hopeless[place]
        else:
            self._turns.leave(place)

    def _drop_late(self, work: Work[T, R], now: float, late: list[Place[T, R]]) -> None:
        for place in [place for place in work.places if place.admission.deadline <= now]:
            del work.places[place]
            self.queued -= 1
            late.append(place)
