"""A model on its device, in the form and on the paths that are fastest there."""

from __future__ import annotations

import os
import queue
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import torch
from torch import Tensor

from clip4str import cpu
from clip4str.cuda import Lane
from clip4str.image import Pixels
from clip4str.inference import compile_encoder, optimize
from clip4str.model import CLIP4STR
from clip4str.stages import Stage, unobserved

_GPU_BATCH = 256  # larger ones gain nothing and take more memory
_GPU_LANES = 2  # batches in flight
_WORTH_SHARING = (
    4  # crops for each of several processors: fewer are read sooner by one, as Python runs one at a time
)


class _Way(Protocol):
    max_batch: int

    def read(
        self, crops: Sequence[Pixels], allowed: Tensor | None, stage: Stage
    ) -> tuple[Tensor, Tensor]: ...

    def warm_up(self, batch: int) -> None: ...


class Runtime:
    """Reads batches of any size with a model it takes over. Several threads may call it.

    `batches_in_flight` calls are served at a time, and `processors` of those side by side, each on hardware of its
    own. No batch is larger than `max_batch`: of more crops, several are made.
    """

    def __init__(self, model: CLIP4STR, device: torch.device, dtype: torch.dtype) -> None:
        self._process = os.getpid()  # threads do not survive a fork, and reading would wait for them for ever
        self._model = optimize(model, device, dtype)
        self._ways: Sequence[_Way]
        if device.type == "cuda":
            keep_precise(dtype)
            compile_encoder(self._model)
            self._ways = [Lane(self._model, device, _GPU_BATCH) for _ in range(_GPU_LANES)]
            self.processors = 1  # the second batch goes through where the first one waits
        else:
            self._ways = cpu.ways(self._model)
            self.processors = len(self._ways)
        self._free: queue.SimpleQueue[_Way] = queue.SimpleQueue()
        for way in self._ways:
            self._free.put(way)
        self.batches_in_flight = len(self._ways)
        self.max_batch = self._ways[0].max_batch
        self._threads = ThreadPoolExecutor(len(self._ways), thread_name_prefix="clip4str")

    def warm_up(self, batch: int) -> None:
        """Make ready to read batches of up to `batch` crops, before anyone waits. Not while others read."""
        with ThreadPoolExecutor(self.processors) as together:
            list(together.map(lambda way: way.warm_up(batch), self._ways))

    def read(
        self,
        crops: Sequence[Pixels],
        allowed: Tensor | None = None,
        stage: Stage = unobserved,
        *,
        spread: bool = True,
    ) -> tuple[Tensor, Tensor]:
        """Refined logits of the visual and of the cross-modal branch, float32 [N, 26, 95] on the CPU.

        `crops` uint8 [3, H, W] each, one or more; `allowed` bool [N, 95] as `decode` takes it; `stage` is entered
        with the name of each part of decoding, on a GPU as it is launched, not as it runs. With `spread`, crops that
        one batch could hold are divided among the processors that have nothing to do, unless they are few.
        """
        if os.getpid() != self._process:
            raise RuntimeError("this process was forked after the model was loaded: load it in each process")
        shares = min(self._free.qsize(), self.processors, len(crops) // _WORTH_SHARING) if spread else 1
        size = min(self.max_batch, -(-len(crops) // max(shares, 1)))
        batches = [slice(start, start + size) for start in range(0, len(crops), size)]

        def read(batch: slice) -> tuple[Tensor, Tensor]:
            way = self._free.get()
            try:
                return way.read(crops[batch], None if allowed is None else allowed[batch], stage)
            finally:
                self._free.put(way)

        if len(batches) == 1:
            return read(batches[0])
        visual, cross_modal = zip(*self._threads.map(read, batches), strict=True)
        return torch.cat(visual), torch.cat(cross_modal)


def keep_precise(dtype: torch.dtype) -> None:
    """No shortcuts below the number format asked for, in this whole process: answers would depend on neighbours."""
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
    if dtype is torch.float32:
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False
