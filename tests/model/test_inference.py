"""The form for inference computes what the trained form computes, in fp32 exactly and in bf16 nearly."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from clip4str.charset import BOS, CLASSES
from clip4str.config import VARIANTS
from clip4str.inference import PackedLinear, optimize
from clip4str.model import CLIP4STR, init_decoder
from clip4str.towers import tokenize

CPU = torch.device("cpu")


@pytest.fixture(scope="module", params=["tiny", "base32"])
def model(request: pytest.FixtureRequest) -> CLIP4STR:
    torch.manual_seed(3)
    model = CLIP4STR(VARIANTS[request.param])
    for decoder in (model.visual_decoder, model.cross_decoder):
        init_decoder(decoder)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):  # as training leaves them
            module.running_mean.uniform_(-0.3, 0.3)  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
    return model.eval()


@pytest.fixture(scope="module")
def crops(model: CLIP4STR) -> torch.Tensor:
    size = (3, 3, *model.config.vision.image_size)
    return torch.randint(256, size, dtype=torch.uint8, generator=torch.Generator().manual_seed(4))


@pytest.mark.parametrize(
    ("dtype", "bound"), [(torch.float32, 1e-5), (torch.bfloat16, 0.02), (torch.float16, 0.003)], ids=str
)
@torch.inference_mode()
def test_features(model: CLIP4STR, crops: torch.Tensor, dtype: torch.dtype, bound: float) -> None:
    """`bound` on the error of either encoder, relative to its features."""
    fast = optimize(copy.deepcopy(model), CPU, dtype)
    tokens = tokenize(["coffee", "", "a"], model.config)
    for actual, expected in (
        (fast.encode_image(fast.normalize(crops)), model.encode_image(model.normalize(crops))),
        (fast.encode_captions(tokens), model.encode_captions(tokens)),
    ):
        assert actual.dtype is dtype
        assert float((actual.float() - expected).norm() / expected.norm()) < bound


@pytest.mark.parametrize(
    ("dtype", "bound"), [(torch.float32, 1e-5), (torch.bfloat16, 0.02), (torch.float16, 0.003)], ids=str
)
@pytest.mark.parametrize("model", ["tiny"], indirect=True)
@torch.inference_mode()
def test_decoders(model: CLIP4STR, dtype: torch.dtype, bound: float) -> None:
    """Step by step along a text, and all positions at once; `bound` on the error relative to the logits."""
    source = model.cross_decoder
    fast = optimize(copy.deepcopy(model), CPU, dtype).cross_decoder
    generator = torch.Generator().manual_seed(5)
    features = torch.randn(2, 9, model.config.embed_dim, generator=generator)
    ids = torch.cat([torch.full((2, 1), BOS), torch.randint(CLASSES, (2, 25), generator=generator)], dim=1)
    memory, fast_memory = source.project_memory(features), fast.project_memory(features.to(dtype))
    content, fast_content = source.project_content(ids[:, :1]), fast.project_content(ids[:, :1])
    steps, fast_steps = [], []
    for step in range(26):
        if step:
            content = content.append(source.project_content(ids[:, step : step + 1], step))
            fast_content = fast_content.append(fast.project_content(ids[:, step : step + 1], step))
        steps.append(source(content, memory, slice(step, step + 1)))
        fast_steps.append(fast(fast_content, fast_memory, slice(step, step + 1)))
    mask = torch.rand(2, 1, 26, 26, generator=generator) < 0.5
    mask[..., 0] = True
    expected = [torch.cat(steps, dim=1), source(source.project_content(ids), memory, mask=mask)]
    actual = [torch.cat(fast_steps, dim=1), fast(fast.project_content(ids), fast_memory, mask=mask)]
    for one, other in zip(actual, expected, strict=True):
        assert one.dtype is torch.float32
        assert float((one - other).norm() / other.norm()) < bound


def test_nothing_slow_is_left(model: CLIP4STR) -> None:
    fast = optimize(copy.deepcopy(model), CPU, torch.bfloat16)
    kinds = [type(module) for module in fast.modules()]
    assert nn.MultiheadAttention not in kinds
    assert nn.BatchNorm2d not in kinds
    assert kinds.count(nn.Linear) == 2  # the heads
    assert PackedLinear in kinds


def test_probabilities_are_fine_grained(model: CLIP4STR) -> None:
    """The heads compute in fp32, whatever the rest does."""
    fast = optimize(copy.deepcopy(model), CPU, torch.bfloat16)
    for decoder in (fast.visual_decoder, fast.cross_decoder):
        assert decoder.head.weight.dtype is torch.float32
