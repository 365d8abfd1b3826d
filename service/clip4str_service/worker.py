"""Who owns the model. The engine knows a `Worker` by its protocol only, never which one it has."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, Protocol, TypeVar, TypeVarTuple

from PIL import Image

from clip4str import CheckpointError, Recognizer
from clip4str.hardware import fit_threads
from clip4str_service.readings import ModelInfo, Reading, ReadOptions

Ts = TypeVarTuple("Ts")
R = TypeVar("R")


class Job(NamedTuple):
    """One crop, as `Worker.prepare` made it, and how to read it."""

    crop: Any
    options: ReadOptions


class WorkerStartError(Exception):
    """The model cannot be loaded; the message is one line that says why."""


class Worker(Protocol):
    """Holds a model and reads batches, one at a time."""

    @property
    def model(self) -> ModelInfo:
        """What is loaded. Known once started."""

    async def start(self) -> None:
        """Loads the model and warms it up. Raises WorkerStartError."""

    def prepare(self, image: Image.Image) -> Any:
        """RGB image -> what `read` takes as a job's crop. Safe to call from several threads, once started."""

    async def read(self, jobs: Sequence[Job]) -> Sequence[Reading]:
        """Reads one batch, in order. One call at a time."""

    async def stop(self) -> None:
        """Gives the model up, at once; a batch that is being read runs on, and nobody hears of it."""


class ThreadWorker:
    """A worker in this process: one thread of its own, the only one that ever runs the model."""

    def __init__(
        self, model: str, *, device: str | None, precision: str, threads: int | None, max_batch: int
    ) -> None:
        """As `Recognizer.load` and `fit_threads`; `max_batch` is the largest batch to warm up with."""
        self._name = model
        self._device = device
        self._precision = precision
        self._threads = threads
        self._max_batch = max_batch
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="model")
        self._recognizer: Recognizer | None = None

    @property
    def model(self) -> ModelInfo:
        """What is loaded."""
        return self._loaded.info

    async def start(self) -> None:
        """Loads the model and makes it ready, before any caller's batch comes."""
        try:
            self._recognizer = await self._on_thread(self._load)
        except (CheckpointError, ValueError, OSError, RuntimeError) as error:
            # RuntimeError is what PyTorch raises for a device that is missing or full, with lines of advice.
            reason = str(error).partition("\n")[0] or type(error).__name__
            raise WorkerStartError(f"the model {self._name!r} cannot be started: {reason}") from error

    def prepare(self, image: Image.Image) -> Any:
        """RGB image -> uint8 [3, height, width]."""
        return self._loaded.prepare(image)

    async def read(self, jobs: Sequence[Job]) -> Sequence[Reading]:
        """Reads one batch on the worker's thread."""
        crops, options = zip(*jobs, strict=True)
        return await self._on_thread(self._loaded.read_prepared, crops, options)

    async def stop(self) -> None:
        """Ends the thread, as soon as it is idle."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    @property
    def _loaded(self) -> Recognizer:
        if self._recognizer is None:
            raise RuntimeError("the worker is not started")
        return self._recognizer

    def _load(self) -> Recognizer:
        fit_threads(self._threads)
        recognizer = Recognizer.load(self._name, device=self._device, precision=self._precision)
        recognizer.warm_up(self._max_batch)
        return recognizer

    async def _on_thread(self, function: Callable[[*Ts], R], *args: *Ts) -> R:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *args)
