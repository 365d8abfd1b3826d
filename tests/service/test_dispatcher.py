"""Admission and outcomes: whatever front ends and the worker do, no slot has two users and every place comes back."""

import asyncio
import os
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Struct

from bench.virtual_time import run
from clip4str_service.arena import Crops
from clip4str_service.batcher import Bounds, DropReason
from clip4str_service.dispatcher import Dispatcher, Peer
from clip4str_service.errors import DrainingError
from clip4str_service.generation import Care, Generation
from clip4str_service.limits import Allowance, Limits
from clip4str_service.wire import (
    Admit,
    Admitted,
    Outcomes,
    Refused,
    Submit,
    Wanted,
    Withdraw,
    decode_reading,
)
from tests.service.generation_stage import Witness, order
from tests.service.pixel_worker import MODEL, POISON, UNREADABLE, PixelWorker

SLOTS = 8
IN_FLIGHT = 6  # crops that tenant "limited" may have
COLOURS = ["111111", "ABCDEF", "123456", UNREADABLE, POISON]
CODES = {UNREADABLE: "internal", POISON: "internal"}


class Clerk(Witness):
    """Observes the generation; here crops may be dropped."""

    def __init__(self) -> None:
        super().__init__()
        self.drops: list[DropReason] = []

    def dropped(self, reason: DropReason) -> None:
        self.drops.append(reason)


class Crop:
    """One crop of a call, as its front end knows it."""

    def __init__(self, call: int, index: int, slot: int) -> None:
        self.call, self.index, self.slot = call, index, slot
        self.colour = ""  # while it is being prepared
        self.given_up = False


class FrontEnd:
    """A front end of a few lines: it scribbles on the slots of what it prepares, and checks every outcome."""

    def __init__(self, world: "World") -> None:
        self.refusals: list[Refused] = []
        self.crops: dict[tuple[int, int], Crop] = {}  # without an outcome
        self._world = world
        self._calls = 0
        self.peer = Peer(world.dispatcher, self._told)

    @property
    def preparing(self) -> list[Crop]:
        return [crop for crop in self.crops.values() if not crop.colour and not crop.given_up]

    def admit(self, crops: int, tenant: str, patience: float) -> None:
        self._calls += 1
        deadline = asyncio.get_running_loop().time() + patience
        self.peer.told(Admit(self._calls, [10] * crops, Wanted(), True, deadline, tenant, ""))

    def submit(self, crop: Crop, colour: str, shared: bool) -> None:
        crop.colour = colour
        self._world.paint(crop.slot, colour)
        self.peer.told(Submit(crop.call, [crop.index], [colour.encode() if shared else b""]))

    def withdraw(self, crop: Crop) -> None:
        crop.given_up = True
        self.peer.told(Withdraw(crop.call, [crop.index], "cancelled" if crop.colour else None))

    def repeat(self, crop: Crop) -> None:
        """Says again what it said of a crop, and contradicts itself."""
        self.peer.told(Submit(crop.call, [crop.index], [b""]))
        if crop.given_up:
            self.peer.told(Withdraw(crop.call, [crop.index], None))

    def scribble(self) -> None:
        for crop in self.preparing:
            self._world.paint(crop.slot, "0F0F0F")

    def _told(self, message: Struct) -> None:
        match message:
            case Admitted():
                for index, slot in enumerate(message.slots):
                    self.crops[message.call, index] = Crop(message.call, index, slot)
            case Refused():
                self.refusals.append(message)
            case Outcomes():
                for settled in message.crops:
                    crop = self.crops.pop((settled.call, settled.index))  # there is one, and only once
                    if settled.code:
                        late = {"deadline_exceeded", CODES.get(crop.colour, "deadline_exceeded")}
                        assert settled.code in late
                    else:
                        assert decode_reading(settled.reading).text == crop.colour


