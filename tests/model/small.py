"""A CLIP4STR of few weights under the published names, for tests of model files."""

from __future__ import annotations

import torch

from clip4str.config import ModelConfig, TextConfig, VisionConfig
from clip4str.model import CLIP4STR

SMALL = ModelConfig(
    variant="custom",
    vision=VisionConfig((64, 64), (16, 16), 64, 2, 1),
    text=TextConfig("bpe", 49408, 77, 16, 64, 2, 1),
    embed_dim=64,
    freeze_text_layers=6,
)


def small_model(config: ModelConfig = SMALL) -> CLIP4STR:
    """With random weights, the same at each call."""
    torch.manual_seed(0)
    model = CLIP4STR(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    return model.eval()
