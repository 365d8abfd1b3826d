"""A model on its device, in the form and on the paths that are fastest there."""

from __future__ import annotations

import queue
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from clip4str.autoregression import Execution, Stage, unobserved
from clip4str.cuda import Lane
from clip4str.decoding import decode
from clip4str.inference import compile_encoder, optimize
from clip4str.model import CLIP4STR

MAX_BATCH = {"cpu": 64, "cuda": 256}
"""Crops in one batch, at most; more are read in several. Larger batches gain nothing and take more memory."""

_LANES = 2  # batches in flight on a GPU
_TOKENS_AT_ONCE = 1024  # in a CPU's image encoder: their activations stay in its caches


class _Way(Protocol):
    def read(
        self, crops: Sequence[Tensor], allowed: Tensor | None, stage: Stage
    ) -> tuple[Tensor, Tensor]: ...


class Runtime:
    """Reads batches of any size with a model it takes over. Several threads may call it."""

    def __init__(self, model: CLIP4STR, device: torch.device, dtype: torch.dtype) -> None:
        self.device = device
        self.dtype = dtype
        self.max_batch = MAX_BATCH[device.type]
        self._model = optimize(model, device, dtype)
        ways: list[_Way]
        if device.type == "cuda":
            compile_encoder(self._model)
            ways = [Lane(self._model, device, self.max_batch) for _ in range(_LANES)]
        else:
            ways = [_Cpu(self._model)]
        self._ways: queue.SimpleQueue[_Way] = queue.SimpleQueue()
        for way in ways:
            self._ways.put(way)
        self.batches_in_flight = len(ways)
        self._threads = ThreadPoolExecutor(len(ways), thread_name_prefix="clip4str")

    def read(
        self, crops: Sequence[Tensor], allowed: Tensor | None = None, stage: Stage = unobserved
    ) -> tuple[Tensor, Tensor]:
        """Refined logits of the visual and of the cross-modal branch, float32 [N, 26, 95] on the CPU.

        `crops` uint8 [3, H, W] each, one or more; `allowed` bool [N, 95] as `decode` takes it; `stage` is entered
        with the name of each part of decoding, on a GPU as it is launched, not as it runs.
        """
        batches = [slice(start, start + self.max_batch) for start in range(0, len(crops), self.max_batch)]

        def read(batch: slice) -> tuple[Tensor, Tensor]:
            way = self._ways.get()
            try:
                return way.read(crops[batch], None if allowed is None else allowed[batch], stage)
            finally:
                self._ways.put(way)

        if len(batches) == 1:
            return read(batches[0])
        visual, cross_modal = zip(*self._threads.map(read, batches), strict=True)
        return torch.cat(visual), torch.cat(cross_modal)


class _Cpu:
    """One batch at a time, with all the threads PyTorch has."""

    def __init__(self, model: CLIP4STR) -> None:
        self._model = model
        rows, columns = model.config.vision.grid
        self._execution = Execution(encoded_at_once=max(1, _TOKENS_AT_ONCE // (rows * columns)))

    def read(self, crops: Sequence[Tensor], allowed: Tensor | None, stage: Stage) -> tuple[Tensor, Tensor]:
        execution = replace(self._execution, stage=stage)
        decoded = decode(self._model, torch.stack(list(crops)), allowed, execution=execution)
        return decoded.visual.refined, decoded.cross_modal.refined
