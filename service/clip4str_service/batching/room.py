"""Room that tenants share: bounded, all of it open to one who is alone, and none can keep another out.

A tenant is active while it holds room, or while it is expected back after a refusal: then it has a wish. Among
several active tenants, one that asks for room which is there is given it in three cases only, by what it would hold:

- An equal part: the whole, divided by one more than there are active tenants. With everybody within that, there is
  room for one more, so a tenant within its part waits for room no longer than others take to finish what is over
  theirs.
- Up to `ALPHA` times what would then be free. What is busy tenants' adapts to how many they are, and some room stays
  free for the next: dynamic thresholds, as Choudhury and Hahne gave them for packet switches (1998).
- Anything, if it holds nothing: who asks for much at a time is not kept out by its size.

In the last two cases what earlier wishes ask for, up to half of the whole, does not count as free. Earlier ones
alone, so that two wishes never block each other; half at most, so that nothing stands still for those who do not come
back.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import NamedTuple

ALPHA = 4


class Refusal(NamedTuple):
    """Why there is no room; `missing`: how many items must be finished before it is worth asking again."""

    reason: str
    missing: int


@dataclass(slots=True)
class _Holding:
    items: int = 0
    nbytes: int = 0


class _Wish(NamedTuple):
    items: int
    nbytes: int
    until: float


class Room:
    """Counts of items and of their bytes, each with its bound."""

    def __init__(self, max_items: int, max_bytes: int, kind: str = "") -> None:
        """`kind`: a word that says in messages which items are meant."""
        self.items = 0
        self.nbytes = 0
        self._max_items = max_items
        self._max_bytes = max_bytes
        self._kind = f"{kind} " if kind else ""
        self._held: dict[str, _Holding] = {}
        self._wishes: dict[str, _Wish] = {}  # the earliest first

    def refusal(self, tenant: str, items: int, nbytes: int, now: float) -> Refusal | None:
        """Why the tenant cannot have room for so many items more; None when it can.

        Takes time in proportion to the wishes there are.
        """
        if (over := self.items + items - self._max_items) > 0:
            return Refusal(f"the queue has room for {self._max_items} {self._kind}items", over)
        if (over := self.nbytes + nbytes - self._max_bytes) > 0:
            reason = f"the queue has room for {self._max_bytes} bytes of {self._kind}items"
            return Refusal(reason, ceil(over * items / nbytes))
        active, earlier = self._others(tenant, now)
        if active == 1:
            return None
        held = self._held.get(tenant) or _Holding()
        for asked, own, used, bound, wished in (
            (items, held.items, self.items, self._max_items, earlier.items),
            (nbytes, held.nbytes, self.nbytes, self._max_bytes, earlier.nbytes),
        ):
            free = bound - used - min(wished, bound // 2)
            if (
                own + asked > bound // (active + 1)
                and own + asked > ALPHA * (free - asked)
                and (held.items or asked > free)
            ):
                reason = (
                    f"you hold {held.items} of {self._max_items} places for {self._kind}items in the queue"
                )
                return Refusal(f"{reason}, and others need room", min(items, max(1, held.items)))
        return None

    def wish(self, tenant: str, items: int, nbytes: int, until: float) -> None:
        """The tenant was refused, and is expected back for this much."""
        if items <= self._max_items and nbytes <= self._max_bytes:
            self._wishes[tenant] = _Wish(items, nbytes, until)  # a repeated one keeps its place

    def take(self, tenant: str, items: int, nbytes: int) -> None:
        """The tenant holds so many items more; that fulfils a wish for as many or fewer."""
        self.items += items
        self.nbytes += nbytes
        held = self._held.get(tenant)
        if held is None:
            held = self._held[tenant] = _Holding()
        held.items += items
        held.nbytes += nbytes
        wish = self._wishes.get(tenant)
        if wish is not None and wish.items <= items and wish.nbytes <= nbytes:
            del self._wishes[tenant]

    def free(self, tenant: str, nbytes: int) -> None:
        """The tenant holds one item less, of so many bytes."""
        self.items -= 1
        self.nbytes -= nbytes
        held = self._held[tenant]
        held.items -= 1
        held.nbytes -= nbytes
        if not held.items:
            del self._held[tenant]

    def _others(self, tenant: str, now: float) -> tuple[int, _Holding]:
        """How many tenants are active, this one included; and the sum of what others wished before it did."""
        active = len(self._held) + (tenant not in self._held)
        earlier = _Holding()
        expired = []
        heard = True
        for name, wish in self._wishes.items():
            if wish.until <= now:
                expired.append(name)
            elif name == tenant:
                heard = False
            else:
                active += name not in self._held
                if heard:
                    earlier.items += wish.items
                    earlier.nbytes += wish.nbytes
        for name in expired:
            del self._wishes[name]
        return active, earlier
