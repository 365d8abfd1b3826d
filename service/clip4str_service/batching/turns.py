"""Whose turn it is: urgent places before others, and tenants one after the other."""

from __future__ import annotations

from collections import OrderedDict
from typing import Generic, TypeVar

from clip4str_service.batching.places import Admission, Place, State

T = TypeVar("T")
R = TypeVar("R")

BULK_EVERY = 8
"""Of so many places that have their turn one is not urgent, as long as such a place waits."""


class _Line(Generic[T, R]):
    """One tenant's places: how many are being prepared, and those that wait, first come first."""

    __slots__ = ("preparing", "waiting")

    def __init__(self) -> None:
        self.preparing = 0
        self.waiting: OrderedDict[Place[T, R], None] = OrderedDict()


class _Class(Generic[T, R]):
    """The places of one priority. `in_turn`: the lines in which somebody waits, the next to be served first."""

    __slots__ = ("in_turn", "lines", "waiting")

    def __init__(self) -> None:
        self.lines: dict[str, _Line[T, R]] = {}
        self.in_turn: OrderedDict[str, _Line[T, R]] = OrderedDict()
        self.waiting = 0

    def forget_if_idle(self, tenant: str, line: _Line[T, R]) -> None:
        if not line.waiting:
            self.in_turn.pop(tenant, None)
            if not line.preparing:
                del self.lines[tenant]


class Turns(Generic[T, R]):
    """The order in which waiting places have their turn. Truthy while one waits; each operation takes O(1).

    `preparing`: admitted places that did not join yet.
    """

    def __init__(self) -> None:
        self.preparing = 0
        self._classes: dict[bool, _Class[T, R]] = {True: _Class(), False: _Class()}
        self._urgent_in_a_row = 0  # urgent turns while others waited

    def __bool__(self) -> bool:
        return bool(self._classes[True].waiting or self._classes[False].waiting)

    def expect(self, admission: Admission[T, R]) -> None:
        """The admission's places, at least one, are being prepared."""
        lines = self._classes[admission.urgent].lines
        line = lines.get(admission.tenant)
        if line is None:
            line = lines[admission.tenant] = _Line()
        line.preparing += len(admission.places)
        self.preparing += len(admission.places)

    def join(self, place: Place[T, R]) -> None:
        """A place that was being prepared waits from now on, behind its tenant's others."""
        tenant = place.admission.tenant
        group = self._classes[place.admission.urgent]
        line = group.lines[tenant]
        line.preparing -= 1
        self.preparing -= 1
        if not line.waiting:
            group.in_turn[tenant] = line
        line.waiting[place] = None
        group.waiting += 1

    def leave(self, place: Place[T, R]) -> None:
        """A place that was being prepared, or waits, goes out of turn."""
        tenant = place.admission.tenant
        group = self._classes[place.admission.urgent]
        line = group.lines[tenant]
        if place.state is State.PREPARING:
            line.preparing -= 1
            self.preparing -= 1
        else:
            del line.waiting[place]
            group.waiting -= 1
        group.forget_if_idle(tenant, line)

    def next(self) -> Place[T, R]:
        """The waiting place whose turn it is; it stays where it is."""
        urgent, bulk = self._classes[True], self._classes[False]
        bulks_turn = not urgent.waiting or (bulk.waiting and self._urgent_in_a_row >= BULK_EVERY - 1)
        line = next(iter((bulk if bulks_turn else urgent).in_turn.values()))
        return next(iter(line.waiting))

    def serve(self, place: Place[T, R]) -> None:
        """The next place has its turn: it leaves, and its tenant's others have theirs after everybody else's."""
        tenant = place.admission.tenant
        group = self._classes[place.admission.urgent]
        if not place.admission.urgent:
            self._urgent_in_a_row = 0
        elif self._classes[False].waiting:
            self._urgent_in_a_row += 1
        line = group.in_turn[tenant]
        del line.waiting[place]
        group.waiting -= 1
        group.in_turn.move_to_end(tenant)
        group.forget_if_idle(tenant, line)

    def ahead(self, tenant: str, urgent: bool, count: int) -> int:
        """How many places at most have their turn before the last of `count` that the tenant would add now.

        Taken for granted: nobody else comes, and of others only those that wait already are heeded. Takes time
        in proportion to the tenants that wait.
        """
        group = self._classes[urgent]
        line = group.lines.get(tenant)
        own = line.preparing + len(line.waiting) if line else 0
        reach = own + count
        ahead = own + sum(
            min(len(other.waiting), reach) for other in group.in_turn.values() if other is not line
        )
        if urgent:
            return ahead + min(self._classes[False].waiting, (ahead + count) // (BULK_EVERY - 1))
        return ahead + min(self._classes[True].waiting, (ahead + count) * (BULK_EVERY - 1))
