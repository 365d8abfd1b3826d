"""A generation whose workers are processes that read pixels, and callers who ask it for crops of one colour."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Literal

from clip4str_service.arena import Crops
from clip4str_service.batcher import Admission, Batch, Bounds, DropReason, Place
from clip4str_service.generation import Care, Generation, Job
from clip4str_service.wire import Load, Wanted, decode_reading
from clip4str_service.workers import WorkerProcess
from tests.service.pixel_process import MODEL
from tests.service.processes import until

PIXELS = "tests.service.pixel_process"
BOUNDS = Bounds(max_batch=64, max_delay=0.002, max_items=64, max_bytes=1 << 20)
FOREVER = 1e9


def order(model: Path, device: str = "cpu", *, lanes: int = 1, processes: int = 1) -> Load:
    """What a worker that reads pixels is told."""
    return Load(f"worker-{device}", str(model), device, "auto", lanes, processes, 64, "info")


def becomes(model: Path, content: str | None) -> None:
    """The model's file holds this from now on; None: it is gone."""
    if content is None:
        model.unlink()
    else:
        model.write_text(content)


def content_of(model: Path) -> str:
    """What the model's file holds."""
    return model.read_text()


class Witness:
    """The generation's observer: remembers what it was told."""

    def __init__(self) -> None:
        self.batches: list[Batch[Job, bytes]] = []
        self.read_by: list[object] = []
        self.failed = 0
        self.restarts: list[str] = []

    def sealed(self, batch: Batch[Job, bytes]) -> None:
        """As `generation.Observer`."""
        self.batches.append(batch)

    def read(
        self,
        generation: Generation,  # noqa: ARG002
        batch: Batch[Job, bytes],
        finished_at: float,  # noqa: ARG002
        stages: Mapping[str, float],  # noqa: ARG002
        failure: str = "",
    ) -> None:
        """As `generation.Observer`."""
        if failure:
            self.failed += 1
        else:
            self.read_by.append(batch.runner)

    def dropped(self, reason: DropReason) -> None:
        """As `generation.Observer`."""
        raise AssertionError(f"a crop was dropped: {reason}")

    def restarted(self, reason: Literal["exit", "hang"]) -> None:
        """As `generation.Observer`."""
        self.restarts.append(reason)


class Caller:
    """Owns the places of crops."""

    admission: Admission[Job, bytes]

    def __init__(self) -> None:
        self._answered = asyncio.Event()

    def settled(self, place: Place[Job, bytes]) -> None:
        """As the batcher's owner."""
        assert place.admission is self.admission
        if not self.admission.open:
            self._answered.set()

    async def answers(self) -> list[str | type]:
        """The text of each crop, or the kind of its error, once there are all."""
        await self._answered.wait()
        outcomes = [place.outcome for place in self.admission.places]
        return [decode_reading(each).text if isinstance(each, bytes) else type(each) for each in outcomes]


class Stage:
    """A generation, its witness, and callers. `changes` counts how often its care was told of a change."""

    def __init__(self, silence: float, patience: float) -> None:
        self.witness = Witness()
        self.changes = 0
        worker = partial(WorkerProcess, silence=silence, module=PIXELS)
        self.generation = Generation(1, Care(worker, patience, self._changed), BOUNDS, self.witness)

    def _changed(self) -> None:
        self.changes += 1

    async def load(self, *orders: Load) -> None:
        """Loads it. Raises WorkerStartError."""
        await self.generation.load(orders)
        slots = self.generation.slots
        self._crops = Crops(os.dup(slots.descriptor), slots.count, MODEL.image_size)
        await self.until_up(len(orders))

    def ask(self, *colours: str) -> Caller:
        """A caller whose crops, each of one colour, are in line."""
        caller = Caller()
        caller.admission = self.generation.batcher.admit(
            [1] * len(colours), urgent=True, deadline=FOREVER, tenant="", owner=caller
        )
        slots = self.generation.slots.take(len(colours))
        for place, slot, colour in zip(caller.admission.places, slots, colours, strict=True):
            for channel, value in enumerate(bytes.fromhex(colour)):
                self._crops.pixels[slot, channel] = value
            self.generation.batcher.submit(place, Job(slot, Wanted()), None)
        return caller

    async def read(self, *colours: str) -> list[str | type]:
        """Their answers."""
        return await self.ask(*colours).answers()

    async def learn(self) -> None:
        """Reads until it is known what a batch costs."""
        while not self.generation.batcher.cost.known:
            await self.read("ABCDEF")

    async def until_running(self, crops: int) -> None:
        """Returns when so many crops are in running batches."""
        await until(lambda: self.generation.batcher.running == crops)

    async def until_up(self, workers: int) -> None:
        """Returns when so many workers are up."""
        await until(lambda: len(self.generation.up) == workers)

    @property
    def held(self) -> int:
        """Slots that are not free."""
        return self.generation.slots.count - self.generation.slots.free


@asynccontextmanager
async def loaded(*orders: Load, silence: float = 60.0, patience: float = 60.0) -> AsyncIterator[Stage]:
    """A stage whose generation is loaded by these orders, and stopped at the end."""
    stage = Stage(silence, patience)
    await stage.load(*orders)
    try:
        yield stage
    finally:
        await stage.generation.stop()
    assert stage.held == 0
