"""The published training augmentation: three of sixteen operations, each applied in half of the cases.

It is RandAugment (Cubuk et al., 2020) with the operations and strengths of the published training: strength 5
of 10, always the same but for its sign. It works on the image as stored, before it is squeezed to the model's
input.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

Operation = Callable[[Image.Image, np.random.Generator], Image.Image]

DRAWN = 3  # operations per image
APPLIED = 0.5  # probability, of each

_FILL = (128, 128, 128)
_SOLARIZE_BELOW = 128
_SOLARIZE_ADD = 55
_LIFTED = [min(255, level + _SOLARIZE_ADD) if level < _SOLARIZE_BELOW else level for level in range(256)]


def augment(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A changed copy of an image of any mode that Pillow converts to RGB; RGB, in general of another size.

    What is drawn from `rng` decides everything.
    """
    image = image.convert("RGB")
    operations = list(OPERATIONS.values())
    for index in rng.choice(len(operations), DRAWN, replace=False):
        if rng.random() < APPLIED:
            image = operations[index](image, rng)
    return image


def _rotate(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """By 15 degrees; the canvas grows, so that no character is cut off."""
    return image.rotate(_either_sign(15, rng), _resampling(rng), expand=True, fillcolor=_FILL)


def _shear_x(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    return _affine(image, (1, _either_sign(0.45, rng), 0, 0, 1, 0), rng)


def _shear_y(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    return _affine(image, (1, 0, 0, _either_sign(0.1, rng), 1, 0), rng)


def _translate_x(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    return _affine(image, (1, 0, _either_sign(0.05, rng) * image.width, 0, 1, 0), rng)


def _translate_y(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    return _affine(image, (1, 0, 0, 0, 1, _either_sign(0.15, rng) * image.height), rng)


def _affine(
    image: Image.Image, matrix: tuple[float, float, float, float, float, float], rng: np.random.Generator
) -> Image.Image:
    """The matrix takes a point of the result to the point of the image that is shown there."""
    return image.transform(
        image.size, Image.Transform.AFFINE, matrix, resample=_resampling(rng), fillcolor=_FILL
    )


def _color(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    return ImageEnhance.Color(image).enhance(1 + _either_sign(0.45, rng))


def _contrast(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    return ImageEnhance.Contrast(image).enhance(1 + _either_sign(0.45, rng))


def _brightness(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    return ImageEnhance.Brightness(image).enhance(1 + _either_sign(0.45, rng))


def _gaussian_blur(image: Image.Image, _: np.random.Generator) -> Image.Image:
    """Radius 1 or 2 pixels, by the longer side."""
    return image.filter(ImageFilter.GaussianBlur(round(min(2, max(1, 0.02 * max(image.size))))))


def _poisson_noise(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Noise of mean size 1 to 21 by the longer side, up or down by pixel, the same in all channels."""
    mean = round(min(20, max(1, 0.2 * max(image.size)))) | 1  # odd, as published
    shape = (image.height, image.width, 1)
    noise = rng.poisson(mean, shape) * rng.choice((-1, 1), shape)
    return Image.fromarray(np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8))


def _either_sign(amount: float, rng: np.random.Generator) -> float:
    return amount if rng.random() < 0.5 else -amount


def _resampling(rng: np.random.Generator) -> Image.Resampling:
    return Image.Resampling.BILINEAR if rng.random() < 0.5 else Image.Resampling.BICUBIC


OPERATIONS: Mapping[str, Operation] = MappingProxyType(
    {
        "auto_contrast": lambda image, _: ImageOps.autocontrast(image),
        "equalize": lambda image, _: ImageOps.equalize(image),
        "invert": lambda image, _: ImageOps.invert(image),
        "rotate": _rotate,
        "posterize": lambda image, _: ImageOps.posterize(image, 2),  # bits kept
        "solarize": lambda image, _: ImageOps.solarize(image, _SOLARIZE_BELOW),
        "solarize_add": lambda image, _: image.point(_LIFTED * 3),
        "color": _color,
        "contrast": _contrast,
        "brightness": _brightness,
        "shear_x": _shear_x,
        "shear_y": _shear_y,
        "translate_x": _translate_x,
        "translate_y": _translate_y,
        "gaussian_blur": _gaussian_blur,
        "poisson_noise": _poisson_noise,
    }
)
