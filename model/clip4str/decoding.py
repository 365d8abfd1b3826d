"""Dual predict-and-refine decoding (paper, section III-C) as pure functions over cached keys and values.

1. The visual branch reads character by character.
2. What it read becomes the caption; the text encoder turns it into text features.
3. The cross-modal branch reads again, from image and text features.
4. Both branches refine their reading once: every character is predicted again with all *other* characters as
   context (cloze mask). The cross-modal branch sees the refined visual reading as its caption.

Every row is decoded as the published code decodes it at batch size 1, whatever its neighbours: in the
published code the longest visual reading of a batch sets the number of cross-modal steps of all rows. Here a
row's own visual length bounds its cross-modal reading.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from clip4str.charset import BOS, EOS, adapt, decode_caption
from clip4str.model import CLIP4STR, Decoder, KeyValue
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
    """What the text encoder saw in one pass."""

    texts: list[str]
    tokens: Tensor  # int64 [N, L]
    features: Tensor  # [N, L, D]


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
) -> Decoded:
    """Read normalised pixels [N, 3, H, W] with both branches.

    `allowed`, bool [N, 95], constrains what either branch may emit in each row: the other classes' logits
    are -inf from the first step on.
    """
    config = model.config
    limit = config.steps if options.max_length is None else min(options.max_length, config.max_length) + 1
    stop_early = options.max_length is None

    image_features = model.encode_image(pixels)
    visual_memory = model.visual_decoder.project_memory(image_features)
    visual = autoregress(model.visual_decoder, visual_memory, limit, allowed, stop_at_eos=stop_early)
    if stop_early:
        steps = (_first_eos(visual.argmax(-1)) + 1).clamp(max=limit)
    else:
        steps = torch.full((len(pixels),), limit, device=visual.device)

    captions = caption(model, visual)
    cross_image_memory = model.cross_decoder.project_memory(image_features)
    cross_memory = cross_image_memory.append(model.cross_decoder.project_memory(captions.features))
    cross = autoregress(model.cross_decoder, cross_memory, visual.shape[1], allowed, stop_at_eos=False)

    seen = [captions]
    refined_visual, refined_cross, context = visual, cross, steps
    for _ in range(options.refine_iters):
        refined_visual = refine(model.visual_decoder, visual_memory, refined_visual, context, limit, allowed)
        captions = caption(model, refined_visual, reuse=captions)
        seen.append(captions)
        cross_memory = cross_image_memory.append(model.cross_decoder.project_memory(captions.features))
        refined_cross = refine(model.cross_decoder, cross_memory, refined_cross, context, limit, allowed)
        context = torch.full_like(steps, limit)

    return Decoded(
        image_features=image_features,
        steps=steps,
        captions=tuple(seen),
        visual=BranchLogits(visual, refined_visual),
        cross_modal=BranchLogits(cross, refined_cross),
    )


def autoregress(
    decoder: Decoder, memory: KeyValue, limit: int, allowed: Tensor | None, *, stop_at_eos: bool
) -> Tensor:
    """Greedy decoding, one character a step, each from those before it. Returns float32 logits [N, T, 95].

    T is `limit`, or with `stop_at_eos` the number of steps until every row has emitted EOS. A row that ended
    goes on decoding what no one reads.
    """
    batch, device = memory.key.shape[0], memory.key.device
    ids = torch.full((batch, 1), BOS, device=device)
    ended = torch.zeros(batch, dtype=torch.bool, device=device)
    content = decoder.project_content(ids)
    logits = []
    for step in range(limit):
        at_step = _constrain(decoder(content, memory, slice(step, step + 1)), allowed)  # [N, 1, 95]
        logits.append(at_step)
        ids = at_step.argmax(-1)  # [N, 1]
        ended |= ids[:, 0] == EOS
        if step + 1 == limit or (stop_at_eos and bool(ended.all())):
            break
        content = content.append(decoder.project_content(ids, start=step + 1))
    return torch.cat(logits, dim=1)


def refine(
    decoder: Decoder, memory: KeyValue, logits: Tensor, steps: Tensor, limit: int, allowed: Tensor | None
) -> Tensor:
    """Predict every position again from all other characters. Returns float32 logits [N, limit, 95].

    The context of row n is BOS and the characters that its `logits` [N, T, 95] say before EOS, steps[n] - 1 of
    them at most.
    """
    read = logits[:, :-1].argmax(-1)  # [N, T - 1]: the last position is no other position's context
    ids = torch.cat([read.new_full((len(read), 1), BOS), read], dim=1)  # [N, C], C = T
    visible = torch.minimum(_first_eos(read), steps - 1)  # [N]: characters of the context
    column = torch.arange(ids.shape[1], device=ids.device)
    position = torch.arange(limit, device=ids.device)
    not_itself = (
        column != position[:, None] + 1
    )  # [Q, C]: query i predicts the character at context column i + 1
    within = column <= visible[:, None]  # [N, C]
    mask = (within[:, None, :] & not_itself).unsqueeze(1)  # [N, 1, Q, C]
    content = decoder.project_content(ids)
    return _constrain(decoder(content, memory, slice(0, limit), mask), allowed)


def caption(model: CLIP4STR, logits: Tensor, reuse: Captions | None = None) -> Captions:
    """The caption each row's logits [N, T, 95] say, through the text encoder.

    Rows whose caption is the same as in `reuse` keep its features.
    """
    texts = [adapt(decode_caption(row), model.config.caption_charset) for row in logits.argmax(-1).tolist()]
    if reuse is not None:
        changed = [row for row, (new, old) in enumerate(zip(texts, reuse.texts, strict=True)) if new != old]
        if not changed:
            return reuse
        fresh = tokenize([texts[row] for row in changed], model.config).to(logits.device)
        rows = torch.tensor(changed, device=logits.device)
        tokens = reuse.tokens.index_copy(0, rows, fresh)
        return Captions(texts, tokens, reuse.features.index_copy(0, rows, model.encode_captions(fresh)))
    tokens = tokenize(texts, model.config).to(logits.device)
    return Captions(texts, tokens, model.encode_captions(tokens))


def _constrain(logits: Tensor, allowed: Tensor | None) -> Tensor:
    logits = logits.float()
    return logits if allowed is None else logits.masked_fill(~allowed[:, None, :], float("-inf"))


def _first_eos(ids: Tensor) -> Tensor:
    """Index of the first EOS of each row of ids [N, T], T where there is none. int64 [N]."""
    is_eos = ids == EOS
    index = is_eos.int().argmax(1) if ids.shape[1] else ids.new_zeros(len(ids))
    return torch.where(is_eos.any(1), index, ids.shape[1])
