"""A worker as the supervisor has it: whatever its process does, who waits for it is told."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from clip4str_service.arena import Crops, Slots
from clip4str_service.wire import Wanted, decode_reading
from clip4str_service.workers import WorkerDiedError, WorkerProcess, WorkerStartError
from tests.service.generation_stage import PIXELS, becomes, order
from tests.service.pixel_process import DYING, ENDLESS, HANGING, MODEL, POISON, SLOW, STUCK, UNREADABLE
from tests.service.processes import children, nothing_left, only_child, until

LONG = 60.0


@pytest.fixture(autouse=True)
async def _nothing_is_left() -> AsyncIterator[None]:
    async with nothing_left():
        yield


@pytest.fixture
async def slots() -> AsyncIterator[Slots]:
    shared = Slots(4, MODEL.image_size)
    yield shared
    shared.close()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model"
    path.write_text("first")
    return path


class Reader:
    """A worker, and the slots that it reads."""

    def __init__(self, model: Path, slots: Slots, *, silence: float = LONG, lanes: int = 1) -> None:
        self.worker = WorkerProcess(order(model, lanes=lanes), silence=silence, module=PIXELS)
        self._slots = slots
        self._crops = Crops(os.dup(slots.descriptor), slots.count, MODEL.image_size)

    async def start(self) -> "Reader":
        await self.worker.start()
        self.worker.share(self._slots)
        return self

    def reading(self, *colours: str, limit: float = LONG) -> asyncio.Task[list[str | None]]:
        """Its reading of a batch."""
        slots = self._slots.take(len(colours))
        for slot, colour in zip(slots, colours, strict=True):
            for channel, value in enumerate(bytes.fromhex(colour)):
                self._crops.pixels[slot, channel] = value
        return asyncio.create_task(self._read(slots, limit))

    async def _read(self, slots: list[int], limit: float) -> list[str | None]:
        try:
            done = await self.worker.read(slots, [Wanted()] * len(slots), limit)
        finally:
            self._slots.give_back(slots)
        return [None if each is None else decode_reading(each).text for each in done.readings]


async def test_batches_are_read_side_by_side_and_in_order(model: Path, slots: Slots) -> None:
    reader = await Reader(model, slots, lanes=2).start()
    slow, fast = reader.reading(SLOW, "ABCDEF"), reader.reading("123456", UNREADABLE)
    assert await fast == ["123456", None]
    assert not slow.done()
    given_up = reader.reading("ABCDEF")
    await asyncio.sleep(0)
    given_up.cancel()
    assert await slow == [SLOW, "ABCDEF"]
    assert 0 < reader.worker.load_seconds < LONG
    assert not reader.worker.hung
    await reader.worker.stop()
    await reader.worker.over()
    with pytest.raises(WorkerDiedError, match="gone"):
        await reader.reading("ABCDEF")


async def test_death_is_told_to_all_who_wait(model: Path, slots: Slots) -> None:
    reader = await Reader(model, slots, lanes=2).start()
    readings = [reader.reading(SLOW), reader.reading(POISON)]
    for reading in readings:
        with pytest.raises(WorkerDiedError):
            await reading
    await reader.worker.over()
    assert not reader.worker.hung
    await reader.worker.stop()


async def test_process_that_stops_in_a_batch_is_hung(model: Path, slots: Slots) -> None:
    reader = await Reader(model, slots, silence=0.5).start()
    with pytest.raises(WorkerDiedError):
        await reader.reading(HANGING)
    assert reader.worker.hung
    await reader.worker.stop()


async def test_batch_without_end_is_a_hang_though_the_process_beats(model: Path, slots: Slots) -> None:
    reader = await Reader(model, slots, lanes=2).start()
    other = reader.reading(STUCK)
    with pytest.raises(WorkerDiedError):
        await reader.reading(STUCK, limit=0.1)
    assert reader.worker.hung
    with pytest.raises(WorkerDiedError, match="gone"):  # it is dead when that is told
        await reader.reading("ABCDEF")
    with pytest.raises(WorkerDiedError):
        await other
    await reader.worker.stop()


@pytest.mark.parametrize(
    ("content", "reason"),
    [(DYING, "the worker ended while it loaded the model: exit code 3"), (None, "No such file or directory")],
)
async def test_start_that_fails_says_why_in_one_line(
    model: Path, slots: Slots, content: str | None, reason: str
) -> None:
    becomes(model, content)
    reader = Reader(model, slots)
    with pytest.raises(WorkerStartError, match=reason) as caught:
        await reader.start()
    assert "\n" not in str(caught.value)
    await reader.worker.stop()


async def test_worker_killed_while_it_loads_says_so(model: Path, slots: Slots) -> None:
    becomes(model, ENDLESS)
    reader = Reader(model, slots)
    starting = asyncio.create_task(reader.start())
    await until(lambda: bool(children()))
    os.kill(only_child(), signal.SIGKILL)
    with pytest.raises(WorkerStartError, match="the worker ended while it loaded the model: signal 9"):
        await starting
    await reader.worker.stop()


async def test_start_can_be_given_up(model: Path, slots: Slots, caplog: pytest.LogCaptureFixture) -> None:
    reader = Reader(model, slots)
    starting = asyncio.create_task(reader.start())
    await until(lambda: bool(children()))
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    await asyncio.sleep(0.5)  # it says that it has loaded, and nobody waits for that
    await reader.worker.stop()
    assert caplog.records == []


async def test_process_that_cannot_be_started_is_one_line(
    model: Path, slots: Slots, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    reader = Reader(model, slots)
    with pytest.raises(WorkerStartError, match="process cannot be started: No such file or directory"):
        await reader.start()
    await reader.worker.stop()
