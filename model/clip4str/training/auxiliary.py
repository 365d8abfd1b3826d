"""Dense supervision that shortens the take-off of training from scratch; never part of a shipped model.

Connectionist temporal classification (Graves et al., ICML 2006) over the columns of image features: each of
the token columns predicts a character or blank. It teaches the image encoder to see characters long before
the decoders have learnt where to look.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clip4str.charset import CLASSES, EOS, PAD
from clip4str.config import ModelConfig


class ColumnClassifier(nn.Module):
    """Image features [N, 1 + rows * columns, D] -> log-probabilities [columns, N, 95]; class 0 is the blank."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.grid = config.vision.grid
        self.head = nn.Linear(config.embed_dim, CLASSES)

    def forward(self, image_features: Tensor) -> Tensor:
        columns = (
            image_features[:, 1:].unflatten(1, self.grid).mean(1)
        )  # [N, rows, columns, D] -> [N, columns, D]
        logits: Tensor = self.head(columns)
        return logits.float().log_softmax(-1).transpose(0, 1)

    def loss(self, image_features: Tensor, targets: Tensor) -> Tensor:
        """Mean CTC loss; `targets` int64 [N, n + 2] as of `charset.encode`. Labels too long for it count 0."""
        log_probabilities = self(image_features)
        labels = targets[:, 1:]
        lengths = ((labels != PAD) & (labels != EOS)).sum(1)
        columns = torch.full_like(lengths, len(log_probabilities))
        return F.ctc_loss(log_probabilities, labels, columns, lengths, blank=EOS, zero_infinity=True)
