"""Floating-point operations that reading takes: those of its matrix products, counted on tensors without data."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode

from clip4str.config import ModelConfig
from clip4str.inference import optimize
from clip4str.model import CLIP4STR, Decoder


@torch.no_grad()
def flops_per_crop(config: ModelConfig, steps: float, captions: float) -> float:
    """Of a crop read in `steps` steps a branch and with `captions` captions encoded, both means over a batch.

    The least that the algorithm needs: each branch takes each step once and refines once; work on padding, on rows
    that have ended and on drafts that were wrong is not counted.
    """
    nowhere = torch.device("meta")
    with nowhere:
        model = optimize(CLIP4STR(config), nowhere, torch.float32)
        pixels = torch.empty(1, 3, *config.vision.image_size)
        tokens = torch.empty(1, config.text.context_length, dtype=torch.int64)
    visual, cross = model.visual_decoder, model.cross_decoder
    image = model.encode_image(pixels)
    text = model.encode_captions(tokens)
    image_memory, text_memory = visual.project_memory(image), cross.project_memory(text)

    def read(decoder: Decoder, queries: int) -> None:
        content = decoder.project_content(torch.zeros(1, queries, dtype=torch.int64, device=nowhere))
        memory = image_memory if decoder is visual else image_memory.append(text_memory)
        decoder(content, memory, slice(0, queries))

    once = _flops(lambda: model.encode_image(pixels)) + 2 * _flops(lambda: visual.project_memory(image))
    caption = _flops(lambda: model.encode_captions(tokens)) + _flops(lambda: cross.project_memory(text))
    refined = sum(_flops(lambda d=decoder: read(d, config.steps)) for decoder in (visual, cross))  # type: ignore[misc]
    stepped = sum(_flops(lambda d=decoder: read(d, 1)) for decoder in (visual, cross))  # type: ignore[misc]
    return once + captions * caption + refined + steps * stepped


def _flops(function: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        function()
    total: int = counter.get_total_flops()
    return total
