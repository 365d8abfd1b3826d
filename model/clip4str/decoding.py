"""Dual predict-and-refine decoding (paper, section III-C) as pure functions over cached keys and values.

1. The visual branch reads character by character, then refines: it predicts every character again with all
   *other* characters as context (cloze mask).
2. What it read, before and after refinement, is two captions; the text encoder turns them into text features.
3. The cross-modal branch reads again, from image and text features, then refines with the refined caption's.

Visual refinement needs no caption. So all of 1 comes before the one moment at which the host must know what was
read, in 2. Every row is decoded as the published code decodes it at batch size 1, whatever its neighbours: in
the published code the longest visual reading of a batch sets the number of cross-modal steps of all rows. Here
a row's own visual length bounds its cross-modal reading.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from clip4str.attention import KeyValue
from clip4str.autoregression import EAGER, Execution, autoregress, constrain, first_eos, speculate
from clip4str.charset import BOS, adapt, decode_caption
from clip4str.model import CLIP4STR, Decoder
from clip4str.towers import tokenize


@dataclass(frozen=True, slots=True)
class DecodingOptions:
    """How to decode.

    `refine_iters`: refinement passes, 0 or more (the paper uses 1). `max_length`: None decodes until each row
    ends, 25 characters at most; a number decodes exactly that many positions and one for EOS (validation).
    """

    refine_iters: int = 1
    max_length: int | None = None


@dataclass(frozen=True, slots=True)
class BranchLogits:
    """One branch's logits, float32. Position i of row n of `autoregressive` is meaningful for i < steps[n] only."""

    autoregressive: Tensor  # [N, T, 95]
    refined: Tensor  # [N, 26, 95]; the autoregressive logits when nothing is refined


@dataclass(frozen=True, slots=True)
class Captions:
    """What the text encoder saw in one pass. Rows with the same caption share its features."""

    texts: list[str]  # of each row
    rows: Tensor  # int64 [N]: each row's index in the following
    tokens: Tensor  # int64 [U, L]
    features: Tensor  # [U, L, D]


@dataclass(frozen=True, slots=True)
class Decoded:
    """Everything one decoding run computed, in its order."""

    image_features: Tensor  # [N, S, D]
    steps: Tensor  # int64 [N]: autoregressive steps of each row, EOS included
    captions: tuple[Captions, ...]  # of the autoregressive reading, then of each refined one
    visual: BranchLogits
    cross_modal: BranchLogits


@torch.inference_mode()
def decode(
    model: CLIP4STR,
    pixels: Tensor,
    allowed: Tensor | None = None,
    options: DecodingOptions = DecodingOptions(),
    *,
    padding: Tensor | None = None,
    execution: Execution = EAGER,
) -> Decoded:
    """Read pixels [N, 3, H, W], uint8 or normalised already, with both branches.

    `allowed`, bool [N, 95], constrains what either branch may emit in each row: the other classes' logits
    are -inf from the first step on. Rows of which `padding`, bool [N], is true are never waited for.
    """
    config, run = model.config, execution.run
    limit = config.steps if options.max_length is None else min(options.max_length, config.max_length) + 1
    stop_early = options.max_length is None

    # 1. The visual branch reads and refines.
    with execution.stage("encode"):
        image_features, visual_memory, cross_image_memory = run(
            _encode, model, pixels, execution.encoded_at_once
        )
    with execution.stage("visual"):
        visual = autoregress(
            model.visual_decoder,
            visual_memory,
            limit,
            allowed,
            stop_at_eos=stop_early,
            padding=padding,
            execution=execution,
        )
        steps = (first_eos(visual.argmax(-1)) + 1).clamp(max=limit)
        if not stop_early:
            steps = torch.full_like(steps, limit)
        if padding is not None:
            steps = steps.masked_fill(padding, 1)
        length = visual.shape[1]
        visual = F.pad(visual, (0, 0, 0, execution.positions(length, limit) - length))
    readings, context = [visual], steps
    with execution.stage("refine"):
        for _ in range(options.refine_iters):
            refined = run(refine, model.visual_decoder, visual_memory, readings[-1], context, limit, allowed)
            readings.append(refined)
            context = torch.full_like(steps, limit)

    # 2. What it read becomes captions.
    with execution.stage("caption"):
        captions = encode_captions(model, readings, execution)

    # 3. The cross-modal branch reads, what the visual branch made of it in the end being its draft, and refines.
    with execution.stage("cross_modal"):
        text_memory = run(model.cross_decoder.project_memory, captions[0].features)
        cross_memory = run(_join, cross_image_memory, text_memory, captions[0].rows)
        draft = readings[-1].argmax(-1)[:, : visual.shape[1]]
        cross = speculate(model.cross_decoder, cross_memory, draft, steps, allowed, execution)
    refined_cross, context = cross, steps
    with execution.stage("refine"):
        for seen in captions[1:]:
            memory = run(_join, cross_image_memory, text_memory, seen.rows)
            refined_cross = run(refine, model.cross_decoder, memory, refined_cross, context, limit, allowed)
            context = torch.full_like(steps, limit)

    return Decoded(
        image_features=image_features,
        steps=steps,
        captions=captions,
        visual=BranchLogits(visual, readings[-1]),
        cross_modal=BranchLogits(cross, refined_cross),
    )


