"""Any PIL image to the model's pixels. Nothing else in the project resizes a crop."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]
"""A crop as the model sees it: uint8 [3, height, width], RGB."""


def prepare(image: Image.Image, size: tuple[int, int]) -> Pixels:
    """PIL image of any mode -> uint8 [3, height, width], RGB, of `size` (height, width)."""
    pixels = np.empty((3, *size), np.uint8)
    prepare_into(image, pixels)
    return pixels


def prepare_into(image: Image.Image, pixels: Pixels) -> None:
    """As `prepare`, into `pixels`, uint8 [3, height, width]: memory that another process reads, for example.

    Squeezed to that size without keeping the aspect ratio, bicubic with antialiasing, as the published evaluation
    does. Raises ValueError when `pixels` is of another form.
    """
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or len(pixels) != 3:
        raise ValueError(f"pixels is {pixels.dtype} {pixels.shape}: it must be uint8 (3, height, width)")
    _, height, width = pixels.shape
    if image.mode == "La":  # Pillow converts it by one way only
        image = image.convert("LA")
    resized = image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
    pixels[...] = np.asarray(resized).transpose(2, 0, 1)  # [H, W, 3] -> [3, H, W]