class World:
    """Two front ends, the supervisor's part and a worker."""

    def __init__(self) -> None:
        self.clerk = Clerk()
        self.limits = Limits()
        self.limits.configure({"limited": Allowance(max_crops_in_flight=IN_FLIGHT)})
        self.dispatcher = Dispatcher(self.limits)
        self.worker = PixelWorker()
        bounds = Bounds(max_batch=3, max_delay=0.002, max_items=SLOTS, max_bytes=1000)
        self.generation = Generation(1, Care(lambda _: self.worker, 10, lambda: None), bounds, self.clerk)
        self.front_ends = [FrontEnd(self), FrontEnd(self)]

    async def open(self) -> None:
        await self.generation.load([order(Path("pixels"))])
        slots = self.generation.slots
        self._crops = Crops(os.dup(slots.descriptor), slots.count, MODEL.image_size)
        self.dispatcher.accept(self.generation)
        await asyncio.sleep(0.01)

    def paint(self, slot: int, colour: str) -> None:
        for channel, value in enumerate(bytes.fromhex(colour)):
            self._crops.pixels[slot, channel] = value

    def die(self, number: int) -> None:
        """A front end is gone, and another comes."""
        self.front_ends[number].peer.gone()
        self.front_ends[number] = FrontEnd(self)

    async def close(self) -> None:
        """In the end every crop has its outcome, every slot is free, and nothing counts against a limit."""
        self.worker.gate.set()
        for front_end in self.front_ends:
            for crop in front_end.preparing:
                front_end.withdraw(crop)
        await asyncio.sleep(1000)
        assert [front_end.crops for front_end in self.front_ends] == [{}, {}]
        assert self.generation.slots.free == SLOTS
        assert (self.generation.batcher.items, self.generation.batcher.nbytes) == (0, 0)
        self.limits.take("limited", IN_FLIGHT, 0)
        await self.generation.stop()


front_ends = st.integers(0, 1)
any_crop = st.integers(0, 20)
steps = st.one_of(
    st.tuples(
        st.just("admit"),
        front_ends,
        st.integers(1, 5),
        st.sampled_from(["free", "limited"]),
        st.sampled_from([0.5, 1e6]),
    ),
    st.tuples(st.just("submit"), front_ends, any_crop, st.sampled_from(COLOURS), st.booleans()),
    st.tuples(st.just("submit"), front_ends, any_crop, st.sampled_from(COLOURS), st.booleans()),
    st.tuples(st.just("withdraw"), front_ends, any_crop),
    st.tuples(st.just("repeat"), front_ends, any_crop),
    st.tuples(st.just("die"), front_ends),
    st.tuples(st.just("hold")),
    st.tuples(st.just("go")),
    st.tuples(st.just("pass"), st.sampled_from([0.0, 0.01, 1.0])),
)


@settings(deadline=None, max_examples=150)
@given(st.lists(steps, max_size=40))
def test_no_slot_has_two_users_and_every_place_comes_back(steps: list[tuple[object, ...]]) -> None:
    async def scenario() -> None:
        world = World()
        await world.open()
        for step in steps:
            for front_end in world.front_ends:
                front_end.scribble()
            match step:
                case ("admit", int(number), int(crops), str(tenant), float(patience)):
                    world.front_ends[number].admit(crops, tenant, patience)
                case ("submit", int(number), int(which), str(colour), bool(shared)):
                    front_end = world.front_ends[number]
                    if preparing := front_end.preparing:
                        front_end.submit(preparing[which % len(preparing)], colour, shared)
                case ("withdraw", int(number), int(which)):
                    front_end = world.front_ends[number]
                    if held := [crop for crop in front_end.crops.values() if not crop.given_up]:
                        front_end.withdraw(held[which % len(held)])
                case ("repeat", int(number), int(which)):
                    front_end = world.front_ends[number]
                    if said := [crop for crop in front_end.crops.values() if crop.colour or crop.given_up]:
                        front_end.repeat(said[which % len(said)])
                case ("die", int(number)):
                    world.die(number)
                case ("hold",):
                    world.worker.gate.clear()
                case ("go",):
                    world.worker.gate.set()
                case ("pass", float(seconds)):
                    await asyncio.sleep(seconds)
        await world.close()

    run(scenario())


def test_refusals_say_why_and_when_to_come_back() -> None:
    async def scenario() -> None:
        world = World()
        (front_end, _) = world.front_ends
        front_end.admit(1, "free", 10)
        await world.open()
        world.worker.gate.clear()
        front_end.admit(IN_FLIGHT, "limited", 1e6)
        front_end.admit(1, "limited", 1e6)
        front_end.admit(IN_FLIGHT + 1, "limited", 1e6)
        front_end.admit(SLOTS, "free", 1e6)
        world.dispatcher.refuse(DrainingError("the service is about to stop"))
        front_end.admit(1, "free", 1e6)
        codes = [refusal.code for refusal in front_end.refusals]
        assert codes == ["not_ready", "overloaded", "too_many_crops", "overloaded", "draining"]
        assert all(
            refusal.retry_after_ms for refusal in front_end.refusals if refusal.code != "too_many_crops"
        )
        limited = [refusal.limited for refusal in front_end.refusals]
        assert limited == [False, True, False, False, False]
        await world.close()

    run(scenario())


def test_generation_that_takes_no_more_is_draining() -> None:
    async def scenario() -> None:
        world = World()
        await world.open()
        world.generation.batcher.close()
        world.front_ends[0].admit(2, "limited", 1e6)
        assert [refusal.code for refusal in world.front_ends[0].refusals] == ["draining"]
        await world.close()

    run(scenario())