def _encode(model: CLIP4STR, pixels: Tensor, at_once: int | None) -> tuple[Tensor, KeyValue, KeyValue]:
    """Image features [N, S, D], and the memory that either decoder makes of them."""
    images = pixels.split(at_once or len(pixels))
    encoded = [
        model.encode_image(model.normalize(some) if some.dtype == torch.uint8 else some) for some in images
    ]
    features = torch.cat(encoded) if len(encoded) > 1 else encoded[0]
    visual = model.visual_decoder.project_memory(features)
    return features, visual, model.cross_decoder.project_memory(features)


def _join(image: KeyValue, text: KeyValue, rows: Tensor) -> KeyValue:
    """The cross-modal decoder's memory of each row: its image, then the caption of index `rows`, int64 [N]."""
    return image.append(text.select(rows))


def refine(
    decoder: Decoder, memory: KeyValue, logits: Tensor, steps: Tensor, limit: int, allowed: Tensor | None
) -> Tensor:
    """Predict every position again from all other characters. Returns float32 logits [N, limit, 95].

    The context of row n is BOS and the characters that its `logits` [N, T, 95] say before EOS, steps[n] - 1 of
    them at most.
    """
    read = logits[:, :-1].argmax(-1)  # [N, T - 1]: the last position is no other position's context
    ids = torch.cat([read.new_full((len(read), 1), BOS), read], dim=1)  # [N, C], C = T
    visible = torch.minimum(first_eos(read), steps - 1)  # [N]: characters of the context
    column = torch.arange(ids.shape[1], device=ids.device)
    return constrain(predict_again(decoder, memory, ids, column <= visible[:, None], limit), allowed)


def predict_again(decoder: Decoder, memory: KeyValue, ids: Tensor, visible: Tensor, limit: int) -> Tensor:
    """Logits [N, limit, 95] of every position, each from all context ids [N, C] that are visible but its own.

    Context column k + 1 holds the character of position k; `visible`, bool [N, C], is true of BOS and what was read.
    """
    column = torch.arange(ids.shape[1], device=ids.device)
    position = torch.arange(limit, device=ids.device)
    others = column != position[:, None] + 1  # [Q, C]
    mask = (visible[:, None, :] & others).unsqueeze(1)  # [N, 1, Q, C]
    logits: Tensor = decoder(decoder.project_content(ids), memory, slice(0, limit), mask)
    return logits


def encode_captions(
    model: CLIP4STR, readings: Sequence[Tensor], execution: Execution = EAGER
) -> tuple[Captions, ...]:
    """What each of the readings, logits [N, T, 95], says, through the text encoder; equal captions once."""
    lengths = [reading.shape[1] for reading in readings]
    ids = torch.cat([reading.argmax(-1) for reading in readings], dim=1).cpu()  # here the host waits
    texts = [
        [adapt(decode_caption(row), model.config.caption_charset) for row in part.tolist()]
        for part in ids.split(lengths, dim=1)
    ]
    index = {text: row for row, text in enumerate(dict.fromkeys(text for part in texts for text in part))}
    count = execution.caption_rows(len(index), len(readings[0]))
    padded = [*index, *[""] * (count - len(index))]
    device = readings[0].device
    rows = torch.tensor([[index[text] for text in part] for part in texts], device=device)
    tokens = tokenize(padded, model.config).to(device)  # copies before launches: a copy waits for what runs
    features = execution.run(model.encode_captions, tokens)
    return tuple(Captions(part, row, tokens, features) for part, row in zip(texts, rows, strict=True))
