"""Composition: shapes and ranges, reproducibility, contrast, and what difficulty does."""

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from clip4str.synth.camera import Camera
from clip4str.synth.colours import draw_colours, least_contrast, luminance
from clip4str.synth.compose import Composer
from clip4str.synth.degrade import BlockCodec, Lens
from clip4str.synth.fonts import FontLibrary
from clip4str.synth.kinds import Kind
from clip4str.synth.paint import Painter
from clip4str.synth.render import render_word
from clip4str.synth.texture import TextureBank
from clip4str.synth.warp import place

Masks = tuple[Tensor, Tensor, Tensor]


@pytest.fixture(scope="module")
def words() -> Masks:
    """Masks uint8 [72, 40, 160], aspects [72] and kinds [72]."""
    rng = np.random.default_rng(0)
    library = FontLibrary.open(None)
    face = library.families[0][0]
    labels = ("Open", "TOTAL", "7", "international") * 6
    drawn = [render_word(label, kind, library, face, rng) for kind in Kind for label in labels]
    masks = torch.from_numpy(np.stack([mask.coverage for mask in drawn]))
    return masks, torch.tensor([mask.aspect for mask in drawn]), torch.arange(72) // 24


@pytest.mark.parametrize("difficulty", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("size", [(32, 128), (64, 64)])
def test_crops_have_the_size_and_type_promised(
    words: Masks, difficulty: float, size: tuple[int, int]
) -> None:
    images = Composer(size, seed=1).compose(*words, difficulty)
    assert images.shape == (len(words[0]), 3, *size)
    assert images.dtype == torch.uint8
    spread = images.float().amax((1, 2, 3)) - images.float().amin((1, 2, 3))
    assert (spread > 20).all()


def test_a_single_word_can_be_composed(words: Masks) -> None:
    composer = Composer(seed=2)
    for _ in range(20):
        assert composer.compose(words[0][:1], words[1][:1], words[2][:1]).shape == (1, 3, 32, 128)


def test_the_seed_decides_everything(words: Masks) -> None:
    first, second, other = (Composer(seed=seed).compose(*words) for seed in (4, 4, 5))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_difficulty_zero_is_nearly_clean(words: Masks) -> None:
    images = Composer(seed=3).compose(*words, 0.0).float() / 255
    grey = luminance(images.movedim(1, -1))
    # Two flat colours with little between them, far apart in luminance.
    low, high = grey.amin((1, 2), keepdim=True), grey.amax((1, 2), keepdim=True)
    assert (high - low > 0.55).all()
    level = (grey - low) / (high - low)
    assert ((level < 0.1) | (level > 0.9)).float().mean() > 0.6


def test_difficulty_adds_disturbance(words: Masks) -> None:
    def roughness(difficulty: float) -> float:
        border = Composer(seed=6).compose(*words, difficulty).float()[:, :, 0]
        return float(border.std(-1).mean())

    assert roughness(0.0) < 0.2 * roughness(1.0)


def test_a_seed_can_be_set_between_batches(words: Masks) -> None:
    fresh, used = Composer(seed=4), Composer(seed=4)
    used.compose(*words)
    fresh.seed(9)
    used.seed(9)
    assert torch.equal(fresh.compose(*words), used.compose(*words))


def test_ink_and_ground_keep_their_contrast() -> None:
    kinds = torch.arange(6000) % 3
    thin, hard = torch.linspace(0, 1, 6000), torch.rand(6000, generator=torch.Generator().manual_seed(1))
    colours = draw_colours(kinds, thin, hard, torch.Generator().manual_seed(0))
    for colour in (colours.ink, colours.ground):
        assert colour.min() >= -1e-5
        assert colour.max() <= 1 + 1e-5
    contrast = (luminance(colours.ink) - luminance(colours.ground)).abs()
    assert torch.allclose(contrast, colours.contrast, atol=1e-4)
    assert (contrast >= least_contrast(hard) + 0.25 * thin - 1e-4).all()
    darker = luminance(colours.ink) < luminance(colours.ground)
    assert darker[kinds != Kind.SIGN].float().mean() > 0.95
    assert 0.3 < darker[kinds == Kind.SIGN].float().mean() < 0.6


@pytest.mark.parametrize("kind", list(Kind))
def test_the_whole_word_lies_within_its_crop(kind: Kind) -> None:
    aspects = torch.tensor([0.5, 1.0, 3.0, 12.0] * 100)
    hard, kinds = torch.linspace(0, 1, len(aspects)), torch.full((len(aspects),), int(kind))
    placement = place(aspects, (32, 128), hard, kinds, torch.Generator().manual_seed(0))
    inside = placement.sample(torch.full((len(aspects), 40, 160), 1.0))
    assert 0.35 < inside.mean() < 0.95
    # Corners and sides of the box, less the 6 % of its height that a crop may cut off: a pixel is near each.
    margin = 0.06 / aspects.view(-1, 1, 1)
    x_step, y_step = aspects.view(-1, 1, 1) / 128, 1 / 32
    for across, down in itertools.product((-1, 0, 1), repeat=2):
        x, y = across * (0.5 - margin) * aspects.view(-1, 1, 1), down * 0.44
        off = ((placement.x - x) / x_step) ** 2 + ((placement.y - y) / y_step) ** 2
        assert (off.amin((1, 2)).sqrt() < 3).all()


def test_no_disturbance_breaks_a_number(words: Masks) -> None:
    rng = torch.Generator().manual_seed(3)
    masks, aspects, kinds = words[0].float() / 255, words[1], words[2]
    bank = TextureBank((32, 128), rng, torch.device("cpu"))
    painter, camera = Painter(bank, rng), Camera((32, 128), bank, rng)
    for hard in (torch.zeros(len(masks)), torch.ones(len(masks))):
        for _ in range(8):
            placement = place(aspects, (32, 128), hard, kinds, rng)
            colours = draw_colours(kinds, torch.rand(len(masks), generator=rng), hard, rng)
            images = painter.paint(masks, placement, colours, kinds, hard)
            camera.take(images, placement.crop_aspect, colours.contrast, kinds, torch.ones(len(masks)), hard)
            assert torch.isfinite(images).all()
            assert images.abs().max() < 3


def test_blur_keeps_the_mean_and_takes_the_detail() -> None:
    rng = torch.Generator().manual_seed(0)
    images = torch.rand(30, 3, 32, 128, generator=rng)
    aspect = torch.full((30,), 4.0)
    lens = Lens((32, 128), torch.device("cpu"))
    flaws = torch.arange(30) % 3
    mild = lens.apply(images, torch.full((30,), 0.5), aspect, flaws)
    strong = lens.apply(images, torch.full((30,), 3.0), aspect, flaws)
    assert torch.allclose(strong.mean((1, 2, 3)), images.mean((1, 2, 3)), atol=0.02)
    assert strong.std((2, 3)).mean() < 0.7 * mild.std((2, 3)).mean()
    assert mild.std((2, 3)).mean() < images.std((2, 3)).mean() + 1e-6


def test_block_coding_errs_with_its_coarseness() -> None:
    images = torch.rand(8, 3, 32, 128, generator=torch.Generator().manual_seed(0))
    codec = BlockCodec((32, 128), torch.device("cpu"))
    fine, coarse = ((codec.apply(images, torch.full((8,), c)) - images).abs().mean() for c in (0.01, 2.0))
    assert fine < 2e-3
    assert coarse > 20 * fine


def test_bad_arguments_are_refused(words: Masks) -> None:
    with pytest.raises(ValueError, match="multiples of 8"):
        Composer((30, 128), seed=0)
    with pytest.raises(ValueError, match=r"difficulty must be within 0\.\.1"):
        Composer(seed=0).compose(*words, 1.5)
