"""A worker's process that reads pixels instead of words: it speaks as the real one does, and fails as it may fail.

`python -m tests.service.pixel_process CHANNEL DESCRIPTORS`. The model that it is told to load is the path of a file
whose text is the revision; "{device}" in it is replaced. Its setting of threads says how many lanes it has.
"""

import asyncio
import os
import signal
import socket
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from clip4str_service.arena import Crops, Pixels
from clip4str_service.channel import open_channel, take_descriptor
from clip4str_service.readings import Alternative, BranchReading, Character, ModelInfo, Reading
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
"""This colour stops its process, which says nothing any more."""

STUCK = "333333"
"""This one it never answers; its process beats on."""

SLOW = "444444"
"""This one takes it a tenth of a second."""

UNREADABLE = "777777"
"""On this one the model fails, and the worker goes on."""

DYING = "dying"
"""A model whose loading ends the process, with exit code 3."""

ENDLESS = "endless"
"""A model that is never loaded."""

_BEAT_SECONDS = 0.05


def colour(pixels: Pixels) -> str:
    """Of a crop, uint8 [3, H, W]: its mean, in hexadecimal."""
    return "".join(f"{round(float(mean)):02X}" for mean in pixels.mean((1, 2)))


def readings(colours: Sequence[str], wanted: Sequence[Wanted]) -> list[bytes | None]:
    """Of colours, as a worker sends them."""
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


class _Process:
    def __init__(self, descriptors: socket.socket) -> None:
        self._descriptors = descriptors
        self._over = asyncio.get_running_loop().create_future()
        self._tasks: set[asyncio.Task[None]] = set()
        self._crops: Crops | None = None

    async def run(self, orders: socket.socket) -> None:
        self._channel = await open_channel(orders, ToWorker, self._told, self._end)
        while not self._over.done():
            self._channel.send(Beat())
            await asyncio.wait([self._over], timeout=_BEAT_SECONDS)

    def _told(self, message: ToWorker) -> None:
        match message:
            case Load():
                self._lanes = ThreadPoolExecutor(message.threads or 1)
                answer = _load(message)
                if answer is not None:
                    self._channel.send(answer)
            case Arena():
                self._crops = Crops(take_descriptor(self._descriptors), message.slots, MODEL.image_size)
            case Batch():
                task = asyncio.create_task(self._answer(message))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            case Stop():
                self._end()

    def _end(self) -> None:
        if not self._over.done():
            self._over.set_result(None)

    async def _answer(self, batch: Batch) -> None:
        assert self._crops is not None
        crops = self._crops.pixels[batch.slots]
        colours = [colour(crop) for crop in crops]
        if POISON in colours:
            os.kill(os.getpid(), signal.SIGKILL)
        if HANGING in colours:
            os.kill(os.getpid(), signal.SIGSTOP)
        if STUCK in colours:
            return
        if SLOW in colours:
            await asyncio.get_running_loop().run_in_executor(self._lanes, time.sleep, 0.1)
        self._channel.send(Done(batch.number, readings(colours, batch.wanted), {}))


def _load(order: Load) -> Loaded | StartFailed | None:
    try:
        model = Path(order.model).read_text()
    except OSError as error:
        return StartFailed(f"the model {order.model!r} cannot be started: {error.strerror}")
    if model == DYING:
        os._exit(3)
    if model == ENDLESS:
        return None
    device = order.device or "cpu"
    info = replace(MODEL, revision=model.replace("{device}", device), device=device)
    lanes = order.threads or 1
    return Loaded(info, lanes, lanes, 4096, (order.processes or 1) - 1)


async def _work(channel: int, descriptors: int) -> None:
    await _Process(socket.socket(fileno=descriptors)).run(socket.socket(fileno=channel))


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    asyncio.run(_work(*map(int, sys.argv[1:])))
    os._exit(0)
