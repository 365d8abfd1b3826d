"""What a front end remembers of refusals, so that a flood of calls is refused where it comes in.

To ask the supervisor takes a message each way. When it has just refused a call, another one of the same key and
priority that asks for as much, and has no more time, would be refused as well.
"""

from __future__ import annotations

from typing import NamedTuple

from clip4str_service.errors import OverloadedError

MEMORY_SECONDS = 0.02
_MOST = 1024  # keys remembered at a time


class Asked(NamedTuple):
    """What a call asks for. `patience`: seconds until its answer is of no use."""

    tenant: str
    urgent: bool
    crops: int
    patience: float


class RefusalMemory:
    """The last refusal of each key and priority, for a moment. Times are the event loop's."""

    def __init__(self) -> None:
        self._last: dict[tuple[str, bool], tuple[float, Asked, OverloadedError]] = {}

    def keep(self, asked: Asked, refusal: OverloadedError, now: float) -> None:
        """Remembers that a call was refused."""
        if len(self._last) >= _MOST:
            self._last.clear()
        retry_after = (refusal.retry_after_ms or 0) / 1000
        self._last[asked.tenant, asked.urgent] = now + min(MEMORY_SECONDS, retry_after), asked, refusal

    def check(self, asked: Asked, now: float) -> None:
        """Raises OverloadedError for a call that would be refused as the last one was."""
        kept = self._last.get((asked.tenant, asked.urgent))
        if kept is None:
            return
        until, before, refusal = kept
        if now < until and asked.crops >= before.crops and asked.patience <= before.patience:
            retry_after = (refusal.retry_after_ms or 0) / 1000
            raise OverloadedError(refusal.detail, retry_after=retry_after, limited=refusal.limited)
