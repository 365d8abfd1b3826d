"""Composition: shapes and ranges, reproducibility, contrast, and what difficulty does."""

import numpy as np
import pytest
import torch
from torch import Tensor

from clip4str.synth.colours import draw_colours, least_contrast, luminance
from clip4str.synth.compose import Composer
from clip4str.synth.degrade import BlockCodec, Lens
from clip4str.synth.fonts import FontLibrary
from clip4str.synth.render import render_word
from clip4str.synth.warp import place


@pytest.fixture(scope="module")
def words() -> tuple[Tensor, Tensor]:
    """Masks uint8 [48, 40, 160] and aspects [48]."""
    rng = np.random.default_rng(0)
    library = FontLibrary.open(None)
    drawn = [render_word(label, library, rng) for label in ("Open", "TOTAL", "7", "international") * 12]
    masks = [mask for mask in drawn if mask is not None]
    return torch.from_numpy(np.stack([m.coverage for m in masks])), torch.tensor([m.aspect for m in masks])


@pytest.mark.parametrize("difficulty", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("size", [(32, 128), (64, 64)])
def test_crops_have_the_size_and_type_promised(
    words: tuple[Tensor, Tensor], difficulty: float, size: tuple[int, int]
) -> None:
    images = Composer(size, seed=1).compose(*words, difficulty)
    assert images.shape == (len(words[0]), 3, *size)
    assert images.dtype == torch.uint8
    spread = images.float().amax((1, 2, 3)) - images.float().amin((1, 2, 3))
    assert (spread > 20).all()


def test_a_single_word_can_be_composed(words: tuple[Tensor, Tensor]) -> None:
    composer = Composer(seed=2)
    for _ in range(20):
        assert composer.compose(words[0][:1], words[1][:1]).shape == (1, 3, 32, 128)


def test_the_seed_decides_everything(words: tuple[Tensor, Tensor]) -> None:
    first, second, other = (Composer(seed=seed).compose(*words) for seed in (4, 4, 5))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_difficulty_zero_is_nearly_clean(words: tuple[Tensor, Tensor]) -> None:
    images = Composer(seed=3).compose(*words, 0.0).float() / 255
    grey = luminance(images.movedim(1, -1))
    # Two flat colours with little between them, far apart in luminance.
    low, high = grey.amin((1, 2), keepdim=True), grey.amax((1, 2), keepdim=True)
    assert (high - low > 0.55).all()
    level = (grey - low) / (high - low)
    assert ((level < 0.1) | (level > 0.9)).float().mean() > 0.6


def test_difficulty_adds_disturbance(words: tuple[Tensor, Tensor]) -> None:
    def roughness(difficulty: float) -> float:
        border = Composer(seed=6).compose(*words, difficulty).float()[:, :, 0]
        return float(border.std(-1).mean())

    assert roughness(0.0) < 0.2 * roughness(1.0)


@pytest.mark.parametrize("difficulty", [0.0, 0.4, 1.0])
def test_ink_and_ground_keep_their_contrast(difficulty: float) -> None:
    documents = torch.arange(4000) % 2 == 0
    thin = torch.linspace(0, 1, 4000)
    colours = draw_colours(documents, thin, difficulty, torch.Generator().manual_seed(0))
    for colour in (colours.ink, colours.ground):
        assert colour.min() >= -1e-5
        assert colour.max() <= 1 + 1e-5
    contrast = (luminance(colours.ink) - luminance(colours.ground)).abs()
    assert torch.allclose(contrast, colours.contrast, atol=1e-4)
    assert (contrast >= least_contrast(difficulty) + 0.25 * thin - 1e-4).all()
    darker = luminance(colours.ink) < luminance(colours.ground)
    assert darker[documents].float().mean() > 0.9
    assert 0.4 < darker[~documents].float().mean() < 0.6


def test_the_whole_word_lies_within_its_crop() -> None:
    aspects = torch.tensor([0.5, 1.0, 3.0, 12.0] * 100)
    flat = torch.arange(len(aspects)) % 3 == 0
    placement = place(aspects, (32, 128), 1.0, flat, torch.Generator().manual_seed(0))
    full = torch.full((len(aspects), 40, 160), 1.0)
    inside = placement.sample(full)
    # A crop samples its word's box at least once in each of 40 columns: nearly nothing of it is cut off.
    left, right = placement.x.amin((1, 2)), placement.x.amax((1, 2))
    covered = (torch.minimum(right, aspects / 2) - torch.maximum(left, -aspects / 2)) / aspects
    assert covered.min() > 0.8
    assert covered.mean() > 0.99
    assert 0.35 < inside.mean() < 0.95


def test_blur_keeps_the_mean_and_takes_the_detail() -> None:
    rng = torch.Generator().manual_seed(0)
    images = torch.rand(30, 3, 32, 128, generator=rng)
    aspect = torch.full((30,), 4.0)
    lens = Lens((32, 128), torch.device("cpu"))
    mild = lens.apply(images, torch.full((30,), 0.5), aspect, rng)
    strong = lens.apply(images, torch.full((30,), 3.0), aspect, rng)
    assert torch.allclose(strong.mean((1, 2, 3)), images.mean((1, 2, 3)), atol=0.02)
    assert strong.std((2, 3)).mean() < 0.7 * mild.std((2, 3)).mean()
    assert mild.std((2, 3)).mean() < images.std((2, 3)).mean() + 1e-6


def test_block_coding_errs_with_its_coarseness() -> None:
    images = torch.rand(8, 3, 32, 128, generator=torch.Generator().manual_seed(0))
    codec = BlockCodec((32, 128), torch.device("cpu"))
    fine, coarse = ((codec.apply(images, torch.full((8,), c)) - images).abs().mean() for c in (0.01, 2.0))
    assert fine < 2e-3
    assert coarse > 20 * fine


def test_bad_arguments_are_refused(words: tuple[Tensor, Tensor]) -> None:
    with pytest.raises(ValueError, match="multiples of 8"):
        Composer((30, 128), seed=0)
    with pytest.raises(ValueError, match=r"difficulty must be within 0\.\.1"):
        Composer(seed=0).compose(*words, 1.5)
