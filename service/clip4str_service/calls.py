"""A call's crops, from when they have their places until each has its outcome."""

from __future__ import annotations

import asyncio

from clip4str_service.errors import ClientGoneError, DeadlineExceededError
from clip4str_service.hub import Deliver, Outcome, Ticket, Times
from clip4str_service.metrics import FrontEndMetrics
from clip4str_service.readings import ModelInfo, Reading


class Call:
    """Crops that have their places. `finish` it."""

    ticket: Ticket

    def __init__(
        self, crops: int, deliver: Deliver, give_up: float, deadline: float | None, metrics: FrontEndMetrics
    ) -> None:
        self._left = set(range(crops))
        self._deliver = deliver
        self._give_up = give_up
        self._deadline = deadline
        self._metrics = metrics

    @property
    def model(self) -> ModelInfo:
        """What reads the crops."""
        return self.ticket.loaded.info

    def deliver(self, index: int, outcome: Outcome, when: Times) -> None:
        """Takes an outcome from the ticket."""
        self._left.discard(index)
        if isinstance(outcome, Reading):
            self._metrics.read(outcome)
        else:
            self._metrics.failed(outcome.code)
        self._deliver(index, outcome, when)

    async def finish(self) -> None:
        """Returns when every crop has its outcome: at the latest when the time for them is up.

        Raises:
            DeadlineExceededError: the deadline of the call as a whole passed.
        """
        try:
            async with asyncio.timeout_at(self._give_up):
                await self.ticket.settled
        except TimeoutError:
            self.ticket.abandon("deadline")
            if self._give_up == self._deadline:
                self._metrics.failed(DeadlineExceededError.code, len(self._left))
                raise DeadlineExceededError("the deadline of the call passed") from None
            for index in sorted(self._left):
                self.deliver(index, DeadlineExceededError("the crop was not read in time"), Times())
        except asyncio.CancelledError:
            self.ticket.abandon("cancelled")
            self._metrics.failed(ClientGoneError.code, len(self._left))
            raise
