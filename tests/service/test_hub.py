"""A front end's line to the supervisor, whose part the test plays."""

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import TypeVar

import pytest

from clip4str_service import wire
from clip4str_service.arena import Slots
from clip4str_service.channel import open_channel, send_descriptor
from clip4str_service.errors import OverloadedError, UndecodableImageError
from clip4str_service.hub import Hub, Outcome, Ticket, Times
from clip4str_service.readings import Reading
from clip4str_service.wire import FromFrontend, Phase, Settled, Wanted
from tests.service.pixel_process import MODEL, readings
from tests.service.processes import mapped, nothing_left, until

M = TypeVar("M")

ORDER = wire.Frontend("frontend-0", b"{}", 3, 50051)


class Desk:
    """The supervisor's end, a hub, and what the hub delivered."""

    hub: Hub

    def __init__(self) -> None:
        self.heard: list[FromFrontend] = []
        self.delivered: dict[int, str] = {}

    async def open(self) -> None:
        ours, theirs = socket.socketpair()
        self.descriptors, self._theirs = socket.socketpair()
        self.hub = Hub(self._theirs)
        self.connecting = asyncio.create_task(self.hub.connect(theirs))
        self.channel = await open_channel(ours, FromFrontend, self.heard.append, lambda: None)

    async def connect(self) -> None:
        self.channel.send(ORDER)
        assert await self.connecting == ORDER

    async def close(self) -> None:
        self.channel.close()
        await self.hub.over
        self.descriptors.close()
        self._theirs.close()
        del self.hub, self.channel  # with what they have mapped

    async def offer(self, number: int) -> None:
        """A generation of four slots, whose memory is the front end's alone from now on."""
        memory = Slots(4, MODEL.image_size)
        send_descriptor(self.descriptors, memory.descriptor)
        memory.close()
        self.channel.send(
            wire.Generation(number, replace(MODEL, revision=str(number)), memory.count, 8 * number)
        )
        await until(lambda: self.hub.model is not None and self.hub.model.revision == str(number))

    async def told(self, kind: type[M]) -> M:
        """The next message, which is of this kind."""
        await until(lambda: bool(self.heard))
        message = self.heard.pop(0)
        assert isinstance(message, kind)
        return message

    def deliver(self, index: int, outcome: Outcome, _: Times) -> None:
        assert index not in self.delivered
        self.delivered[index] = outcome.text if isinstance(outcome, Reading) else outcome.code

    def ask(self, crops: int) -> asyncio.Task[Ticket]:
        sizes, wanted = [9] * crops, Wanted(1, "digits")
        return asyncio.create_task(
            self.hub.admit(
                sizes, wanted, self.deliver, urgent=True, deadline=7.5, tenant="name", traceparent="trace"
            )
        )

    async def admitted(self, *slots: int, generation: int = 1) -> Ticket:
        """A ticket that was given these slots."""
        asking = self.ask(len(slots))
        call = (await self.told(wire.Admit)).call
        self.channel.send(wire.Admitted(call, generation, list(slots)))
        return await asking

    def settle(self, ticket: Ticket, *outcomes: tuple[int, str]) -> None:
        """Outcomes of crops: a code in lower case, or a text."""
        settled = [
            Settled(ticket.number, index, b"", said, 0.0, 0.0, 0.0)
            if said.islower()
            else Settled(ticket.number, index, readings([said], [Wanted()])[0] or b"", "", 1.0, 2.0, 3.0)
            for index, said in outcomes
        ]
        self.channel.send(wire.Outcomes(settled))


@pytest.fixture
async def opened() -> AsyncIterator[Desk]:
    async with nothing_left():
        desk = Desk()
        await desk.open()
        yield desk
        await desk.close()


@pytest.fixture
async def desk(opened: Desk) -> Desk:
    await opened.connect()
    return opened


async def test_front_end_that_must_end_before_it_was_told_what_it_is(opened: Desk) -> None:
    opened.channel.close()
    assert await asyncio.wait_for(opened.connecting, 10) is None
    assert await opened.hub.over == 0.0


async def test_end_of_the_supervisor_is_the_end(desk: Desk) -> None:
    assert not desk.hub.over.done()
    desk.channel.close()
    assert await asyncio.wait_for(desk.hub.over, 10) == 0.0


async def test_stop_says_how_long_answers_may_take(desk: Desk) -> None:
    desk.channel.send(wire.Stop(2.5))
    assert await asyncio.wait_for(desk.hub.over, 10) == 2.5


async def test_what_the_supervisor_says_of_itself_is_known(desk: Desk) -> None:
    assert (desk.hub.phase, desk.hub.model, desk.hub.draining.is_set()) == (Phase.STARTING, None, False)
    changes: list[str] = []
    desk.hub.changed = lambda: changes.append(desk.hub.phase)
    desk.hub.reload = lambda: changes.append("reload")
    desk.channel.send(wire.State(Phase.READY, 1500))
    desk.channel.send(wire.Reload())
    desk.channel.send(wire.State(Phase.DRAINING, 1000))
    await desk.hub.draining.wait()
    assert changes == ["ready", "reload", "draining"]
    assert desk.hub.retry_after_ms == 1000


