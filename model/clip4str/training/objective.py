"""Permuted sequence modelling through both branches (paper, section III-D; after PARSeq).

The decoders learn to predict every character from any subset of the others, by factorising each label along
several permutations of its positions. Queries never see each other, so the visual branch runs all K
permutations of a batch as one sequence of K * (n + 1) queries, each masked by its permutation. In the
cross-modal branch each permutation has its own caption, so there they run as K rows. n is the longest label
of the batch.
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
from clip4str.model import CLIP4STR
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
        orders += (
            [others[index] for index in rng.choice(len(others), wanted - 1, replace=False)]
            if wanted > 1
            else []
        )
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
    count = len(orders)
    context, wanted = targets[:, :-1], targets[:, 1:]  # [N, n + 1] both
    length = context.shape[1]
    positions = torch.arange(length, device=targets.device)
    real = ((context != PAD) & (context != EOS))[:, None, None, :]  # [N, 1, 1, C]
    sees = query_mask(orders.to(targets.device))  # [K, n + 1, C]

    visual_content = model.visual_decoder.project_content(context)
    visual_memory = model.visual_decoder.project_memory(image_features)
    mask = (real & sees).flatten(1, 2).unsqueeze(1)  # [N, 1, K * (n + 1), C]
    visual = model.visual_decoder(visual_content, visual_memory, positions.repeat(count), mask)
    visual = visual.float().unflatten(1, (count, length))  # [N, K, n + 1, 95]

    read = visual.detach().argmax(-1).flatten(0, 1)  # [N * K, n + 1]: each permutation has its own caption
    text_memory = model.cross_decoder.project_memory(_caption_features(model, read))
    image = image_features.detach() if options.detach_image else image_features
    cross_memory = model.cross_decoder.project_memory(image).repeat(count).append(text_memory)
    if options.cross_context_is_truth:
        cross_content = model.cross_decoder.project_content(context).repeat(count)
    else:
        own = torch.cat([read.new_full((len(read), 1), BOS), read[:, :-1]], dim=1)
        cross_content = model.cross_decoder.project_content(own)
    if options.cross_cloze:
        sees = (positions != positions[:, None] + 1).expand_as(sees)
    mask = (real & sees).flatten(0, 1).unsqueeze(1)  # [N * K, 1, n + 1, C]
    cross = model.cross_decoder(cross_content, cross_memory, slice(0, length), mask)
    cross = cross.float().unflatten(0, (-1, count))  # [N, K, n + 1, 95]

    labels = wanted.unsqueeze(1).repeat(1, count, 1)  # [N, K, n + 1]
    labels[:, 2:] = labels[:, 2:].masked_fill(
        labels[:, 2:] == EOS, PAD
    )  # EOS is learnt in the first two orders
    visual_loss = F.cross_entropy(visual.flatten(0, 2), labels.flatten(), ignore_index=PAD)
    cross_loss = F.cross_entropy(cross.flatten(0, 2), labels.flatten(), ignore_index=PAD)
    total = visual_loss + options.cross_loss_weight * cross_loss
    return Losses(total, visual_loss, cross_loss, visual, cross)


def _caption_features(model: CLIP4STR, read: Tensor) -> Tensor:
    """Text features [M, L, D] of what class ids int64 [M, n + 1] say. Equal captions are encoded once."""
    texts = [adapt(decode_caption(row), model.config.caption_charset) for row in read.tolist()]
    unique = {text: index for index, text in enumerate(dict.fromkeys(texts))}
    features = model.encode_captions(tokenize(list(unique), model.config).to(read.device))
    return features[torch.tensor([unique[text] for text in texts], device=read.device)]
