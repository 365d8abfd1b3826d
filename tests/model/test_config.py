"""The variants have the published sizes, and a configuration survives its way through JSON."""

import json

import pytest
import torch

from clip4str.config import VARIANTS, ModelConfig
from clip4str.model import CLIP4STR

PUBLISHED = {  # parameters, state entries, image tokens
    "base32": (159_912_895, 354, 50),
    "base16": (158_256_319, 354, 197),
    "large14": (446_861_247, 498, 257),
    "huge14": (1_020_157_631, 738, 257),
}


@pytest.mark.parametrize("variant", PUBLISHED)
def test_published_sizes(variant: str) -> None:
    config = VARIANTS[variant]
    with torch.device("meta"):
        model = CLIP4STR(config)
    parameters, entries, tokens = PUBLISHED[variant]
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    assert len(model.state_dict()) == entries
    assert config.vision.grid[0] * config.vision.grid[1] + 1 == tokens


def test_tiny_is_tiny() -> None:
    with torch.device("meta"):
        model = CLIP4STR(VARIANTS["tiny"])
    assert 5_000_000 < sum(parameter.numel() for parameter in model.parameters()) < 10_000_000


@pytest.mark.parametrize("variant", VARIANTS)
def test_json_round_trip(variant: str) -> None:
    config = VARIANTS[variant]
    assert config.variant == variant
    assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
