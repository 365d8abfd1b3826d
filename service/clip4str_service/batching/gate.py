"""Who may come in: there must be room, and time."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import Generic, TypeVar

from clip4str_service.batching.forecast import Forecast
from clip4str_service.batching.lag import Lag
from clip4str_service.batching.line import Line
from clip4str_service.batching.places import Admission, Place
from clip4str_service.batching.room import Room

T = TypeVar("T")
R = TypeVar("R")

_MARGIN = 1.1  # times what it is expected to take: the time that an item must have to come in
_UNKNOWN = 1.0  # seconds to come back after, while nothing is known of what batches cost
_SOONEST, _LATEST = 0.05, 60.0  # seconds to come back after, in any case
_COUNTED = 1.0  # seconds: many clients count in whole ones
_EXPECTED = 2.0  # times the later of both: so long a tenant that was refused is expected back


class RefusedError(Exception):
    """The items are not admitted. `retry_after`: seconds after which it is worth asking again."""

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class BatcherFullError(RefusedError):
    """There is no room for the items; the message says which bound is reached."""


class DeadlineUnmeetableError(RefusedError):
    """The items would not be done in time."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a batcher may hold.

    `max_batch`: items in one batch. `max_delay`: seconds. `max_items`, `max_bytes`: places, and their items' bytes,
    that have no outcome yet or whose item still runs. `bulk_share`: the part of both that places which are not
    urgent may hold, so that urgent ones always find room. `cache_bytes`: of outcomes that are kept for items that
    come again.
    """

    max_batch: int
    max_delay: float
    max_items: int
    max_bytes: int
    bulk_share: float = 0.75
    cache_bytes: int = 0


class Gate(Generic[T, R]):
    """Refuses what there is no room or no time for. Knows what runners there are, and what batches cost them."""

    def __init__(self, bounds: Bounds, line: Line[T, R]) -> None:
        self.forecast = Forecast()
        self._lag = Lag()
        self._line = line
        self._whole = Room(bounds.max_items, bounds.max_bytes)
        share = bounds.bulk_share
        bulk = Room(ceil(bounds.max_items * share), ceil(bounds.max_bytes * share), "bulk")
        self._rooms = {True: (self._whole,), False: (self._whole, bulk)}

    @property
    def items(self) -> int:
        """Places that take room."""
        return self._whole.items

    @property
    def nbytes(self) -> int:
        """The bytes of their items."""
        return self._whole.nbytes

    def check(
        self, items: int, nbytes: int, *, urgent: bool, deadline: float, tenant: str, now: float
    ) -> float | None:
        """When so many items are forecast to be done, at the soonest; None if there is no telling.

        Raises BatcherFullError or DeadlineUnmeetableError if they cannot come in.
        """
        if deadline <= now:
            raise DeadlineUnmeetableError("the deadline has passed", self.back_after(self._line.waiting, now))
        for room in self._rooms[urgent]:
            refusal = room.refusal(tenant, items, nbytes, now)
            if refusal is not None:
                running = self.items - self._line.queued
                retry_after = self.back_after(max(0, refusal.missing - running), now)
                room.wish(tenant, items, nbytes, now + _EXPECTED * max(_COUNTED, retry_after))
                raise BatcherFullError(refusal.reason, retry_after)
        seconds = self.forecast.seconds(self._line.ahead(tenant, urgent, items) + items, now)
        if seconds is None:
            return None
        expected = _MARGIN * (seconds + self._lag.seconds)
        over = now + expected - deadline
        if self.items and over > 0:  # were the forecast wrong, nothing would ever run that could mend it
            raise DeadlineUnmeetableError(
                f"it may take {expected:.2f} s with what waits, and the deadline is in {deadline - now:.2f} s",
                _within(over),
            )
        return now + seconds

    def enter(self, admission: Admission[T, R], nbytes: int) -> None:
        """The admission's places, of `nbytes` in all, take room."""
        for room in self._rooms[admission.urgent]:
            room.take(admission.tenant, len(admission.places), nbytes)

    def exit(self, place: Place[T, R]) -> None:
        """The place takes no room any more."""
        for room in self._rooms[place.admission.urgent]:
            room.free(place.admission.tenant, place.nbytes)

    def done(self, place: Place[T, R], now: float) -> None:
        """The place's item was run: what was forecast of it can be compared."""
        admission = place.admission
        cost = self.forecast.cost
        if (
            admission.urgent and admission.forecast is not None
        ):  # others may have to give way to whoever comes later
            self._lag.learn(now - admission.forecast, cost.seconds(cost.usual))

    def back_after(self, items: int, now: float) -> float:
        """Seconds to come back after, when so many items are run besides those that run now."""
        seconds = self.forecast.seconds(items, now)
        return _UNKNOWN if seconds is None else _within(seconds)


def _within(seconds: float) -> float:
    return max(_SOONEST, min(_LATEST, seconds))
