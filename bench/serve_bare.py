"""The bare model, in a process of its own: no server can read faster. That process makes the crops, too.

Only that process imports the model: the client stays small.
"""

from __future__ import annotations

import asyncio
import io
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import asdict
from itertools import chain, count
from multiprocessing import get_context
from types import TracebackType
from typing import NamedTuple, TypeVar

R = TypeVar("R")

BATCHES = (16, 32, 64, 128, 256)
_CROP_SIZE = (48, 160)
_QUALITY = 90
_CHUNK = 64  # crops drawn, and read for their texts, at a time


class Material(NamedTuple):
    """What servers are given, what they should answer, and where. `crops` are JPEG files, no two alike."""

    crops: list[bytes]
    texts: list[str]
    machine: dict[str, str | int]
    model: dict[str, str | int]
    best_batch: int


class Bare(AbstractContextManager["Bare"]):
    """The model's process. `material` is there once it is loaded."""

    def __init__(self) -> None:
        self._pool = ProcessPoolExecutor(1, mp_context=get_context("spawn"))
        self.material = Material([], [], {}, {}, 0)

    def load(self, model: str, device: str | None, crops: int, seed: int, seconds: float) -> None:
        """Draw crops, load the model, try each batch size for `seconds`. Raises CheckpointError, HardwareError."""
        self.material = self._pool.submit(_load, model, device, crops, seed, seconds).result()

    async def best(self, seconds: float) -> float:
        """Crops per second of the batch size that is fastest here: prepared crops in, readings out."""
        return await self._run(_crops_per_second, self.material.best_batch, seconds)

    async def single(self, seconds: float) -> float:
        """Milliseconds of one prepared crop, the median."""
        return await self._run(_single_ms, seconds)

    async def _run(self, function: Callable[..., R], *arguments: float) -> R:
        return await asyncio.wrap_future(self._pool.submit(function, *arguments))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(cancel_futures=True)


class _Loaded:
    """The model and the prepared crops of its process."""

    def __init__(self, model: str, device: str | None, encoded: list[bytes]) -> None:
        from PIL import Image

        from clip4str import Recognizer
        from clip4str.hardware import fit_threads

        fit_threads()
        self.recognizer = Recognizer.load(model, device=device)
        self.crops = [self.recognizer.prepare(Image.open(io.BytesIO(each))) for each in encoded]

    def batch(self, number: int, size: int) -> list[str]:
        """The texts of the batch of this number; they begin again where the crops end."""
        from clip4str.reading import ReadOptions

        batches = max(1, len(self.crops) // size)
        start = number % batches * size
        crops = self.crops[start : start + size]
        return [each.text for each in self.recognizer.read_prepared(crops, [ReadOptions()] * len(crops))]


_loaded: _Loaded


def _load(model: str, device: str | None, crops: int, seed: int, seconds: float) -> Material:
    global _loaded
    import torch

    from clip4str.benchmark.machine import this_machine

    encoded = draw(crops, seed)
    _loaded = _Loaded(model, device, encoded)
    info = _loaded.recognizer.info
    _loaded.recognizer.warm_up(min(max(BATCHES), crops))
    sizes = [size for size in BATCHES if size <= crops] or [crops]
    best = max(sizes, key=lambda size: _crops_per_second(size, seconds))
    texts: list[str] = []
    for number in range(crops // _CHUNK):
        texts += _loaded.batch(number, _CHUNK)
    model_facts: dict[str, str | int] = {
        "name": info.name,
        "revision": info.revision,
        "dtype": info.dtype,
        "device": info.device,
    }
    return Material(encoded, texts, asdict(this_machine(torch.device(info.device))), model_facts, best)


def draw(crops: int, seed: int) -> list[bytes]:
    """Synthetic word crops as JPEG files, no two alike, a function of both numbers. `crops`: a multiple of 64."""
    from PIL import Image

    from clip4str.synth.stream import WordStream

    chapter = -(-crops // _CHUNK) * _CHUNK
    stream = WordStream(
        None, seed=seed, size=_CROP_SIZE, chapter=chapter, reuse=1, chunk=_CHUNK, like_lengths=False
    )
    images = chain.from_iterable(batch.images for batch in stream.crops())
    found: dict[bytes, None] = {}  # no two are alike
    while len(found) < crops:
        file = io.BytesIO()
        Image.fromarray(next(images).permute(1, 2, 0).numpy()).save(file, "JPEG", quality=_QUALITY)
        found[file.getvalue()] = None
    return list(found)


def _crops_per_second(size: int, seconds: float) -> float:
    """With as many callers as the runtime serves side by side."""
    numbers = count()

    def caller(_: int) -> float:
        started, read = time.perf_counter(), 0
        while (spent := time.perf_counter() - started) < seconds:
            read += len(_loaded.batch(next(numbers), size))
        return read / spent

    callers = _loaded.recognizer.batches_in_flight
    with ThreadPoolExecutor(callers) as pool:
        return sum(pool.map(caller, range(callers)))


def _single_ms(seconds: float) -> float:
    times: list[float] = []
    for number in count():
        started = time.perf_counter()
        _loaded.batch(number, 1)
        times.append(time.perf_counter() - started)
        if sum(times) >= seconds:
            break
    return 1000 * statistics.median(times)
