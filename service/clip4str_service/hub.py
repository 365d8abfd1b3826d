"""A front end's line to the supervisor: places for crops asked for, outcomes handed to who waits for them."""

from __future__ import annotations

import asyncio
import itertools
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

from clip4str_service.arena import Crops
from clip4str_service.channel import Channel, open_channel, take_descriptor
from clip4str_service.errors import (
    DeadlineExceededError,
    DrainingError,
    InternalError,
    OverloadedError,
    ServiceError,
    error_of,
)
from clip4str_service.readings import ModelInfo, Reading
from clip4str_service.wire import (
    Admit,
    Admitted,
    Beat,
    DropReason,
    Frontend,
    Generation,
    Listening,
    Outcomes,
    Phase,
    Refused,
    Reload,
    Retired,
    Settled,
    StartFailed,
    State,
    Stop,
    Submit,
    ToFrontend,
    Wanted,
    Withdraw,
    decode_reading,
)

Outcome: TypeAlias = Reading | ServiceError

_WHY = {
    InternalError.code: "the crop could not be read",
    DeadlineExceededError.code: "the crop was not read in time",
    DrainingError.code: "the service stopped, or its model was replaced, before the crop was read",
}


class Times(NamedTuple):
    """When a crop was prepared, its batch sealed, its outcome there: CLOCK_MONOTONIC in seconds, 0: it never was."""

    submitted: float = 0.0
    sealed: float = 0.0
    finished: float = 0.0


Deliver: TypeAlias = Callable[[int, Outcome, Times], None]


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model that answers, the slots for its crops, and how many of them are read at a time."""

    info: ModelInfo
    crops: Crops
    at_once: int


class Hub:
    """The supervisor, as a front end sees it. `phase` and `model` are what it last said of itself."""

    def __init__(self, descriptors: socket.socket) -> None:
        self.phase = Phase.STARTING
        self.retry_after_ms = 1000
        self.draining = asyncio.Event()
        self.changed: Callable[[], None] = lambda: None  # called when the phase is another one
        self.reload: Callable[[], None] = lambda: None  # called when keys and certificates may have changed
        self.frontend: asyncio.Future[Frontend] = asyncio.get_running_loop().create_future()
        # Done when this front end must end, with the seconds that answers on the wire have for it.
        self.over: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        self._descriptors = descriptors
        self._generations: dict[int, Loaded] = {}
        self._tickets: dict[int, Ticket] = {}
        self._numbers = itertools.count()

    async def connect(self, end: socket.socket) -> Frontend | None:
        """Opens the line; returns what this front end is, None if it must end before it was told."""
        self._channel: Channel[ToFrontend] = await open_channel(end, ToFrontend, self._told, self._end)
        ends: list[asyncio.Future[Any]] = [self.frontend, self.over]
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        return self.frontend.result() if self.frontend.done() else None

    @property
    def model(self) -> ModelInfo | None:
        """The model that new calls are read with, once there is one."""
        return None if self._newest is None else self._newest.info

    @property
    def at_once(self) -> int:
        """Crops that it reads at a time; 0 before there is one."""
        return 0 if self._newest is None else self._newest.at_once

    @property
    def _newest(self) -> Loaded | None:
        return self._generations[max(self._generations)] if self._generations else None

    def listening(self) -> None:
        """Says that this front end answers on its ports."""
        self._channel.send(Listening())

    def start_failed(self, reason: str) -> None:
        """Says that it cannot; `reason` is one line."""
        self._channel.send(StartFailed(reason))

    def beat(self) -> None:
        """Says that it lives."""
        self._channel.send(Beat())

    async def admit(
        self,
        sizes: Sequence[int],
        wanted: Wanted,
        deliver: Deliver,
        *,
        urgent: bool,
        deadline: float,
        tenant: str,
        traceparent: str,
    ) -> Ticket:
        """Places for crops of `sizes` encoded bytes each; `deliver` gets each crop's outcome. Raises ServiceError."""
        ticket = Ticket(next(self._numbers), len(sizes), self, deliver)
        self._tickets[ticket.number] = ticket
        self.send(Admit(ticket.number, list(sizes), wanted, urgent, deadline, tenant, traceparent))
        try:
            await ticket.admitted
        except asyncio.CancelledError:
            ticket.abandon("cancelled")
            if ticket.slots:  # it was admitted at this very moment: nobody will submit its crops
                self.send(Withdraw(ticket.number, list(range(len(sizes))), "cancelled"))
            raise
        return ticket

    def send(self, message: Submit | Withdraw | Admit) -> None:
        """For tickets."""
        self._channel.send(message)

    def _told(self, message: ToFrontend) -> None:
        match message:
            case Outcomes():
                for settled in message.crops:
                    self._settle(settled)
            case Admitted():
                ticket = self._tickets[message.call]
                ticket.admit(self._generations[message.generation], message.slots)
            case Refused():
                ticket = self._tickets.pop(message.call)
                error = error_of(message.code, message.detail, message.retry_after_ms)
                if isinstance(error, OverloadedError):
                    error.limited = message.limited
                ticket.refuse(error)
            case State():
                self.phase, self.retry_after_ms = message.phase, message.retry_after_ms
                if self.phase is Phase.DRAINING:
                    self.draining.set()
                self.changed()
            case Generation():
                descriptor = take_descriptor(self._descriptors)
                crops = Crops(descriptor, message.slots, message.model.image_size)
                self._generations[message.number] = Loaded(message.model, crops, message.at_once)
            case Retired():
                del self._generations[message.number]
            case Reload():
                self.reload()
            case Frontend():
                self.frontend.set_result(message)
            case Stop():
                self._end(message.grace)

    def _settle(self, settled: Settled) -> None:
        ticket = self._tickets[settled.call]
        outcome: Outcome = (
            error_of(settled.code, _WHY[settled.code]) if settled.code else decode_reading(settled.reading)
        )
        times = Times(settled.submitted_at, settled.sealed_at, settled.finished_at)
        if ticket.settle(settled.index, outcome, times):
            del self._tickets[settled.call]

    def _end(self, grace: float = 0.0) -> None:
        if not self.over.done():
            self.over.set_result(grace)


