"""Where front ends and workers meet: gives crops their places, and outcomes back to who asked.

A front end asks for places for a call's crops and has them all, with a slot of shared memory for each, or is
refused at once. It fills the slots and submits; the generation's batcher takes over; each outcome goes back as soon
as there is one, those that are ready together in one message. A front end that dies gives up all that it asked.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec

from clip4str_service.batcher import (
    Admission,
    BatcherClosedError,
    BatcherFullError,
    DeadlineUnmeetableError,
    ItemExpiredError,
    ItemWithdrawnError,
    Place,
    State,
)
from clip4str_service.errors import (
    DeadlineExceededError,
    DrainingError,
    InternalError,
    NotReadyError,
    OverloadedError,
    ServiceError,
)
from clip4str_service.generation import Generation, Job
from clip4str_service.limits import Limits, RateLimitedError
from clip4str_service.wire import Admit, Admitted, DropReason, Outcomes, Refused, Settled, Submit, Withdraw


class Dispatcher:
    """Admits calls to the current generation, where there is one."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._refusal: ServiceError = NotReadyError("the model is still being loaded")
        self._current: Generation | None = None

    def accept(self, generation: Generation) -> None:
        """From now on calls are admitted to this generation."""
        self._current = generation

    def refuse(self, refusal: ServiceError) -> None:
        """From now on calls are refused."""
        self._current = None
        self._refusal = refusal

    def admit(self, peer: Peer, order: Admit) -> Call:
        """A call with places for all of its crops. Raises ServiceError."""
        generation = self._current
        if generation is None:
            raise self._refusal
        crops = len(order.sizes)
        call = Call(peer, order, generation, self._limits)
        try:
            self._limits.take(order.tenant, crops, asyncio.get_running_loop().time())
        except RateLimitedError as limited:
            raise OverloadedError(str(limited), retry_after=limited.retry_after, limited=True) from None
        try:
            call.admission = generation.batcher.admit(
                order.sizes, urgent=order.urgent, deadline=order.deadline, tenant=order.tenant, owner=call
            )
        except (BatcherFullError, DeadlineUnmeetableError) as full:
            self._limits.refund(order.tenant, crops)
            raise OverloadedError(str(full), retry_after=full.retry_after) from None
        except BatcherClosedError:
            self._limits.refund(order.tenant, crops)
            raise DrainingError("the service is about to stop and takes no more crops") from None
        call.slots = generation.slots.take(crops)
        return call


class Peer:
    """One front end: its calls in progress, and the outcomes that are on their way to it."""

    def __init__(self, dispatcher: Dispatcher, send: Callable[[msgspec.Struct], None]) -> None:
        self._dispatcher = dispatcher
        self._send = send
        self._calls: dict[int, Call] = {}
        self._ready: list[Settled] = []

    def told(self, message: Admit | Submit | Withdraw) -> None:
        """Takes a message of the front end."""
        if isinstance(message, Admit):
            self._admit(message)
            return
        call = self._calls.get(message.call)
        if call is None:  # its last crop was settled while the message was on its way
            return
        if isinstance(message, Submit):
            for index, digest in zip(message.indices, message.digests, strict=True):
                call.submit(index, digest)
        else:
            for index in message.indices:
                call.withdraw(index, message.reason)

    def gone(self) -> None:
        """The front end is dead: nobody waits for its calls, and nobody writes to their slots."""
        for call in list(self._calls.values()):
            for index in range(len(call.slots)):
                call.withdraw(index, "cancelled")

    def settled(self, call: Call, settled: Settled) -> None:
        """An outcome; it is sent with what else is ready in this turn of the loop."""
        if not self._ready:
            asyncio.get_running_loop().call_soon(self._flush)
        self._ready.append(settled)
        if not call.admission.open:
            del self._calls[call.number]

    def _admit(self, order: Admit) -> None:
        try:
            call = self._dispatcher.admit(self, order)
        except ServiceError as error:
            limited = isinstance(error, OverloadedError) and error.limited
            self._send(Refused(order.call, error.code, error.detail, error.retry_after_ms, limited))
        else:
            self._calls[order.call] = call
            self._send(Admitted(order.call, call.generation.number, call.slots))

    def _flush(self) -> None:
        self._send(Outcomes(self._ready))
        self._ready = []


class Call:
    """The crops of one call of a front end: the owner of their places."""

    admission: Admission[Job, bytes]
    slots: list[int]

    def __init__(self, peer: Peer, order: Admit, generation: Generation, limits: Limits) -> None:
        self.number = order.call
        self.generation = generation
        self.traceparent = order.traceparent
        self._peer = peer
        self._limits = limits
        self._tenant = order.tenant
        self._wanted = order.wanted

    def submit(self, index: int, digest: bytes) -> None:
        """A crop's pixels are in its slot. To say it again, or of a crop that was given up, changes nothing."""
        place = self.admission.places[index]
        if place.state is State.PREPARING:
            key = (digest, self._wanted.top_k, self._wanted.charset) if digest else None
            self.generation.batcher.submit(place, Job(self.slots[index], self._wanted), key)

    def withdraw(self, index: int, reason: DropReason | None) -> None:
        """A crop is given up. If it was not submitted, nobody will use its slot."""
        place = self.admission.places[index]
        unused = place.state is State.PREPARING
        self.generation.batcher.withdraw(place, reason)
        if unused:
            self.generation.slots.give_back([self.slots[index]])

    def settled(self, place: Place[Job, bytes]) -> None:
        """As the batcher's owner."""
        self._limits.give_back(self._tenant, 1)
        outcome = place.outcome
        reading, code = (outcome, "") if isinstance(outcome, bytes) else (b"", _code(outcome))
        self._peer.settled(
            self,
            Settled(
                self.number,
                place.index,
                reading,
                code,
                place.submitted_at,
                place.sealed_at,
                place.finished_at,
            ),
        )


def _code(outcome: Exception) -> str:
    if isinstance(outcome, BatcherClosedError):
        return DrainingError.code
    if isinstance(outcome, (ItemExpiredError, ItemWithdrawnError)):
        return DeadlineExceededError.code
    return InternalError.code  # the model failed on it, or it killed its worker twice
