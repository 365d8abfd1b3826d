"""A worker in this process that reads pixels instead of words, so that tests need no weights, and crops for it."""

import asyncio
import io
import os
import time
from collections.abc import Sequence
from typing import Any

from PIL import Image

from clip4str_service.arena import Crops, Slots
from clip4str_service.settings import Settings
from clip4str_service.wire import Done, Loaded, Wanted
from clip4str_service.workers import WorkerDiedError, WorkerStartError
from tests.service.pixel_process import MODEL, POISON, UNREADABLE, colour, readings

__all__ = ["MODEL", "POISON", "UNREADABLE", "PixelWorker", "encoded", "plain", "settings"]


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
        return Loaded(MODEL, 1, 1, 4096, 0)

    def share(self, slots: Slots) -> None:
        self._crops = Crops(os.dup(slots.descriptor), slots.count, MODEL.image_size)

    async def read(
        self,
        slots: Sequence[int],
        wanted: Sequence[Wanted],
        limit: float,  # noqa: ARG002 (it never hangs)
    ) -> Done:
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
