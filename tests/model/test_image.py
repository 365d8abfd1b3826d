"""Every PIL mode becomes the model's pixels, wherever they are to lie."""

import numpy as np
import pytest
from PIL import Image

from clip4str.image import prepare, prepare_into


@pytest.mark.parametrize(
    "mode", ["1", "L", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV", "I", "F", "LA", "La"]
)
def test_any_mode(mode: str) -> None:
    pixels = prepare(Image.new(mode, (50, 20)), (32, 128))
    assert pixels.shape == (3, 32, 128)
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1)])
def test_any_size(size: tuple[int, int]) -> None:
    assert (prepare(Image.new("RGB", size, "white"), (32, 128)) == 255).all()


def test_channels_and_rows_keep_their_place() -> None:
    image = Image.new("RGB", (4, 2), "red")
    image.putpixel((3, 1), (0, 0, 255))
    pixels = prepare(image, (2, 4))
    assert pixels[:, 0, 0].tolist() == [255, 0, 0]
    assert pixels[:, 1, 3].tolist() == [0, 0, 255]


def test_pixels_go_where_they_are_wanted_and_nowhere_else() -> None:
    """As in memory that processes share: slots side by side, one of them given out."""
    memory = bytearray(3 * 3 * 8 * 16)
    slots = np.frombuffer(memory, np.uint8).reshape(3, 3, 8, 16)
    noise = np.random.default_rng(0).integers(256, size=(20, 50, 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    prepare_into(image, slots[1])
    assert (slots[1] == prepare(image, (8, 16))).all()
    assert not slots[0].any()
    assert not slots[2].any()


@pytest.mark.parametrize(
    "pixels",
    [np.zeros((3, 8, 16)), np.zeros((8, 16), np.uint8), np.zeros((8, 16, 3), np.uint8)],
    ids=["floats", "one channel", "channels last"],
)
def test_memory_of_another_form_is_refused(pixels: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"it must be uint8 \(3, height, width\)"):
        prepare_into(Image.new("RGB", (4, 4)), pixels)
