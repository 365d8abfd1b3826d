"""A worker that reads pixels instead of words: it stands in for the device, so that tests need no weights."""

import asyncio
import io
from collections.abc import Sequence
from typing import Any

from PIL import Image, ImageStat

from clip4str_service.readings import Alternative, BranchReading, Character, ModelInfo, Reading
from clip4str_service.settings import Settings
from clip4str_service.worker import Job, WorkerStartError

MODEL = ModelInfo(
    name="pixels",
    revision="sha256:" + "0" * 64,
    variant="tiny",
    dtype="float32",
    device="cpu",
    charset="0123456789ABCDEF",
    max_length=25,
    image_size=(32, 128),
    parameters=1,
)

POISON = "#666666"
"""The device falls over when it is shown this colour."""

GARBLED = "#777777"
"""The device answers this colour with what is no number."""


class PixelWorker:
    """Reads each crop as its mean colour in hexadecimal; the visual branch misses the blue unless it is grey.

    `gate` holds batches back while it is cleared; `batches` tells their sizes.
    """

    def __init__(self, failure: str = "") -> None:
        self.batches: list[int] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self._failure = failure

    @property
    def model(self) -> ModelInfo:
        return MODEL

    async def start(self) -> None:
        if self._failure:
            raise WorkerStartError(self._failure)

    def prepare(self, image: Image.Image) -> str:
        return "#" + "".join(f"{round(mean):02X}" for mean in ImageStat.Stat(image).mean)

    async def read(self, jobs: Sequence[Job]) -> Sequence[Reading]:
        self.batches.append(len(jobs))
        await self.gate.wait()
        if any(job.crop == POISON for job in jobs):
            raise RuntimeError("the device fell over")
        return [_reading(job) for job in jobs]

    async def stop(self) -> None:
        pass


def _reading(job: Job) -> Reading:
    text = job.crop[1:]
    grey = text[:2] == text[2:4] == text[4:]
    if job.options.charset == "digits":
        text = "".join(character for character in text if character.isdigit())
    confidence = float("nan") if job.crop == GARBLED else 0.9
    others = tuple(Alternative(str(rank), 0.1 / 2**rank) for rank in range(job.options.top_k))
    visual, cross_modal = (
        BranchReading(
            text=word,
            confidence=confidence ** (len(word) + 1),
            eos_confidence=confidence,
            characters=tuple(Character(character, confidence, others) for character in word),
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


def plain(colour: str = "#ABCDEF", size: tuple[int, int] = (32, 16)) -> bytes:
    """A PNG of one colour."""
    return encoded(Image.new("RGB", size, colour))
