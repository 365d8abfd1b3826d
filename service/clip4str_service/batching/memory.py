"""Outcomes of before, for items that come again: the latest used, bounded in bytes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

R = TypeVar("R")

_ENTRY = 256  # bytes that an entry takes besides its outcome, about


class Memory(Generic[R]):
    """The outcomes of keys. What was not asked for the longest goes first."""

    def __init__(self, max_bytes: int, sizeof: Callable[[R], int]) -> None:
        """`sizeof`: the bytes of an outcome."""
        self.nbytes = 0
        self._max_bytes = max_bytes
        self._sizeof = sizeof
        self._outcomes: OrderedDict[Hashable, R] = OrderedDict()

    def __contains__(self, key: Hashable) -> bool:
        return key in self._outcomes

    def recall(self, key: Hashable) -> R:
        """The outcome of a key that is in the memory."""
        self._outcomes.move_to_end(key)
        return self._outcomes[key]

    def keep(self, key: Hashable, outcome: R) -> None:
        """Remembers an outcome, at the cost of others."""
        nbytes = self._sizeof(outcome) + _ENTRY
        if key in self._outcomes or nbytes > self._max_bytes:
            return
        self._outcomes[key] = outcome
        self.nbytes += nbytes
        while self.nbytes > self._max_bytes:
            self.nbytes -= self._sizeof(self._outcomes.popitem(last=False)[1]) + _ENTRY