async def test_what_it_says_itself_is_heard(desk: Desk) -> None:
    desk.hub.listening()
    desk.hub.beat()
    desk.hub.start_failed("no")
    await desk.told(wire.Listening)
    await desk.told(wire.Beat)
    assert (await desk.told(wire.StartFailed)).reason == "no"


async def test_crops_have_places_and_their_outcomes_are_delivered(desk: Desk) -> None:
    await desk.offer(1)
    asking = desk.ask(3)
    order = await desk.told(wire.Admit)
    assert order == wire.Admit(order.call, [9, 9, 9], Wanted(1, "digits"), True, 7.5, "name", "trace")
    desk.channel.send(wire.Admitted(order.call, 1, [3, 0, 2]))
    ticket = await asking
    assert ticket.slots == [3, 0, 2]
    ticket.loaded.crops.pixels[3] = 7
    ticket.submit([0, 1], [b"a", b"b"])
    assert await desk.told(wire.Submit) == wire.Submit(ticket.number, [0, 1], [b"a", b"b"])
    ticket.fail(2, UndecodableImageError("it is none"))
    assert await desk.told(wire.Withdraw) == wire.Withdraw(ticket.number, [2], None)
    desk.settle(ticket, (1, "ABCDEF"), (2, "deadline_exceeded"))
    assert not ticket.settled.done()
    desk.settle(ticket, (0, "internal"))
    await ticket.settled
    assert desk.delivered == {0: "internal", 1: "ABCDEF", 2: "undecodable_image"}


async def test_refusal_is_the_callers(desk: Desk) -> None:
    asking = desk.ask(1)
    call = (await desk.told(wire.Admit)).call
    desk.channel.send(wire.Refused(call, "overloaded", "full", 700, True))
    with pytest.raises(OverloadedError, match="full") as caught:
        await asking
    assert (caught.value.retry_after_ms, caught.value.limited) == (700, True)


@pytest.mark.parametrize("leaves", ["before", "with the answer", "before a refusal"])
async def test_caller_who_leaves_while_it_is_admitted_gives_its_places_back(desk: Desk, leaves: str) -> None:
    await desk.offer(1)
    asking = desk.ask(2)
    call = (await desk.told(wire.Admit)).call
    if leaves == "with the answer":
        ticket = desk.hub._tickets[call]
        ticket.admit(desk.hub._generations[1], [0, 1])
    asking.cancel()
    await asyncio.wait([asking])
    assert asking.cancelled()
    if leaves == "before":
        desk.channel.send(wire.Admitted(call, 1, [0, 1]))
    if leaves == "before a refusal":
        desk.channel.send(wire.Refused(call, "overloaded", "full", 700, False))
    else:
        assert await desk.told(wire.Withdraw) == wire.Withdraw(call, [0, 1], "cancelled")
        given_up = [Settled(call, index, b"", "deadline_exceeded", 0.0, 0.0, 0.0) for index in range(2)]
        desk.channel.send(wire.Outcomes(given_up))
    assert (await desk.admitted(3)).slots == [3]  # the line is in order
    assert desk.delivered == {}


async def test_crop_in_preparation_is_given_up_only_when_nobody_writes_to_its_slot(desk: Desk) -> None:
    await desk.offer(1)
    ticket = await desk.admitted(0, 1, 2)
    ticket.submit([0], [b""])
    await desk.told(wire.Submit)
    ticket.abandon("deadline")
    ticket.abandon("cancelled")
    assert await desk.told(wire.Withdraw) == wire.Withdraw(ticket.number, [0], "deadline")
    ticket.submit([1], [b""])
    assert await desk.told(wire.Withdraw) == wire.Withdraw(ticket.number, [1], "deadline")
    ticket.fail(2, UndecodableImageError("it is none"))
    assert await desk.told(wire.Withdraw) == wire.Withdraw(ticket.number, [2], "deadline")
    desk.settle(ticket, (0, "ABCDEF"), (1, "deadline_exceeded"), (2, "deadline_exceeded"))
    await ticket.settled
    assert desk.delivered == {}


async def test_calls_go_on_with_their_model_when_another_comes(desk: Desk) -> None:
    await desk.offer(1)
    before = await desk.admitted(0)
    await desk.offer(2)
    after = await desk.admitted(0, generation=2)
    assert (before.loaded.info.revision, after.loaded.info.revision) == ("1", "2")
    before.submit([0], [b""])
    desk.settle(before, (0, "ABCDEF"))
    await before.settled
    assert desk.delivered == {0: "ABCDEF"}


async def test_memory_of_a_retired_model_is_given_back_at_once(desk: Desk) -> None:
    before = mapped(os.getpid(), "clip4str-crops")
    for number in range(1, 51):
        await desk.offer(number)
        ticket = await desk.admitted(0, generation=number)
        ticket.submit([0], [b""])
        await desk.told(wire.Submit)
        desk.settle(ticket, (0, "ABCDEF"))
        await ticket.settled
        del ticket
        desk.delivered.clear()
        desk.channel.send(wire.Retired(number))
        await until(lambda: desk.hub.model is None)
        assert mapped(os.getpid(), "clip4str-crops") <= before
