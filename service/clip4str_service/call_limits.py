"""What gRPC callers may have open: calls, and messages that come slowly.

gRPC's core holds a message until it is whole, so its bytes cannot be counted while they come. What can be bounded is
how many messages are on their way for long, and for how long; what is sent at a stretch is soon here, and counted.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from grpc.aio import EOF

from clip4str_service.errors import InvalidRequestError, OverloadedError, Violation

_AT_A_STRETCH = 1.0
"""Seconds from which on a message comes slowly."""

_RETRY_AFTER = 1.0


class Calls:
    """Calls of one kind, so many at a time."""

    def __init__(self, what: str, most: int) -> None:
        """`what`: they are called to whom they are refused."""
        self._what = what
        self._most = most
        self._open = 0

    @contextmanager
    def one(self) -> Iterator[None]:
        """One call, from before its message is read to its end. Raises OverloadedError."""
        if self._open >= self._most:
            raise OverloadedError(f"all {self._most} {self._what} are taken", retry_after=_RETRY_AFTER)
        self._open += 1
        try:
            yield
        finally:
            self._open -= 1


class Messages:
    """Messages on their way in, few of which may come slowly at a time."""

    def __init__(self, most_slow: int, seconds: float) -> None:
        """`seconds`: a message that comes slowly may take."""
        self._most_slow = most_slow
        self._slow = 0
        self._seconds = seconds

    async def next(self, context: Any) -> Any:
        """The next message of a call, bytes; None when it has no more.

        Raises:
            OverloadedError: it comes slowly, as too many others do.
            InvalidRequestError: it took too long.
        """
        loop = asyncio.get_running_loop()
        slow = False

        def look() -> None:
            nonlocal slow
            if self._slow < self._most_slow:
                self._slow += 1
                slow = True
            else:
                limit.reschedule(loop.time())

        looking = loop.call_later(min(_AT_A_STRETCH, self._seconds / 2), look)
        try:
            async with asyncio.timeout(self._seconds) as limit:
                message = await context.read()
        except TimeoutError:
            if slow:
                pace = f"must arrive within {self._seconds:g} s"
                raise InvalidRequestError(Violation("body", pace)) from None
            raise OverloadedError(
                f"the message comes slowly, as {self._most_slow} others do; try again later",
                retry_after=_RETRY_AFTER,
            ) from None
        finally:
            looking.cancel()
            self._slow -= slow
        return None if message is EOF else message
