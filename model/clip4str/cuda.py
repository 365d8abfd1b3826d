"""Running on a GPU: captured graphs for a few batch sizes, and lanes so that the GPU never waits for the host."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map

from clip4str.autoregression import Execution
from clip4str.charset import CLASSES, EOS
from clip4str.config import ModelConfig
from clip4str.decoding import Decoded, decode
from clip4str.image import Pixels
from clip4str.model import CLIP4STR
from clip4str.stages import Stage

CHECK_EVERY = 8
"""Decoding steps in one captured graph: after each, the host asks whether every word has ended."""

_TOKENS_AT_ONCE = 8192  # decoder tokens that take a GPU no longer than the launches of a few steps
_capturing = threading.Lock()  # a capture brings the whole device to rest
_WARM_UPS = 2  # runs before a capture, in which libraries choose their kernels and compilers compile


class _Captured(NamedTuple):
    graph: torch.cuda.CUDAGraph
    inputs: list[Tensor]  # what the graph reads, in place
    outputs: Any


class Graphs:
    """Calls functions of tensors by replaying CUDA graphs, captured at the first call of each shape.

    An output belongs to its graph: the next replay overwrites it. Given as an input to another function, it is read
    where it lies; any other tensor is copied to where the graph expects it. One thread, one stream at a time.
    """

    def __init__(self, stream: torch.cuda.Stream) -> None:
        self._stream = stream
        self._pool = torch.cuda.graph_pool_handle()
        self._captured: dict[Any, _Captured] = {}
        self._owned: set[int] = set()

    def __call__(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """function(*arguments), which may hold tensors in tuples beside hashable values."""
        leaves, structure = tree_flatten(arguments)
        key = (function, structure, tuple(self._identity(leaf) for leaf in leaves))
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        captured = self._captured.get(key)
        if captured is None:
            captured = self._captured[key] = self._capture(function, arguments)
        for static, given in zip(captured.inputs, tensors, strict=True):
            if static.data_ptr() != given.data_ptr():
                static.copy_(given)
        captured.graph.replay()
        return captured.outputs

    def _identity(self, leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        place = leaf.data_ptr() if leaf.data_ptr() in self._owned else None
        return leaf.shape, leaf.stride(), leaf.dtype, place

    def _capture(self, function: Callable[..., Any], arguments: Sequence[Any]) -> _Captured:
        def at_rest(leaf: Any) -> Any:
            moves = isinstance(leaf, Tensor) and leaf.data_ptr() not in self._owned
            return leaf.clone() if moves else leaf

        static = tree_map(at_rest, tuple(arguments))
        with _capturing:
            for _ in range(_WARM_UPS):
                function(*static)
            self._stream.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode="thread_local"):
                outputs = function(*static)
        self._owned.update(leaf.data_ptr() for leaf in tree_flatten(outputs)[0] if isinstance(leaf, Tensor))
        inputs = [leaf for leaf in tree_flatten(static)[0] if isinstance(leaf, Tensor)]
        return _Captured(graph, inputs, outputs)


class Lane:
    """One batch's way through the GPU: its own stream, graphs and pinned memory.

    With two lanes one batch uploads, waits for its captions or returns while the other computes.
    """

    def __init__(self, model: CLIP4STR, device: torch.device, max_batch: int) -> None:
        self._model = model
        self._device = device
        self.max_batch = max_batch
        with torch.cuda.device(device):
            self._stream = torch.cuda.Stream(device)
            self._execution = Execution(
                run=Graphs(self._stream),
                check_every=CHECK_EVERY,
                positions=lambda _, limit: limit,
                caption_rows=lambda different, rows: rows if different <= rows else 2 * rows,
                tokens_at_once=_TOKENS_AT_ONCE,
            )
            self._pixels, self._visual, self._cross_modal = _pinned(model.config, max_batch)

    def read(self, crops: Sequence[Pixels], allowed: Tensor | None, stage: Stage) -> tuple[Tensor, Tensor]:
        """As `Runtime.read`, for `max_batch` crops at most."""
        return self._read(crops, allowed, replace(self._execution, stage=stage))

    @torch.inference_mode()
    def _read(
        self, crops: Sequence[Pixels], allowed: Tensor | None, execution: Execution
    ) -> tuple[Tensor, Tensor]:
        count = len(crops)
        size = _size(count)
        np.stack(crops, out=self._pixels[:count].numpy())
        self._pixels[count:size] = 0
        everything = torch.ones(size, CLASSES, dtype=torch.bool)
        if allowed is not None:
            everything[:count] = allowed
        with torch.cuda.device(self._device), torch.cuda.stream(self._stream):
            pixels = self._pixels[:size].to(self._device, non_blocking=True)
            padding = torch.arange(size, device=self._device) >= count
            decoded = decode(
                self._model, pixels, everything.to(self._device), padding=padding, execution=execution
            )
            return self._download(decoded, count)

    def warm_up(self, batch: int) -> None:
        """Capture the graphs of every size up to that of `batch`, by reading words that never end."""
        endless = torch.ones(1, CLASSES, dtype=torch.bool)
        endless[:, EOS] = False
        size = 1
        while size <= _size(min(batch, self.max_batch)):
            crops = [np.zeros(self._pixels[0].shape, np.uint8)] * size
            for captions in (size, 2 * size):  # refinement changes few captions of a batch, or many
                execution = replace(self._execution, caption_rows=lambda *_, count=captions: count)
                self._read(crops, endless.expand(size, -1), execution)
            size *= 2

    def _download(self, decoded: Decoded, count: int) -> tuple[Tensor, Tensor]:
        visual, cross_modal = self._visual[:count], self._cross_modal[:count]
        visual.copy_(decoded.visual.refined[:count], non_blocking=True)
        cross_modal.copy_(decoded.cross_modal.refined[:count], non_blocking=True)
        self._stream.synchronize()
        return visual.clone(), cross_modal.clone()


def _size(count: int) -> int:
    """What `count` rows are padded to: a power of two."""
    return 1 << (count - 1).bit_length()


def _pinned(config: ModelConfig, max_batch: int) -> tuple[Tensor, Tensor, Tensor]:
    """Host memory that the GPU reads and writes by itself: a batch's pixels, and both branches' logits."""
    height, width = config.vision.image_size
    pixels = torch.zeros(max_batch, 3, height, width, dtype=torch.uint8, pin_memory=True)
    logits = torch.empty(2, max_batch, config.steps, CLASSES, pin_memory=True)
    return pixels, logits[0], logits[1]
