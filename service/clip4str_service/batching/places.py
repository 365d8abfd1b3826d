"""What moves through the batcher: places that callers hold, works that fill them, batches of works.

A work is one item to be run. Usually it fills one place; identical items of several callers are one work that
fills a place for each of them.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Generic, Literal, Protocol, TypeAlias, TypeVar

T = TypeVar("T")
R = TypeVar("R")

Outcome: TypeAlias = R | Exception
DropReason = Literal["cancelled", "deadline"]


class BatcherClosedError(Exception):
    """The batcher takes no more items, or runs no more."""


class ItemExpiredError(Exception):
    """The item could not be run before its deadline."""


class ItemWithdrawnError(Exception):
    """The caller gave the place back before it had an outcome."""


class RunnerDiedError(Exception):
    """The item ran twice, the second time alone, and its runner died both times."""


class State(Enum):
    """Where a place is on its way."""

    PREPARING = "preparing"
    WAITING = "waiting"
    RUNNING = "running"
    SETTLED = "settled"


class Owner(Protocol[T, R]):
    """Who asked for places. Must not raise; may call the batcher."""

    def settled(self, place: Place[T, R]) -> None:
        """A place has its outcome. Called once for each place, never from within `Batcher.admit`."""


class Place(Generic[T, R]):
    """One item's place, from admission to outcome.

    `index`: its number in its admission. `work`: while it waits or runs. `outcome`: once it is settled. Times are the
    event loop's, in seconds, 0.0 for what did not happen: its item was submitted, went into its (last) batch, ran.
    """

    __slots__ = (
        "admission",
        "finished_at",
        "index",
        "nbytes",
        "outcome",
        "sealed_at",
        "state",
        "submitted_at",
        "work",
    )
    work: Work[T, R]
    outcome: Outcome[R]

    def __init__(self, admission: Admission[T, R], index: int, nbytes: int) -> None:
        self.admission = admission
        self.index = index
        self.nbytes = nbytes
        self.state = State.PREPARING
        self.submitted_at = 0.0
        self.sealed_at = 0.0
        self.finished_at = 0.0


class Admission(Generic[T, R]):
    """Places that were given together, all or none.

    `forecast`: when their items would be done, at the soonest; None if there was no telling. `open`: those whose
    owner was not told of an outcome yet.
    """

    __slots__ = ("deadline", "forecast", "open", "owner", "places", "tenant", "urgent")

    def __init__(
        self,
        sizes: Sequence[int],
        urgent: bool,
        deadline: float,
        tenant: str,
        owner: Owner[T, R],
        forecast: float | None = None,
    ) -> None:
        self.urgent = urgent
        self.forecast = forecast
        self.deadline = deadline
        self.tenant = tenant
        self.owner = owner
        self.places = [Place(self, index, nbytes) for index, nbytes in enumerate(sizes)]
        self.open = len(sizes)


class Work(Generic[T, R]):
    """An item, and the places that its outcome is for.

    `replay`: it was in a batch whose runner died, and runs alone. `vacated`: the place that was the last to leave
    while the item ran; its room is kept until the item is released, so that there never are more items than room.
    """

    __slots__ = ("item", "key", "places", "replay", "running", "submitted_at", "vacated")

    def __init__(self, item: T, key: Hashable | None, submitted_at: float) -> None:
        self.item = item
        self.key = key
        self.submitted_at = submitted_at
        self.places: dict[Place[T, R], None] = {}  # in the order in which they came
        self.running = False
        self.replay = False
        self.vacated: Place[T, R] | None = None


@dataclass(frozen=True, eq=False, slots=True)
class Batch(Generic[T, R]):
    """Works that run together. `replay`: it holds one, whose runner died before."""

    works: Sequence[Work[T, R]]
    runner: Hashable
    sealed_at: float
    replay: bool

    def __len__(self) -> int:
        return len(self.works)

    @property
    def items(self) -> list[T]:
        """What is to be run, in the order of `works`."""
        return [work.item for work in self.works]

    @property
    def abandoned(self) -> int:
        """How many of its works fill no place any more: every caller left while they ran."""
        return sum(not work.places for work in self.works)


class Observer(Protocol[T, R]):
    """Is told what the batcher does. Must not raise, nor call the batcher."""

    def sealed(self, batch: Batch[T, R]) -> None:
        """A batch was sealed."""

    def dropped(self, reason: DropReason) -> None:
        """A place that was admitted will never run."""

    def released(self, item: T) -> None:
        """Nobody needs a submitted item any more. Called once for each, never while a batch with it runs."""
