"""The real worker's process with a small model: what it reads, and how it fails."""

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio

from clip4str import ReadOptions, Recognizer
from clip4str.checkpoint import save
from clip4str_service import worker as worker_module
from clip4str_service.arena import Crops, Slots
from clip4str_service.channel import open_channel
from clip4str_service.readings import Reading
from clip4str_service.wire import FromWorker, Load, Loaded, StartFailed, Wanted, decode_reading
from clip4str_service.worker import Worker
from clip4str_service.workers import WorkerDiedError, WorkerProcess
from tests.model.small import small_model
from tests.service.faulty_worker import FAULT, LOST, NOT_FINITE
from tests.service.processes import mapped, only_child, until

pytestmark = pytest.mark.asyncio(loop_scope="module")

FAULTY = "tests.service.faulty_worker"
LONG = 120.0
SLOTS = 8


def order(model: Path, device: str = "cpu", threads: int = 1, processes: int | None = 1) -> Load:
    return Load("worker", str(model), device, "fp32", threads, processes, 4, "error")


@dataclass
class Running:
    """A worker, the memory that it shares, and the file of its model."""

    worker: WorkerProcess
    pid: int
    loaded: Loaded
    crops: Crops
    model: Path

    async def read(self, *slots: int, top_k: int = 0, charset: str | None = None) -> list[Reading | None]:
        """Its readings of these slots."""
        done = await self.worker.read(slots, [Wanted(top_k, charset)] * len(slots), LONG)
        assert done.stages["inference"] > 0
        return [None if each is None else decode_reading(each) for each in done.readings]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "small.safetensors"
    save(path, small_model())
    return path


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(model: Path) -> AsyncIterator[Running]:
    worker = WorkerProcess(order(model), silence=LONG, module=FAULTY)
    loaded = await worker.start()
    slots = Slots(SLOTS, loaded.model.image_size)
    worker.share(slots)
    crops = Crops(os.dup(slots.descriptor), slots.count, loaded.model.image_size)
    noise = np.random.default_rng(7)
    crops.pixels[:] = noise.integers(0, 250, crops.pixels.shape, np.uint8)
    yield Running(worker, only_child(), loaded, crops, model)
    await worker.stop()
    slots.close()


async def test_worker_says_what_it_loaded(running: Running) -> None:
    assert running.loaded.model.name == "small"
    assert running.loaded.model.device == "cpu"
    assert (running.loaded.lanes, running.loaded.max_batch) == (1, 4)


async def test_crops_are_read_as_the_library_reads_them(running: Running) -> None:
    recognizer = Recognizer.load(str(running.model), device="cpu", precision="fp32")
    slots = 5, 0, 3
    expected = recognizer.read_prepared(
        [running.crops.pixels[slot] for slot in slots], [ReadOptions(2, "digits")] * len(slots)
    )
    for reading, other in zip(await running.read(*slots, top_k=2, charset="digits"), expected, strict=True):
        assert reading is not None
        assert reading.text == other.text
        assert reading.confidence == pytest.approx(other.confidence, abs=1e-5)
        assert [len(each.alternatives) for each in reading.visual.characters] == [2] * len(
            reading.visual.characters
        )


async def test_crop_that_the_model_fails_on_fails_alone(running: Running) -> None:
    expected = await running.read(0, 1, 3, 4)
    running.crops.pixels[2] = FAULT
    running.crops.pixels[5] = NOT_FINITE
    readings = await running.read(0, 2, 1, 5)
    assert [reading is None for reading in readings] == [False, True, False, True]
    assert await running.read(2) == [None]
    assert [alike(one, other) for one, other in zip(readings[::2], expected[:2], strict=True)] == [True, True]
    assert await running.read(0, 1, 3, 4) == expected


def alike(one: Reading | None, other: Reading | None) -> bool:
    """The same text, and the confidence but for rounding."""
    assert one is not None
    assert other is not None
    return one.text == other.text and one.confidence == pytest.approx(other.confidence, abs=1e-5)


async def test_worker_has_the_model_and_no_doors(running: Running) -> None:
    assert mapped(running.pid, "libtorch") > 0
    assert mapped(running.pid, "clip4str-crops") == 1
    for library in ("cygrpc", "pydantic_core", "httptools"):
        assert mapped(running.pid, library) == 0


async def test_worker_whose_device_is_lost_ends(running: Running) -> None:
    running.crops.pixels[6] = LOST
    with pytest.raises(WorkerDiedError):
        await running.read(0, 6)
    await running.worker.over()
    assert not running.worker.hung


@pytest.mark.parametrize("fault", ["damaged", "missing", "device"])
async def test_start_that_fails_says_why_in_one_line(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """In this process, whose logging stays as it is."""
    monkeypatch.setattr(worker_module, "configure_logging", lambda *_: None)
    path = tmp_path / "other.safetensors"
    if fault == "damaged":
        damage(model, path)
    heard: list[FromWorker] = []
    (ours, theirs), (descriptors, their_descriptors) = socket.socketpair(), socket.socketpair()
    with descriptors, their_descriptors:
        channel = await open_channel(ours, FromWorker, heard.append, lambda: None)
        working = asyncio.create_task(Worker(their_descriptors).run(theirs))
        channel.send(order(model, "cuda:99") if fault == "device" else order(path))
        await asyncio.wait_for(working, LONG)
        await until(lambda: isinstance(heard[-1], StartFailed))
        channel.close()
        await asyncio.sleep(0.01)
    (failure,) = (message.reason for message in heard if isinstance(message, StartFailed))
    named = str(model if fault == "device" else path)
    assert failure.startswith(f"the model {named!r} cannot be started: ")
    assert ("cuda" if fault == "device" else named) in failure.partition(" cannot be started: ")[2]
    assert "\n" not in failure


def damage(model: Path, path: Path) -> None:
    """A copy of which one bit is another."""
    content = bytearray(model.read_bytes())
    content[-1000] ^= 1
    path.write_bytes(content)
