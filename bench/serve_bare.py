"""The bare model, in as many processes as a server would have: none can read faster. They make the crops, too.

Only they import the model: the client stays small.
"""

from __future__ import annotations

import asyncio
import io
import statistics
import time
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import asdict
from itertools import chain, count
from multiprocessing import get_context
from types import TracebackType
from typing import NamedTuple

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
    """The model's processes. `material` is there once it is loaded."""

    def __init__(self) -> None:
        self._pools = [_one_process()]
        self.material = Material([], [], {}, {}, 0)

    def load(self, model: str, device: str | None, crops: int, seed: int, seconds: float) -> None:
        """Draw crops, load the model, try each batch size for `seconds`. Raises CheckpointError, HardwareError."""
        first = self._pools[0]
        machine, processes, threads = first.submit(_divided, model, device).result()
        self._pools += [_one_process() for _ in range(1, processes)]
        encoded = first.submit(draw, crops, seed).result()
        loading = [pool.submit(_load, model, device, threads, encoded) for pool in self._pools]
        info, *_ = [each.result() for each in loading]
        sizes = [size for size in BATCHES if size <= crops] or [crops]
        best = max(sizes, key=lambda size: sum(each.result() for each in self._begin(size, seconds)))
        texts = first.submit(_texts).result()
        self.material = Material(encoded, texts, machine, info, best)

    async def best(self, seconds: float) -> float:
        """Crops per second of the batch size that is fastest here: prepared crops in, readings out."""
        speeds = self._begin(self.material.best_batch, seconds)
        return sum(await asyncio.gather(*map(asyncio.wrap_future, speeds)))

    async def single(self, seconds: float) -> float:
        """Milliseconds of one prepared crop, the median."""
        return await asyncio.wrap_future(self._pools[0].submit(_single_ms, seconds))

    def _begin(self, size: int, seconds: float) -> list[Future[float]]:
        """Crops per second of each process, while all of them read batches of this size."""
        return [pool.submit(_crops_per_second, size, seconds) for pool in self._pools]

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for pool in self._pools:
            pool.shutdown(cancel_futures=True)


class _Loaded:
    """The model and the prepared crops of its process."""

    def __init__(self, model: str, device: str | None, threads: int | None, encoded: list[bytes]) -> None:
        from PIL import Image

        from clip4str import Recognizer
        from clip4str.hardware import fit_threads
        from clip4str.memory import keep_freed_memory

        keep_freed_memory()
        fit_threads(threads)
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


def _one_process() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, mp_context=get_context("spawn"))


def _divided(model: str, device: str | None) -> tuple[dict[str, str | int], int, int | None]:
    """The machine; processes, and threads of each, that the service would have; None: as many as there are."""
    from clip4str import checkpoint
    from clip4str.benchmark.machine import this_machine
    from clip4str.cpu import processes
    from clip4str.hardware import fit_threads, resolve_device

    loaded = checkpoint.load(model)
    threads = fit_threads()
    target = resolve_device(device)
    machine = asdict(this_machine(target))
    if target.type != "cpu":
        return machine, 1, None
    count = processes(loaded.config, threads)
    return machine, count, -(-threads // count)


def _load(model: str, device: str | None, threads: int | None, encoded: list[bytes]) -> dict[str, str | int]:
    """What is known of the model."""
    global _loaded
    _loaded = _Loaded(model, device, threads, encoded)
    info = _loaded.recognizer.info
    _loaded.recognizer.warm_up(min(max(BATCHES), len(encoded)))
    return {"name": info.name, "revision": info.revision, "dtype": info.dtype, "device": info.device}


def _texts() -> list[str]:
    batches = range(len(_loaded.crops) // _CHUNK)
    return [text for number in batches for text in _loaded.batch(number, _CHUNK)]


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
