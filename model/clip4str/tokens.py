"""Text as tensors: the token ids of labels, and which classes a charset allows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from clip4str.charset import BOS, CLASSES, EOS, PAD, character_ids, resolve


def encode(labels: Sequence[str]) -> Tensor:
    """Labels -> int64 [N, longest + 2]: BOS, characters, EOS, then PAD. Raises CharsetError."""
    rows = [[BOS, *character_ids(label), EOS] for label in labels]
    width = max(len(row) for row in rows)
    return torch.tensor([row + [PAD] * (width - len(row)) for row in rows])


def allowed_classes(charset: str) -> Tensor:
    """Constraint mask of a charset: bool [95], true for EOS and its characters. Raises CharsetError."""
    mask = torch.zeros(CLASSES, dtype=torch.bool)
    mask[[EOS, *character_ids(resolve(charset))]] = True
    return mask
