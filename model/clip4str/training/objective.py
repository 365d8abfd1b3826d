"""Permuted sequence modelling through both branches (paper, section III-D; after PARSeq).

The decoders learn to predict every character from any subset of the others, by factorising each label along
several permutations of its positions. Queries never see each other, so all K permutations of a batch run as
one sequence of K * (n + 1) queries, each masked by its permutation; n is the longest label of the batch.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from clip4str.charset import BOS, EOS, PAD, adapt, decode_caption
from clip4str.model import CLIP4STR, KeyValue
from clip4str.towers import tokenize

# Half of all permutations of 3 and of 4 characters, chosen so that none is another's reversal.
_POOL_INDICES = {2: [0], 3: [0, 1, 2], 4: [0, 3, 4, 6, 9, 10, 12, 16, 17, 18, 19, 21]}


@dataclass(frozen=True, slots=True)
class ObjectiveOptions:
    """The published defaults. `permutations`: of each batch, mirrored ones included."""

    permutations: int = 6
    cross_loss_weight: float = 1.0
    detach_image: bool = True  # keep the cross-modal branch's loss from training the image encoder
    cross_context_is_truth: bool = True  # else: the visual branch's own characters
    cross_cloze: bool = False  # else: the cross-modal branch uses the permutations' masks


@dataclass(frozen=True, slots=True)
class Losses:
    """Scalars, and the logits [N, K, n + 1, 95] they come from."""

    total: Tensor
    visual: Tensor
    cross_modal: Tensor
    visual_logits: Tensor
    cross_modal_logits: Tensor


def permutations(length: int, count: int, rng: np.random.Generator) -> Tensor:
    """Orders in which to read `length` characters: int64 [K, length + 2], index 0 BOS, length + 1 EOS.

    Always left to right first, then EOS-first right to left, then random ones each followed by its reversal.
    K is `count`, or fewer where a short label has fewer orders.
    """
    if length == 1:
        return torch.tensor([[0, 1, 2]])
    wanted = min(count // 2, math.factorial(length) // 2)
    orders = [list(range(length))]
    if length <= 4:
        everything = list(itertools.permutations(range(length)))
        others = [list(everything[index]) for index in _POOL_INDICES[length][1:]]
        orders += [others[index] for index in rng.choice(len(others), wanted - 1, replace=False)] if wanted > 1 else []
    else:
        orders += [rng.permutation(length).tolist() for _ in range(wanted - 1)]
    rows = []
    for order in orders:
        forward = [position + 1 for position in order]
        rows += [[0, *forward, length + 1], [0, *forward[::-1], length + 1]]
    rows[1] = [0, length + 1, *range(length, 0, -1)]
    return torch.tensor(rows)


def query_mask(orders: Tensor) -> Tensor:
    """Orders [K, n + 2] -> bool [K, n + 1, n + 1]: may the query of position q see context position k?

    Context positions are BOS and the n characters; a query sees those that its order reads earlier.
    """
    rank = orders.argsort(dim=1)  # [K, n + 2]
    return rank[:, 1:, None] > rank[:, None, :-1]


def permuted_losses(
    model: CLIP4STR, image_features: Tensor, targets: Tensor, orders: Tensor, options: ObjectiveOptions
) -> Losses:
    """Both branches' cross-entropy over all permutations.

    `image_features` [N, S, D]; `targets` int64 [N, n + 2] as of `charset.encode`; `orders` [K, n + 2].
    """
    batch, count = len(targets), len(orders)
    context, wanted = targets[:, :-1], targets[:, 1:]  # [N, n + 1] both
    length = context.shape[1]
    positions = torch.arange(length, device=targets.device).repeat(count)  # [K * (n + 1)]
    real = (context != PAD) & (context != EOS)  # [N, C]
    sees = query_mask(orders.to(targets.device)).flatten(0, 1)  # [K * (n + 1), C]
    mask = (real[:, None, :] & sees).unsqueeze(1)  # [N, 1, K * (n + 1), C]

    visual_memory = model.visual_decoder.project_memory(image_features)
    visual = model.visual_decoder(model.visual_decoder.project_content(context), visual_memory, positions, mask)
    visual = visual.float().unflatten(1, (count, length))  # [N, K, n + 1, 95]

    read = visual.detach().argmax(-1)  # [N, K, n + 1]
    memory, memory_mask = _cross_memory(model, image_features, read, options)
    if options.cross_cloze:
        itself = torch.eye(length, dtype=torch.bool, device=targets.device).roll(1, 1)
        itself[-1] = False
        mask = (real[:, None, :] & ~itself.repeat(count, 1)).unsqueeze(1)
    if options.cross_context_is_truth:
        content = model.cross_decoder.project_content(context)
        cross = model.cross_decoder(content, memory, positions, mask, memory_mask)
        cross = cross.float().unflatten(1, (count, length))
    else:
        cross = _own_context(model, read, memory, mask, memory_mask)

    labels = wanted.unsqueeze(1).repeat(1, count, 1)  # [N, K, n + 1]
    labels[:, 2:] = labels[:, 2:].masked_fill(labels[:, 2:] == EOS, PAD)  # EOS is learnt in the first two orders
    visual_loss = F.cross_entropy(visual.flatten(0, 2), labels.flatten(), ignore_index=PAD)
    cross_loss = F.cross_entropy(cross.flatten(0, 2), labels.flatten(), ignore_index=PAD)
    total = visual_loss + options.cross_loss_weight * cross_loss
    assert visual.shape[:2] == (batch, count)
    return Losses(total, visual_loss, cross_loss, visual, cross)


def _cross_memory(
    model: CLIP4STR, image_features: Tensor, read: Tensor, options: ObjectiveOptions
) -> tuple[KeyValue, Tensor]:
    """Image and caption features as one memory; `read` is int64 [N, K, n + 1].

    Each permutation has its own caption. All K captions of a row stand in its memory, and the mask
    bool [N, 1, K * (n + 1), S + K * L] lets a query see the image and its own permutation's caption only.
    Equal captions are encoded once.
    """
    batch, count, length = read.shape
    charset = model.config.caption_charset
    texts = [adapt(decode_caption(row), charset) for row in read.flatten(0, 1).tolist()]
    unique = {text: index for index, text in enumerate(dict.fromkeys(texts))}
    features = model.encode_captions(tokenize(list(unique), model.config).to(read.device))  # [U, L, D]
    rows = torch.tensor([unique[text] for text in texts], device=read.device)
    captions = model.cross_decoder.project_memory(features)
    text_memory = KeyValue(*(_side_by_side(part[rows], batch, count) for part in captions))
    image = image_features.detach() if options.detach_image else image_features
    memory = model.cross_decoder.project_memory(image).append(text_memory)
    own = torch.eye(count, dtype=torch.bool, device=read.device)
    own = own.repeat_interleave(length, 0).repeat_interleave(features.shape[1], 1)  # [K * (n + 1), K * L]
    everywhere = own.new_ones(len(own), image.shape[1])
    return memory, torch.cat([everywhere, own], dim=1)


def _side_by_side(part: Tensor, batch: int, count: int) -> Tensor:
    """[N * K, heads, L, d] -> [N, heads, K * L, d]"""
    return part.unflatten(0, (batch, count)).transpose(1, 2).flatten(2, 3)


def _own_context(model: CLIP4STR, read: Tensor, memory: KeyValue, mask: Tensor, memory_mask: Tensor) -> Tensor:
    """Cross-modal logits [N, K, n + 1, 95] where each permutation's context is what its visual branch read."""
    _, count, length = read.shape
    logits = []
    for k in range(count):
        context = torch.cat([read.new_full((len(read), 1), BOS), read[:, k, :-1]], dim=1)
        queries = slice(k * length, (k + 1) * length)
        content = model.cross_decoder.project_content(context)
        rows = (mask[:, :, queries], memory_mask[queries])
        logits.append(model.cross_decoder(content, memory, slice(0, length), *rows))
    return torch.stack(logits, dim=1).float()
