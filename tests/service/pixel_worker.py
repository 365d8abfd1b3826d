"""Workers that read pixels instead of words: they stand in for the device, so that tests need no weights.

`PixelWorker` lives in this process. Run as a module, it is a process that speaks as the real worker does.
"""

import asyncio
import io
import os
import signal
import socket
import sys
import time
from collections.abc import Sequence
from typing import Any

from PIL import Image

from clip4str_service.arena import Crops, Pixels, Slots
from clip4str_service.channel import open_channel, take_descriptor
from clip4str_service.readings import Alternative, BranchReading, Character, ModelInfo, Reading
from clip4str_service.settings import Settings
from clip4str_service.wire import (
    Arena,
    Batch,
    Beat,
    Done,
    Load,
    Loaded,
    StartFailed,
    Stop,
    ToWorker,
    Wanted,
    encode_reading,
)
from clip4str_service.workers import WorkerDiedError, WorkerStartError

MODEL = ModelInfo(
    name="pixels",
    revision="sha256:" + "0" * 64,
    variant="tiny",
    dtype="float32",
    device="cpu",
    charset="0123456789ABCDEF",
    max_length=25,
    image_size=(8, 8),
    parameters=1,
)

POISON = "666666"
"""A worker that is shown this colour dies."""

HANGING = "555555"
"""This colour it never answers; its process says nothing any more."""

SLOW = "444444"
"""This one takes it a tenth of a second."""

UNREADABLE = "777777"
"""On this one the model fails, and the worker goes on."""


class PixelWorker:
    """Reads each crop as its mean colour in hexadecimal; the visual branch misses the blue unless it is grey.

    `gate` holds batches back while it is cleared; `batches` tells their sizes.
    """

    hung = False
    load_seconds = 0.0

    def __init__(self, failure: str = "") -> None:
        self.batches: list[int] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.gone = asyncio.Event()
        self._failure = failure
        self._crops: Crops | None = None

    async def start(self) -> Loaded:
        if self._failure:
            raise WorkerStartError(self._failure)
        self.gone.clear()
        return Loaded(MODEL, 1, 1, 4096)

    def share(self, slots: Slots) -> None:
        self._crops = Crops(os.dup(slots.descriptor), slots.count, MODEL.image_size)

    async def read(self, slots: Sequence[int], wanted: Sequence[Wanted], limit: float) -> Done:
        assert self._crops is not None
        self.batches.append(len(slots))
        started = time.monotonic()
        await self.gate.wait()
        colours = [colour(self._crops.pixels[slot]) for slot in slots]
        if POISON in colours:
            self.gone.set()
            raise WorkerDiedError("it is dead")
        return Done(0, readings(colours, wanted), {"inference": time.monotonic() - started})

    async def over(self) -> None:
        await self.gone.wait()

    async def stop(self) -> None:
        self.gone.set()


def colour(pixels: Pixels) -> str:
    """Of a crop, uint8 [3, H, W]: its mean, in hexadecimal."""
    return "".join(f"{round(float(mean)):02X}" for mean in pixels.mean((1, 2)))


def readings(colours: Sequence[str], wanted: Sequence[Wanted]) -> list[bytes | None]:
    return [
        None if each == UNREADABLE else encode_reading(_reading(each, options))
        for each, options in zip(colours, wanted, strict=True)
    ]


def _reading(text: str, wanted: Wanted) -> Reading:
    grey = text[:2] == text[2:4] == text[4:]
    if wanted.charset == "digits":
        text = "".join(character for character in text if character.isdigit())
    others = tuple(Alternative(str(rank), 0.1 / 2**rank) for rank in range(wanted.top_k))
    visual, cross_modal = (
        BranchReading(
            text=word,
            confidence=0.9 ** (len(word) + 1),
            eos_confidence=0.9,
            characters=tuple(Character(character, 0.9, others) for character in word),
        )
        for word in (text if grey else text[:4], text)
    )
    return Reading(visual, cross_modal, truncated=False)


def settings(**changes: Any) -> Settings:
    """Settings on free ports, with what a test changes of them."""
    return Settings(**{"http_port": 0, "grpc_port": 0, "metrics_port": 0, **changes})


def encoded(image: Image.Image, file_format: str = "PNG", **options: Any) -> bytes:
    """An image file."""
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def plain(colour: str = "ABCDEF", size: tuple[int, int] = (32, 16)) -> bytes:
    """A PNG of one colour."""
    return encoded(Image.new("RGB", size, f"#{colour}"))


class _Process:
    """The worker's side of the wire. The model named is the path of a file: what it holds is the revision."""

    def __init__(self, descriptors: socket.socket) -> None:
        self._descriptors = descriptors
        self._over = asyncio.get_running_loop().create_future()
        self._crops: Crops | None = None

    async def run(self, orders: socket.socket) -> None:
        self._channel = await open_channel(orders, ToWorker, self._told, self._end)
        while not self._over.done():
            self._channel.send(Beat())
            await asyncio.wait([self._over], timeout=0.05)

    def _told(self, message: ToWorker) -> None:
        match message:
            case Load():
                self._channel.send(_loaded(message))
            case Arena():
                self._crops = Crops(take_descriptor(self._descriptors), message.slots, MODEL.image_size)
            case Batch():
                assert self._crops is not None
                self._channel.send(_read(message, self._crops))
            case Stop():
                self._end()

    def _end(self) -> None:
        if not self._over.done():
            self._over.set_result(None)


def _loaded(order: Load) -> Loaded | StartFailed:
    try:
        with open(order.model) as file:
            revision = file.read()
    except OSError as error:
        return StartFailed(f"the model {order.model!r} cannot be started: {error.strerror}")
    if revision == "dying":
        os._exit(3)
    device = order.device or "cpu"
    return Loaded(ModelInfo(**{**_FIELDS, "revision": revision, "device": device}), 1, 1, 4096)


_FIELDS: dict[str, Any] = {name: getattr(MODEL, name) for name in MODEL.__dataclass_fields__}


def _read(batch: Batch, crops: Crops) -> Done:
    colours = [colour(crops.pixels[slot]) for slot in batch.slots]
    if POISON in colours:
        os.kill(os.getpid(), signal.SIGKILL)
    if HANGING in colours:
        time.sleep(3600)
    if SLOW in colours:
        time.sleep(0.1)
    return Done(batch.number, readings(colours, batch.wanted), {})


async def _work(channel: int, descriptors: int) -> None:
    await _Process(socket.socket(fileno=descriptors)).run(socket.socket(fileno=channel))


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    asyncio.run(_work(*map(int, sys.argv[1:])))
