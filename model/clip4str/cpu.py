"""Running on CPUs: a lane for each processor, or, for large models, all of them on one batch."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from clip4str.autoregression import Execution
from clip4str.config import ModelConfig
from clip4str.decoding import decode
from clip4str.image import Pixels
from clip4str.model import CLIP4STR
from clip4str.stages import Stage, unobserved

_TOKENS_AT_ONCE = 1024  # in the image encoder: their activations stay in a processor's caches
_BATCH = 32  # crops of one processor, at most: more gain nothing and take more memory
_PROCESSES = 8  # of a server, at most: each has a model and a PyTorch of its own
_WIDE = 512  # width of an image encoder whose single layers are worth the work of several processors

Logits = tuple[Tensor, Tensor]


class Lane:
    """A thread that reads one batch at a time, on one processor or with the help of others in each operation.

    How many processors PyTorch takes is a matter of the thread it is called on. With a thread of its own, a lane
    takes as many as it should whoever calls it, and takes the caller's setting from nobody.
    """

    def __init__(self, model: CLIP4STR, processors: int = 1) -> None:
        self._model = model
        self.max_batch = _BATCH
        rows, columns = model.config.vision.grid
        self._execution = Execution(
            positions=lambda read, limit: min(-(-read // 4) * 4, limit),
            caption_rows=lambda different, _: rounded(different),
            reread_rows=lambda misled, _: rounded(misled),
            encoded_at_once=max(1, _TOKENS_AT_ONCE // (rows * columns)),
        )
        self._size = exactly if is_wide(model.config) else rounded
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="clip4str-lane")
        others = torch.get_num_threads()
        self._thread.submit(_compute_on, processors).result()
        torch.set_num_threads(others)  # PyTorch gives the last number to threads yet to come as well

    def submit(self, crops: Sequence[Pixels], allowed: Tensor | None, stage: Stage) -> Future[Logits]:
        """As `read`, without waiting."""
        return self._thread.submit(self._read, crops, allowed, replace(self._execution, stage=stage))

    def read(self, crops: Sequence[Pixels], allowed: Tensor | None, stage: Stage) -> Logits:
        """As `Runtime.read`, for one batch."""
        return self.submit(crops, allowed, stage).result()

    def _read(self, crops: Sequence[Pixels], allowed: Tensor | None, execution: Execution) -> Logits:
        count = len(crops)
        size = self._size(count)
        pixels = np.zeros((size, *crops[0].shape), np.uint8)
        np.stack(crops, out=pixels[:count])
        padding = torch.arange(size) >= count
        if allowed is not None:
            allowed = F.pad(allowed, (0, 0, 0, size - count), value=True)
        decoded = decode(self._model, torch.from_numpy(pixels), allowed, padding=padding, execution=execution)
        return decoded.visual.refined[:count], decoded.cross_modal.refined[:count]

    def warm_up(self, batch: int) -> None:
        """Read blank crops, one and as many as will come, so that memory is there and kernels are chosen."""
        _read_blanks(self, self._model, batch)


class Team:
    """All processors for one batch: each reads its own part, on a lane of its own.

    That is faster than all of them sharing every operation: they meet at the end of a batch, not thousands of times
    within it. And it bears company: threads that meet wait for whichever another program has pushed aside. Only the
    few crops that do not go round are read by all together.
    """

    def __init__(self, model: CLIP4STR, processors: int) -> None:
        self._model = model
        self._together = Lane(model, processors)
        self._each = [Lane(model) for _ in range(processors)]
        self.max_batch = _BATCH * processors

    def read(self, crops: Sequence[Pixels], allowed: Tensor | None, stage: Stage) -> Logits:
        """As `Runtime.read`, for one batch."""
        count, parts = len(crops), len(self._each)
        if count < parts:
            return self._together.read(crops, allowed, stage)
        edges = [count * part // parts for part in range(parts + 1)]
        begun = [
            lane.submit(crops[start:stop], None if allowed is None else allowed[start:stop], stage)
            for lane, start, stop in zip(self._each, edges[:-1], edges[1:], strict=True)
        ]
        visual, cross_modal = zip(*(part.result() for part in begun), strict=True)
        return torch.cat(visual), torch.cat(cross_modal)

    def warm_up(self, batch: int) -> None:
        """As `Lane.warm_up`."""
        _read_blanks(self, self._model, batch)


def ways(model: CLIP4STR) -> list[Lane] | list[Team]:
    """How batches are best read by as many processors as PyTorch uses here: each by one of them, or by all."""
    processors = torch.get_num_threads()
    if is_wide(model.config):
        return [Team(model, processors)]
    return [Lane(model) for _ in range(processors)]


def processes(config: ModelConfig, processors: int) -> int:
    """Among how many processes, each with a model of its own, a server best divides so many processors.

    Of a small model's time, much is Python's, of which a process runs one thread at a time: two processes read single
    crops half as fast again as two lanes of one do.
    """
    if is_wide(config):
        return 1
    each = -(-processors // _PROCESSES)
    return -(-processors // each)


def is_wide(config: ModelConfig) -> bool:
    """Whether a model's single layers are worth the work of several processors."""
    return config.vision.width >= _WIDE


def exactly(count: int) -> int:
    """As many rows as there are."""
    return count


def rounded(count: int) -> int:
    """So many rows or a few more, one of few numbers: 1 to 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, ...

    oneDNN compiles every operation for every shape that it meets. That takes longer than the operation itself, and
    half a megabyte each; the thousand last are kept, and batches of all sizes, with words of all lengths, make more.
    """
    step = 1 << max(0, count.bit_length() - 3)
    return -(-count // step) * step


def _compute_on(processors: int) -> None:
    """Let PyTorch use so many threads in what this thread calls."""
    torch.get_num_threads()  # a new thread takes the process's number at its first use of PyTorch, whatever was set
    torch.set_num_threads(processors)


def _read_blanks(way: Lane | Team, model: CLIP4STR, batch: int) -> None:
    blank = np.zeros((3, *model.config.vision.image_size), np.uint8)
    for size in (1, min(batch, way.max_batch)):
        way.read([blank] * size, None, unobserved)
