"""The published augmentation: what each operation does, by how much, how often; and on every kind of image."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from PIL import Image, ImageFilter

from clip4str.training import augmentation
from clip4str.training.augmentation import OPERATIONS, augment

SEEDS = range(24)  # enough for both signs


def apply(name: str, image: Image.Image, seed: int = 0) -> np.ndarray:
    """Result, int [H, W, 3]."""
    return np.asarray(OPERATIONS[name](image, np.random.default_rng(seed))).astype(int)


def image_of(pixels: np.ndarray) -> Image.Image:
    """Grey levels [H, W] or colours [H, W, 3] -> RGB."""
    return Image.fromarray(pixels.astype(np.uint8)).convert("RGB")


def noise(width: int, height: int) -> Image.Image:
    return image_of(np.random.default_rng(1).integers(0, 256, (height, width, 3)))


LEVELS = np.arange(256)
RAMP = image_of(LEVELS[None])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("invert", 255 - LEVELS),
        ("posterize", LEVELS // 64 * 64),
        ("solarize", np.where(LEVELS < 128, LEVELS, 255 - LEVELS)),
        ("solarize_add", np.where(LEVELS < 128, LEVELS + 55, LEVELS)),
    ],
)
def test_levels_are_mapped_as_published(name: str, expected: np.ndarray) -> None:
    for channel in range(3):
        assert np.array_equal(apply(name, RAMP)[0, :, channel], expected)


def test_contrast_is_stretched_and_levelled_channel_by_channel() -> None:
    pixels = np.stack([np.arange(50, 101), np.arange(100, 151), np.full(51, 7)], axis=-1)[None]
    stretched = apply("auto_contrast", image_of(pixels))[0]
    assert stretched[0].tolist() == [0, 0, 7]
    assert stretched[25].tolist() == pytest.approx([127.5, 127.5, 7], abs=1)
    assert stretched[50].tolist() == pytest.approx([255, 255, 7], abs=1)
    skewed = image_of(np.repeat([10, 20, 200], [400, 400, 224]).reshape(32, 32))
    assert np.unique(apply("equalize", skewed)).tolist() == pytest.approx([0, 127.5, 255], abs=8)


@pytest.mark.parametrize(
    ("name", "pixels", "centre"),
    [
        ("color", np.full((1, 8, 3), (140, 100, 100)), 112),  # its grey
        ("contrast", np.where(np.arange(8) < 4, 140, 80)[None], 110),  # the image's mean
        ("brightness", np.full((1, 8), 140), 0),
    ],
)
def test_colour_contrast_and_brightness_change_by_45_percent(
    name: str, pixels: np.ndarray, centre: int
) -> None:
    reds = {apply(name, image_of(pixels), seed)[0, 0, 0] for seed in SEEDS}
    expected = [centre + factor * (140 - centre) for factor in (0.55, 1.45)]
    assert sorted(reds) == pytest.approx(expected, abs=1)


def test_rotation_keeps_everything_on_grey() -> None:
    width, height = 120, 40
    image = Image.new("RGB", (width, height), "white")
    angle = math.radians(15)
    grown = (
        width * math.cos(angle) + height * math.sin(angle),
        width * math.sin(angle) + height * math.cos(angle),
    )
    left_goes_down = set()
    for seed in SEEDS:
        turned = apply("rotate", image, seed)
        assert turned.shape[1::-1] == pytest.approx(grown, abs=2)
        assert (turned[0, 0] == 128).all()
        assert (turned == 255).all(-1).sum() == pytest.approx(width * height, rel=0.06)
        rows = np.nonzero((turned[:, : width // 4] == 255).all(-1))[0]
        left_goes_down.add(bool(rows.mean() > turned.shape[0] / 2))
    assert left_goes_down == {True, False}


def line_positions(name: str, line: Image.Image, axis: int, seed: int) -> np.ndarray:
    """Where the white line is in each row (axis 1) or column (axis 0)."""
    positions: np.ndarray = apply(name, line, seed)[..., 0].argmax(axis)
    return positions


@pytest.mark.parametrize(("name", "slope", "axis"), [("shear_x", 0.45, 1), ("shear_y", 0.1, 0)])
def test_shear_moves_a_line_by_its_distance_from_the_first_row(name: str, slope: float, axis: int) -> None:
    pixels = np.zeros((60, 60))
    pixels[(slice(None), 30) if axis == 1 else (30, slice(None))] = 255
    signs = set()
    for seed in SEEDS:
        at = line_positions(name, image_of(pixels), axis, seed)
        moved = np.polyfit(np.arange(60), at, 1)[0]
        assert abs(moved) == pytest.approx(slope, abs=0.02)
        assert abs(at[0] - 30) <= 1
        signs.add(moved > 0)
    assert signs == {True, False}


@pytest.mark.parametrize(
    ("name", "axis", "pixels_moved"),
    [("translate_x", 1, 5), ("translate_y", 0, 6)],  # 5 % of 100, 15 % of 40
)
def test_translation_is_a_share_of_its_side(name: str, axis: int, pixels_moved: int) -> None:
    pixels = np.zeros((40, 100))
    pixels[(slice(None), 50) if axis == 1 else (20, slice(None))] = 255
    start = 50 if axis == 1 else 20
    moves = set()
    for seed in SEEDS:
        inner = np.median(line_positions(name, image_of(pixels), axis, seed))
        moves.add(int(inner) - start)
        assert (apply(name, image_of(pixels), seed) == 128).all(-1).sum() >= pixels_moved * (
            40 if axis == 1 else 100
        )
    assert moves == {-pixels_moved, pixels_moved}


def test_both_ways_of_resampling_are_drawn() -> None:
    image = noise(50, 20)
    results = {apply("shear_x", image, seed).tobytes() for seed in SEEDS}
    assert len(results) == 4  # two signs, two kernels


@pytest.mark.parametrize(
    ("size", "radius"), [((20, 10), 1), ((74, 10), 1), ((76, 10), 2), ((9, 90), 2), ((900, 90), 2)]
)
def test_blur_grows_with_the_longer_side(size: tuple[int, int], radius: int) -> None:
    expected = noise(*size).filter(ImageFilter.GaussianBlur(radius))
    assert np.array_equal(apply("gaussian_blur", noise(*size)), np.asarray(expected))


@pytest.mark.parametrize(
    ("size", "mean"), [((3, 2), 1), ((10, 32), 7), ((60, 20), 13), ((100, 20), 21), ((300, 50), 21)]
)
def test_noise_has_the_published_size_and_no_colour(size: tuple[int, int], mean: int) -> None:
    grey = Image.new("RGB", size, (128, 128, 128))
    moved = np.stack([apply("poisson_noise", grey, seed) for seed in range(200)]) - 128
    assert (moved == moved[..., :1]).all()
    amount = np.abs(moved[..., 0])
    assert amount.mean() == pytest.approx(mean, rel=0.12)
    assert amount.var() == pytest.approx(mean, rel=0.25)  # that of a Poisson distribution
    assert (moved > 0).sum() / (moved != 0).sum() == pytest.approx(0.5, abs=0.05)


def test_noise_stops_at_black_and_white() -> None:
    noisy = apply("poisson_noise", image_of(np.where(np.arange(200) < 100, 0, 255)[None].repeat(9, 0)))
    black, white = noisy[:, :100], noisy[:, 100:]
    assert (black.min(), white.max()) == (0, 255)
    assert black.max() < 60 < 200 < white.min()


def test_three_operations_are_drawn_and_each_applied_half_of_the_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    applied: list[str] = []

    def recorded(name: str) -> augmentation.Operation:
        def operation(image: Image.Image, rng: np.random.Generator) -> Image.Image:
            applied.append(name)
            return OPERATIONS[name](image, rng)

        return operation

    assert len(OPERATIONS) == 16
    monkeypatch.setattr(augmentation, "OPERATIONS", {name: recorded(name) for name in OPERATIONS})
    counts, numbers, first, runs = Counter[str](), Counter[int](), Counter[str](), 8000
    for seed in range(runs):
        applied.clear()
        augment(RAMP, np.random.default_rng(seed))
        assert len(set(applied)) == len(applied) <= 3
        counts.update(applied)
        first.update(applied[:1])
        numbers[len(applied)] += 1
    assert [numbers[n] / runs for n in range(4)] == pytest.approx([1 / 8, 3 / 8, 3 / 8, 1 / 8], abs=0.02)
    assert [counts[name] / runs for name in OPERATIONS] == pytest.approx([3 / 32] * 16, abs=0.015)
    assert [first[name] / runs for name in OPERATIONS] == pytest.approx([7 / 8 / 16] * 16, abs=0.012)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1", "LA", "CMYK", "RGB"])
def test_any_mode_becomes_rgb(mode: str) -> None:
    image = noise(30, 12).convert(mode)
    before = image.tobytes()
    for seed in range(30):
        result = augment(image, np.random.default_rng(seed))
        assert result.mode == "RGB"
        assert result is not image
    assert image.tobytes() == before


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (7, 1), (2, 2)])
def test_the_smallest_images_pass(size: tuple[int, int]) -> None:
    for name in OPERATIONS:
        result = apply(name, noise(*size))
        assert result.shape[1::-1] == size or name == "rotate"
        assert min(result.shape) >= 1


def test_the_generator_decides_everything() -> None:
    image = noise(40, 20)
    first, second = (
        [augment(image, np.random.default_rng(seed)).tobytes() for seed in range(40)] for _ in range(2)
    )
    assert first == second
    assert len(set(first)) > 30
