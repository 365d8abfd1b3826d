"""The library's front door: load a model, read word crops, get both branches' readings."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from clip4str import checkpoint
from clip4str.charset import CHARACTERS
from clip4str.checkpoint import Checkpoint
from clip4str.hardware import resolve_device, resolve_precision
from clip4str.image import Pixels, prepare
from clip4str.info import ModelInfo
from clip4str.reading import Reading, ReadOptions
from clip4str.readout import branch_readings
from clip4str.runtime import Runtime
from clip4str.stages import Stage, unobserved
from clip4str.tokens import allowed_classes


class Recognizer:
    """A loaded model that reads word crops. What it reads in a crop does not depend on the other crops."""

    def __init__(self, runtime: Runtime, info: ModelInfo) -> None:
        self._runtime = runtime
        self.info = info

    @classmethod
    def load(
        cls, model: str = "default", *, device: str | None = None, precision: str = "auto"
    ) -> Recognizer:
        """Load "default", a fetched model by its name, a checkpoint's path or a directory with one.

        `device`: "cpu", "cuda", "cuda:N" or None for the best there is; `precision`: auto, fp32, bf16, fp16, where
        auto is the fastest that the device has. Raises CheckpointError for a bad file, HardwareError, a
        ValueError, for a bad device or precision.
        """
        resolve_precision(precision, resolve_device(device))  # a slip in these should not cost a long read
        return cls.from_checkpoint(checkpoint.load(model), device=device, precision=precision)

    @classmethod
    def from_checkpoint(
        cls, loaded: Checkpoint, *, device: str | None = None, precision: str = "auto"
    ) -> Recognizer:
        """As `load`, from weights in memory."""
        target = resolve_device(device)
        dtype = resolve_precision(precision, target)
        network = checkpoint.build(loaded)
        config = loaded.config
        info = ModelInfo(
            name=loaded.name,
            revision=loaded.revision,
            variant=config.variant,
            dtype=str(dtype).removeprefix("torch."),
            device=str(target),
            charset=CHARACTERS,
            max_length=config.max_length,
            image_size=config.vision.image_size,
            parameters=sum(parameter.numel() for parameter in network.parameters()),
        )
        return cls(Runtime(network, target, dtype), info)

    @property
    def batches_in_flight(self) -> int:
        """Threads whose calls of `read_prepared` run side by side; those of more wait."""
        return self._runtime.batches_in_flight

    @property
    def processors(self) -> int:
        """How many of the batches in flight compute at the same time, each on hardware of its own.

        A scheduler divides what waits among so many. A CPU has as many as PyTorch uses threads, when the model is
        loaded; but a large model takes all of them for each batch, which makes 1. So has a GPU: of its two batches
        in flight, one computes while the other comes and goes.
        """
        return self._runtime.processors

    @property
    def max_batch(self) -> int:
        """Crops of the largest batch; more are read in several."""
        return self._runtime.max_batch

    def warm_up(self, batch: int) -> None:
        """Make ready to read batches of up to `batch` crops, before anyone waits for one. Not while others read."""
        self._runtime.warm_up(batch)

    def prepare(self, image: Image.Image) -> Pixels:
        """PIL image of any mode -> the model's pixels, uint8 [3, H, W]. Safe to call from several threads.

        As `clip4str.image.prepare` with `info.image_size`, which needs no model and no PyTorch.
        """
        return prepare(image, self.info.image_size)

    def read(
        self, images: Sequence[Image.Image], top_k: int = 0, charset: str | None = None
    ) -> list[Reading]:
        """Read word crops, in order, all with the same options. Raises ValueError for bad options."""
        options = ReadOptions(top_k, charset)
        return self.read_prepared([self.prepare(image) for image in images], [options] * len(images))

    def read_prepared(
        self,
        crops: Sequence[Pixels],
        options: Sequence[ReadOptions],
        stage: Stage = unobserved,
        *,
        spread: bool = True,
    ) -> list[Reading]:
        """Read prepared crops, uint8 [3, H, W] each, every one with its own options, in order.

        `spread` divides a batch among all processors that have nothing to do, for the soonest answer. Without it
        what fits into one batch is one: for callers who keep all processors busy by themselves. `stage` gives a
        context manager to enter for each part of the work, by its name in `clip4str.stages.STAGES`; of crops that
        are spread several enter at a time, each on the thread that does the part.

        Safe to call from several threads. Raises ValueError unless there are as many options as crops and each crop
        is as `prepare` returns it.
        """
        if len(crops) != len(options):
            raise ValueError(f"{len(crops)} crops, but {len(options)} options: each crop needs its own")
        if not crops:
            return []
        shape = (3, *self.info.image_size)
        for number, crop in enumerate(crops):
            if crop.dtype != np.uint8 or crop.shape != shape:
                raise ValueError(
                    f"crop {number} is {crop.dtype} {tuple(crop.shape)}, not uint8 {shape}: use what prepare returns"
                )
        logits = self._runtime.read(crops, _allowed(options), stage, spread=spread)
        with stage("postprocess"):
            top_k = [wanted.top_k for wanted in options]
            visual, cross_modal = (branch_readings(branch.numpy(), top_k) for branch in logits)
            return [
                Reading(visual_reading, cross_reading, truncated)
                for (visual_reading, _), (cross_reading, truncated) in zip(visual, cross_modal, strict=True)
            ]


def _allowed(options: Sequence[ReadOptions]) -> Tensor | None:
    """Constraint mask bool [N, 95], or None when no crop has one."""
    if all(wanted.charset is None for wanted in options):
        return None
    return torch.stack([allowed_classes(wanted.charset or "full") for wanted in options])
