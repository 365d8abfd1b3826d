"""Every PIL mode becomes the model's pixels."""

import pytest
import torch
from PIL import Image

from clip4str.image import prepare


@pytest.mark.parametrize(
    "mode", ["1", "L", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV", "I", "F", "LA", "La"]
)
def test_any_mode(mode: str) -> None:
    pixels = prepare(Image.new(mode, (50, 20)), (32, 128))
    assert (pixels.shape, pixels.dtype) == ((3, 32, 128), torch.uint8)
    assert pixels.is_contiguous()


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1)])
def test_any_size(size: tuple[int, int]) -> None:
    assert (prepare(Image.new("RGB", size, "white"), (32, 128)) == 255).all()


def test_channels_and_rows_keep_their_place() -> None:
    image = Image.new("RGB", (4, 2), "red")
    image.putpixel((3, 1), (0, 0, 255))
    pixels = prepare(image, (2, 4))
    assert pixels[:, 0, 0].tolist() == [255, 0, 0]
    assert pixels[:, 1, 3].tolist() == [0, 0, 255]
