"""Properties of decoding that hold for any weights: batch invariance, constraints, lengths."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from clip4str.charset import EOS, decode
from clip4str.config import VARIANTS
from clip4str.decoding import Decoded, DecodingOptions, refine
from clip4str.decoding import decode as run_decoding
from clip4str.model import CLIP4STR, init_decoder
from clip4str.tokens import allowed_classes, encode


@pytest.fixture(scope="module")
def model() -> CLIP4STR:
    """Random weights, sharpened so that words have different lengths and both branches differ."""
    torch.manual_seed(5)
    model = CLIP4STR(VARIANTS["tiny"])
    for decoder in (model.visual_decoder, model.cross_decoder):
        init_decoder(decoder)
        with torch.no_grad():
            for parameter in decoder.layer.parameters():
                parameter.mul_(4 if parameter.ndim > 1 else 1)
            decoder.head.weight.mul_(40)
            decoder.pos_queries.mul_(30)
            decoder.head.bias[EOS] = 10
    with torch.no_grad():
        model.clip_model.visual.positional_embedding.mul_(0.1)  # the image must matter more than the place
        for module in model.clip_model.visual.conv1.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.weight.mul_(3)
    return model.eval()


@pytest.fixture(scope="module")
def pixels() -> torch.Tensor:
    coarse = torch.rand(12, 3, 4, 16, generator=torch.Generator().manual_seed(3))
    return 2 * torch.nn.functional.interpolate(coarse, (32, 128)) - 1


def texts(decoded: Decoded) -> list[tuple[str, str]]:
    branches = (decoded.visual.refined, decoded.cross_modal.refined)
    return list(
        zip(*([decode(row.argmax(-1).tolist()) for row in branch] for branch in branches), strict=True)
    )


def test_words_differ(model: CLIP4STR, pixels: torch.Tensor) -> None:
    """Without this, the other tests here would compare nothing with nothing."""
    decoded = run_decoding(model, pixels)
    assert len(set(decoded.steps.tolist())) >= 3
    assert len(set(texts(decoded))) >= 8


def test_neighbours_change_nothing(model: CLIP4STR, pixels: torch.Tensor) -> None:
    together = run_decoding(model, pixels)
    for row in range(len(pixels)):
        alone = run_decoding(model, pixels[row : row + 1])
        assert texts(alone)[0] == texts(together)[row]
        for branch in ("visual", "cross_modal"):
            expected = getattr(alone, branch).refined[0].softmax(-1)
            actual = getattr(together, branch).refined[row].softmax(-1)
            # These weights amplify rounding far more than trained ones, which are held to 1e-5 end to end.
            torch.testing.assert_close(actual, expected, atol=1e-4, rtol=0)


def test_constraint_holds_row_by_row(model: CLIP4STR, pixels: torch.Tensor) -> None:
    digits, everything = allowed_classes("digits"), allowed_classes("full")
    allowed = torch.stack([digits if row % 2 else everything for row in range(len(pixels))])
    constrained = texts(run_decoding(model, pixels, allowed))
    free = texts(run_decoding(model, pixels))
    assert [constrained[row] for row in range(0, 12, 2)] == [free[row] for row in range(0, 12, 2)]
    read = "".join(text for row in range(1, 12, 2) for text in constrained[row])
    assert read
    assert set(read) <= set("0123456789")


def test_validation_mode_decodes_exactly_its_length(model: CLIP4STR, pixels: torch.Tensor) -> None:
    decoded = run_decoding(model, pixels, options=DecodingOptions(max_length=4))
    assert decoded.cross_modal.refined.shape == (12, 5, 95)
    assert decoded.steps.tolist() == [5] * 12


def test_no_refinement_keeps_the_autoregressive_reading(model: CLIP4STR, pixels: torch.Tensor) -> None:
    decoded = run_decoding(model, pixels, options=DecodingOptions(refine_iters=0))
    assert decoded.cross_modal.refined is decoded.cross_modal.autoregressive
    assert len(decoded.captions) == 1


def test_refinement_ignores_what_follows_the_end(model: CLIP4STR) -> None:
    """Whatever a row decodes after its EOS, its refined logits stay."""
    ids = encode(["abc", "abc"])[:, 1:].repeat_interleave(1, 0)
    ids = torch.cat([ids, torch.tensor([[5, 9, 7], [50, 0, 61]])], dim=1)
    logits = torch.nn.functional.one_hot(ids, 95).float()
    memory = model.visual_decoder.project_memory(torch.zeros(2, 33, model.config.embed_dim))
    refined = refine(model.visual_decoder, memory, logits, torch.tensor([4, 4]), 26, None)
    torch.testing.assert_close(refined[0], refined[1], atol=1e-5, rtol=0)


def test_published_context_length_can_be_shorter(model: CLIP4STR, pixels: torch.Tensor) -> None:
    """A caption longer than the text encoder's context is cut, not an error."""
    short = dataclasses.replace(model.config, text=dataclasses.replace(model.config.text, context_length=4))
    original = model.config
    try:
        model.config = short
        decoded = run_decoding(model, pixels)
    finally:
        model.config = original
    assert {captions.tokens.shape[1] for captions in decoded.captions} == {4}
