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
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from clip4str.charset import BOS, EOS, PAD, adapt, decode_caption
from clip4str.model import CLIP4STR, Decoder
from clip4str.towers import tokenize

# Half of all permutations of 3 and of 4 characters, chosen so that none is another's reversal.
_POOL_INDICES = {2: [0], 3: [0, 1, 2], 4: [0, 3, 4, 6, 9, 10, 12, 16, 17, 18, 19, 21]}
_WITH_END = 2  # the end token is learnt in the first two orders alone


class ObjectiveOptions(BaseModel):
    """What is learnt; the defaults are the published ones."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    permutations: Annotated[int, Field(ge=2, multiple_of=2)] = 6  # of each batch, mirrored ones included
    cross_modal: bool = True  # else: the visual branch alone, and the model's final answer is of no use
    cross_loss_weight: Annotated[float, Field(ge=0)] = 1.0
    detach_image: bool = True  # keep the cross-modal branch's loss from training the image encoder
    cross_context_is_truth: bool = True  # else: the visual branch's own characters
    cross_cloze: bool = False  # else: the cross-modal branch uses the permutations' masks
    cross_image_dropout: Annotated[float, Field(ge=0, lt=1)] = (
        0.0  # share of words it must read by caption alone
    )


@dataclass(frozen=True, slots=True)
class Losses:
    """Mean cross-entropies over all targets, scalars, and the logits [N, K, n + 1, 95] they come from."""

    total: Tensor
    visual: Tensor
    cross_modal: Tensor | None  # None: not trained
    visual_logits: Tensor
    cross_modal_logits: Tensor | None


@dataclass(frozen=True, slots=True)
class PermutedBatch:
    """A batch of labels factorised along K orders; n + 1 positions, the last for the end token.

    Build it with `permute`.
    """

    context: Tensor  # int64 [N, n + 1]: BOS and the characters
    labels: Tensor  # int64 [N, K, n + 1]: what to predict; PAD counts nothing
    real: Tensor  # bool [N, 1, 1, n + 1]: context that is BOS or a character
    sees: Tensor  # bool [K, n + 1, n + 1]: may this query see that context, by its order?

    @property
    def count(self) -> int:
        """K."""
        return len(self.sees)

    @property
    def positions(self) -> Tensor:
        """int64 [n + 1]."""
        return torch.arange(self.context.shape[1], device=self.context.device)

    def cross_entropy(self, logits: Tensor) -> Tensor:
        """Mean over all targets of logits [N, K, n + 1, 95]."""
        return F.cross_entropy(logits.flatten(0, 2), self.labels.flatten(), ignore_index=PAD)


def permute(targets: Tensor, orders: Tensor) -> PermutedBatch:
    """`targets` int64 [N, n + 2] as of `charset.encode`; `orders` int64 [K, n + 2] as of `permutations`."""
    context, wanted = targets[:, :-1], targets[:, 1:]  # [N, n + 1] both
    labels = wanted.unsqueeze(1).repeat(1, len(orders), 1)  # [N, K, n + 1]
    labels[:, _WITH_END:] = labels[:, _WITH_END:].masked_fill(labels[:, _WITH_END:] == EOS, PAD)
    real = ((context != PAD) & (context != EOS))[:, None, None, :]
    return PermutedBatch(context, labels, real, query_mask(orders.to(targets.device)))


def target_count(targets: Tensor, orders: int) -> int:
    """How many targets the losses of `targets` int64 [N, n + 2] are means over, with so many orders."""
    characters = int(((targets > EOS) & (targets < BOS)).sum())
    return orders * characters + min(orders, _WITH_END) * len(targets)


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


def visual_logits(decoder: Decoder, image_features: Tensor, batch: PermutedBatch) -> Tensor:
    """Logits, float32 [N, K, n + 1, 95], of a decoder that sees the image alone: features [N, S, D]."""
    content = decoder.project_content(batch.context)
    memory = decoder.project_memory(image_features)
    mask = (batch.real & batch.sees).flatten(1, 2).unsqueeze(1)  # [N, 1, K * (n + 1), C]
    logits: Tensor = decoder(content, memory, batch.positions.repeat(batch.count), mask)
    permuted: Tensor = logits.float().unflatten(1, (batch.count, -1))
    return permuted


def cross_modal_logits(
    model: CLIP4STR, image_features: Tensor, batch: PermutedBatch, read: Tensor, options: ObjectiveOptions
) -> Tensor:
    """Logits, float32 [N, K, n + 1, 95], given what the visual branch read: class ids int64 [N, K, n + 1]."""
    decoder, count = model.cross_decoder, batch.count
    read = read.flatten(0, 1)  # [N * K, n + 1]: each order has its own caption
    text_memory = decoder.project_memory(_caption_features(model, read))
    image = image_features.detach() if options.detach_image else image_features
    if options.cross_image_dropout and model.training:
        image = image * (torch.rand(len(image), 1, 1, device=image.device) >= options.cross_image_dropout)
    memory = decoder.project_memory(image).repeat(count).append(text_memory)
    if options.cross_context_is_truth:
        content = decoder.project_content(batch.context).repeat(count)
    else:
        own = torch.cat([read.new_full((len(read), 1), BOS), read[:, :-1]], dim=1)
        content = decoder.project_content(own)
    sees, positions = batch.sees, batch.positions
    if options.cross_cloze:
        sees = (positions != positions[:, None] + 1).expand_as(sees)
    mask = (batch.real & sees).flatten(0, 1).unsqueeze(1)  # [N * K, 1, n + 1, C]
    logits: Tensor = decoder(content, memory, slice(0, len(positions)), mask)
    permuted: Tensor = logits.float().unflatten(0, (-1, count))
    return permuted


def permuted_losses(
    model: CLIP4STR, image_features: Tensor, targets: Tensor, orders: Tensor, options: ObjectiveOptions
) -> Losses:
    """The branches' cross-entropy over all permutations.

    `image_features` [N, S, D]; `targets` int64 [N, n + 2] as of `charset.encode`; `orders` [K, n + 2].
    """
    batch = permute(targets, orders)
    visual = visual_logits(model.visual_decoder, image_features, batch)
    visual_loss = batch.cross_entropy(visual)
    if not options.cross_modal:
        return Losses(visual_loss, visual_loss, None, visual, None)
    cross = cross_modal_logits(model, image_features, batch, visual.detach().argmax(-1), options)
    cross_loss = batch.cross_entropy(cross)
    total = visual_loss + options.cross_loss_weight * cross_loss
    return Losses(total, visual_loss, cross_loss, visual, cross)


def _caption_features(model: CLIP4STR, read: Tensor) -> Tensor:
    """Text features [M, L, D] of what class ids int64 [M, n + 1] say. Equal captions are encoded once."""
    texts = [adapt(decode_caption(row), model.config.caption_charset) for row in read.tolist()]
    unique = {text: index for index, text in enumerate(dict.fromkeys(texts))}
    features = model.encode_captions(tokenize(list(unique), model.config).to(read.device))
    return features[torch.tensor([unique[text] for text in texts], device=read.device)]