class Ticket:
    """A call's crops on their way. `deliver` gets an outcome for each, unless the ticket is abandoned before."""

    def __init__(self, number: int, count: int, hub: Hub, deliver: Deliver) -> None:
        self.number = number
        self.admitted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.settled: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.slots: list[int] = []
        self.abandoned: DropReason | None = None
        self._hub = hub
        self._deliver: Deliver | None = deliver  # while somebody waits; it holds the call, which holds this
        self._undelivered = set(range(count))
        self._waiting: set[int] = set()  # submitted, and without an outcome
        self._unsettled = count

    @property
    def loaded(self) -> Loaded:
        """What will read the crops. For an admitted ticket."""
        return self._loaded

    def submit(self, indices: Sequence[int], digests: Sequence[bytes]) -> None:
        """Crops whose pixels are in their slots now."""
        if self.abandoned is not None:
            self._hub.send(Withdraw(self.number, list(indices), self.abandoned))
            return
        self._waiting.update(indices)
        self._hub.send(Submit(self.number, list(indices), list(digests)))

    def fail(self, index: int, error: ServiceError) -> None:
        """A crop that could not be prepared."""
        self._pass_on(index, error, Times())
        self._hub.send(Withdraw(self.number, [index], self.abandoned))

    def abandon(self, reason: DropReason) -> None:
        """Nobody waits any more. What is still being prepared is withdrawn when it comes to `submit`."""
        if self.abandoned is None:
            self.abandoned = reason
            self._deliver = None
            if self._waiting:
                self._hub.send(Withdraw(self.number, list(self._waiting), reason))

    def admit(self, loaded: Loaded, slots: list[int]) -> None:
        """For the hub: there are places."""
        self._loaded = loaded
        self.slots = slots
        if self.abandoned is not None:
            self._hub.send(Withdraw(self.number, list(range(len(slots))), self.abandoned))
        elif not self.admitted.done():
            self.admitted.set_result(None)

    def refuse(self, error: ServiceError) -> None:
        """For the hub: there are none."""
        if not self.admitted.done():
            self.admitted.set_exception(error)

    def settle(self, index: int, outcome: Outcome, times: Times) -> bool:
        """For the hub: a crop's outcome. True when it was the last."""
        self._waiting.discard(index)
        self._pass_on(index, outcome, times)
        self._unsettled -= 1
        return not self._unsettled

    def _pass_on(self, index: int, outcome: Outcome, times: Times) -> None:
        if index in self._undelivered:
            self._undelivered.discard(index)
            if self._deliver is not None:
                self._deliver(index, outcome, times)
            if not self._undelivered:
                self._deliver = None
                if not self.settled.done():
                    self.settled.set_result(None)
