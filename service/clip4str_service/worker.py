"""The process that holds the model: slots of shared memory in, readings out. No sockets to the world.

The supervisor starts it (`python -m clip4str_service.worker CHANNEL DESCRIPTORS`). It loads and warms the model,
reads the batches it is told, several at a time where the hardware can, and beats all along. It ends when it is
told to, when the supervisor is gone, and when the device is lost; then the supervisor starts another.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import math
import os
import signal
import socket
import sys
from collections.abc import Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from time import monotonic
from typing import Any, NoReturn

import torch

from clip4str import CheckpointError, Recognizer, checkpoint
from clip4str.cpu import processes
from clip4str.hardware import fit_threads, resolve_device
from clip4str.memory import keep_freed_memory
from clip4str_service.arena import Crops, Pixels
from clip4str_service.channel import open_channel, take_descriptor
from clip4str_service.logs import configure_logging
from clip4str_service.readings import ReadOptions
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
    encode_reading,
)

log = logging.getLogger(__name__)

BEAT_SECONDS = 0.5

_NICENESS = 10  # beside front ends on the same processors: their work is short, and somebody waits for it
_LOST = 70  # exit code (EX_SOFTWARE)


class Worker:
    """A recognizer and its lanes."""

    def __init__(self, descriptors: socket.socket) -> None:
        self._descriptors = descriptors
        self._over = asyncio.get_running_loop().create_future()
        self._tasks: set[asyncio.Task[None]] = set()
        self._lanes = ThreadPoolExecutor(1, thread_name_prefix="lane")  # one lane loads
        self._recognizer: Recognizer | None = None
        self._crops: Crops | None = None

    async def run(self, orders: socket.socket) -> None:
        """Works until it is told to stop, or until the supervisor is gone."""
        self._channel = await open_channel(orders, ToWorker, self._told, self._end)
        while not self._over.done():
            self._channel.send(Beat())
            await asyncio.wait([self._over], timeout=BEAT_SECONDS)

    def _told(self, message: ToWorker) -> None:
        match message:
            case Load():
                self._begin(self._load(message))
            case Arena():
                size = self._loaded.info.image_size
                self._crops = Crops(take_descriptor(self._descriptors), message.slots, size)
            case Batch():
                self._begin(self._answer(message))
            case Stop():
                self._end()

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("the worker cannot go on", exc_info=error)
            _leave(_LOST)

    def _end(self) -> None:
        if not self._over.done():
            self._over.set_result(None)

    async def _load(self, order: Load) -> None:
        configure_logging(order.log_level, order.name)
        loop = asyncio.get_running_loop()
        try:
            if resolve_device(order.device).type == "cpu":
                os.nice(_NICENESS)  # of this thread, and of those that it starts from now on
            recognizer, companions = await loop.run_in_executor(self._lanes, _loaded, order)
        except (CheckpointError, ValueError, OSError, RuntimeError) as error:
            # RuntimeError is what PyTorch raises for a device that is missing or full, with lines of advice.
            reason = str(error).partition("\n")[0] or type(error).__name__
            self._channel.send(StartFailed(f"the model {order.model!r} cannot be started: {reason}"))
            self._end()
            return
        self._recognizer = recognizer
        lanes = recognizer.batches_in_flight
        if lanes > 1:
            self._lanes.shutdown()
            self._lanes = ThreadPoolExecutor(lanes, thread_name_prefix="lane")
        largest = min(order.max_batch, recognizer.max_batch)
        self._channel.send(Loaded(recognizer.info, lanes, recognizer.processors, largest, companions))

    async def _answer(self, batch: Batch) -> None:
        done = await asyncio.get_running_loop().run_in_executor(self._lanes, self._read, batch)
        self._channel.send(done)

    def _read(self, batch: Batch) -> Done:
        """On a lane's thread: one batch."""
        if self._crops is None:
            raise RuntimeError("a batch came before the memory of its crops")
        started = monotonic()
        crops = self._crops.pixels[batch.slots]  # a copy: uint8 [N, 3, H, W]
        options = [ReadOptions(wanted.top_k, wanted.charset) for wanted in batch.wanted]
        stages = _Stages()
        readings = self._read_some(list(crops), options, stages)
        stages.seconds["inference"] = monotonic() - started
        return Done(batch.number, readings, stages.seconds)

    def _read_some(
        self, crops: Sequence[Pixels], options: Sequence[ReadOptions], stages: _Stages
    ) -> list[bytes | None]:
        """Readings as they travel. What fails is read again by halves, so that a crop fails alone: None."""
        try:
            readings = self._loaded.read_prepared(crops, options, stages, spread=False)
        except Exception as error:
            if _device_is_lost(error):
                log.exception("the device is lost")
                _leave(_LOST)
            log.exception("a batch of %d crops failed", len(crops))
            if len(crops) == 1:
                return [None]
            half = len(crops) // 2
            return [
                *self._read_some(crops[:half], options[:half], stages),
                *self._read_some(crops[half:], options[half:], stages),
            ]
        finite = [math.isfinite(each.visual.confidence + each.cross_modal.confidence) for each in readings]
        if not all(finite):
            log.error("the model's answer to %d crops is not finite", finite.count(False))
        return [encode_reading(each) if sane else None for each, sane in zip(readings, finite, strict=True)]

    @property
    def _loaded(self) -> Recognizer:
        if self._recognizer is None:
            raise RuntimeError("the worker has no model yet")
        return self._recognizer


class _Stages:
    """Adds up the seconds of each part of the work on one lane."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        started = monotonic()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + monotonic() - started


def _loaded(order: Load) -> tuple[Recognizer, int]:
    """The model, and how many more processes like this one its device has room for."""
    threads = fit_threads(order.threads)
    loaded = checkpoint.load(order.model)
    companions = 0
    if resolve_device(order.device).type == "cpu":
        sharing = min(threads, order.processes or processes(loaded.config, threads))
        fit_threads(-(-threads // sharing))
        companions = sharing - 1
    recognizer = Recognizer.from_checkpoint(loaded, device=order.device, precision=order.precision)
    recognizer.warm_up(order.max_batch)
    gc.collect()
    gc.freeze()  # PyTorch and the model stay: no lane has to wait while all of it is looked through
    return recognizer, companions


def _device_is_lost(error: Exception) -> bool:
    """Whether the device is in a state from which only a new process recovers; a lack of memory is none."""
    return isinstance(error, torch.AcceleratorError) and not isinstance(error, torch.OutOfMemoryError)


def _leave(code: int) -> NoReturn:
    """Ends the process at once: a thread that is busy on a lost device would hold up any other end."""
    logging.shutdown()
    os._exit(code)


async def _work(channel: int, descriptors: int) -> None:
    await Worker(socket.socket(fileno=descriptors)).run(socket.socket(fileno=channel))


def main() -> NoReturn:
    """The process: two inherited descriptors in, `Worker.run`, out."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # meant for the service: the supervisor says what follows
    keep_freed_memory()
    channel, descriptors = map(int, sys.argv[1:])
    asyncio.run(_work(channel, descriptors))
    _leave(0)


if __name__ == "__main__":
    main()
