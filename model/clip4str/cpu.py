"""Running on CPUs: each processor reads its own part of a batch."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import torch
from torch import Tensor

from clip4str.autoregression import Execution, Stage, unobserved
from clip4str.decoding import decode
from clip4str.model import CLIP4STR

_TOKENS_AT_ONCE = 1024  # in the image encoder: their activations stay in a processor's caches
_PART = 32  # crops of one processor, at most: more gain nothing and take more memory
_WIDE = 512  # width of an image encoder whose single layers are worth the work of several processors


class Processors:
    """As many threads as PyTorch was using, each of which reads its part of a batch on one processor.

    That is faster than all threads sharing every operation: they meet at the end of a batch, not thousands of times
    within it. And it bears company: threads that meet wait for whichever another program has pushed aside. Only the
    few crops that do not go round a large model reads with all threads, those of the caller, in every operation.
    """

    def __init__(self, model: CLIP4STR) -> None:
        self._model = model
        self._count = torch.get_num_threads()
        self.max_batch = _PART * self._count
        rows, columns = model.config.vision.grid
        self._execution = Execution(encoded_at_once=max(1, _TOKENS_AT_ONCE // (rows * columns)))
        everyone = threading.Barrier(self._count + 1)
        self._threads = ThreadPoolExecutor(
            self._count, thread_name_prefix="reader", initializer=_be_single, initargs=(everyone,)
        )
        for _ in range(self._count):
            self._threads.submit(int)
        everyone.wait()
        torch.set_num_threads(self._count)  # for the threads of others, as before

    def read(self, crops: Sequence[Tensor], allowed: Tensor | None, stage: Stage) -> tuple[Tensor, Tensor]:
        """As `Runtime.read`, for one batch."""
        execution = replace(self._execution, stage=stage)

        def read(part: slice) -> tuple[Tensor, Tensor]:
            some = None if allowed is None else allowed[part]
            decoded = decode(self._model, torch.stack(list(crops[part])), some, execution=execution)
            return decoded.visual.refined, decoded.cross_modal.refined

        count = len(crops)
        if count < self._count and self._model.config.vision.width >= _WIDE:
            return read(slice(None))
        parts = min(count, self._count)
        edges = [count * part // parts for part in range(parts + 1)]
        visual, cross_modal = zip(*self._threads.map(read, map(slice, edges[:-1], edges[1:])), strict=True)
        return torch.cat(visual), torch.cat(cross_modal)

    def warm_up(self, batch: int) -> None:
        """Read blank crops, one and as many as will come, so that memory is there and kernels are chosen."""
        blank = torch.zeros(3, *self._model.config.vision.image_size, dtype=torch.uint8)
        for size in (1, min(batch, self.max_batch)):
            self.read([blank] * size, None, unobserved)


def _be_single(everyone: threading.Barrier) -> None:
    torch.set_num_threads(1)  # of this thread, though PyTorch gives it to threads yet to come as well
    everyone.wait()
