"""Untrusted bytes: each odd image is read right, each bad one refused with its error, and nothing leaks."""

import io
import struct
import threading
import warnings
import zlib
from collections.abc import Callable
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw, PngImagePlugin

from clip4str.untrusted import sniff
from clip4str_service.errors import (
    ImageTooLargeError,
    ServiceError,
    UndecodableImageError,
    UnsupportedMediaTypeError,
)
from clip4str_service.images import MEDIA_TYPES, ImageLimits, loaded, opened
from tests.service.pixel_worker import encoded

LIMITS = ImageLimits(max_bytes=100_000, max_pixels=4_000_000)
WHITE, BLACK, BLUE = (255, 255, 255), (0, 0, 0), (20, 60, 200)


def decode(content: bytes, limits: ImageLimits) -> Image.Image:
    return loaded(opened(content, limits))


def scene(mode: str = "RGB") -> Image.Image:
    """24×12 pixels: white, its top left quarter blue."""
    image = Image.new("RGB", (24, 12), WHITE)
    ImageDraw.Draw(image).rectangle((0, 0, 11, 5), fill=BLUE)
    return image.convert(mode)


def corners(image: Image.Image) -> tuple[tuple[int, ...], ...]:
    """The pixels at top left, top right, bottom left and bottom right."""
    right, bottom = image.width - 2, image.height - 2
    pixels = image.load()
    assert pixels is not None
    return tuple(pixels[x, y] for y in (1, bottom) for x in (1, right))  # type: ignore[misc]


def near(image: Image.Image, *expected: tuple[int, ...], tolerance: int = 0) -> None:
    assert image.mode == "RGB"
    for found, wanted in zip(corners(image), expected, strict=True):
        assert max(abs(a - b) for a, b in zip(found, wanted, strict=True)) <= tolerance, corners(image)


GREY = tuple([scene("L").getpixel((1, 1))] * 3)


@pytest.mark.parametrize("file_format", MEDIA_TYPES.values())
def test_every_format_is_read(file_format: str) -> None:
    content = encoded(scene(), file_format, **({"quality": 95} if file_format in ("JPEG", "WEBP") else {}))
    assert sniff(content) == file_format
    near(decode(content, LIMITS), BLUE, WHITE, WHITE, WHITE, tolerance=40 if file_format == "GIF" else 12)


def sixteen_bits(file_format: str, byte_order: str = "<") -> bytes:
    samples = np.asarray(scene("L")).astype(f"{byte_order}u2") * 257
    return encoded(Image.fromarray(samples), file_format)


def sixteen_bit_colour() -> bytes:
    """A PNG of 16-bit RGB, which Pillow reads but does not write."""
    rows = (np.asarray(scene()).astype(">u2") * 257).tobytes()
    width, height = scene().size
    lines = b"".join(b"\0" + rows[start : start + width * 6] for start in range(0, len(rows), width * 6))
    return png(width, height, bits=16, colour=2, data=zlib.compress(lines))


def png(
    width: int, height: int, *, bits: int = 8, colour: int = 2, data: bytes = b"", extra: bytes = b""
) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + extra + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def turned(orientation: int, file_format: str) -> bytes:
    """The scene stored so that `orientation` turns it upright."""
    undo = {
        1: None,
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = scene() if undo is None else scene().transpose(undo)
    return encoded(
        image, file_format, exif=exif, **({} if file_format in ("PNG", "TIFF") else {"quality": 95})
    )


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_undone(orientation: int, file_format: str) -> None:
    image = decode(turned(orientation, file_format), LIMITS)
    assert image.size == scene().size
    near(image, BLUE, WHITE, WHITE, WHITE, tolerance=12)


def animation(file_format: str) -> bytes:
    later = [Image.new("RGB", scene().size, BLACK)] * 2
    return encoded(scene(), file_format, save_all=True, append_images=later)


def transparent(mode: str) -> bytes:
    """The scene with its white transparent, over black."""
    image = scene("RGBA")
    alpha = scene("L").point(lambda sample: 0 if sample == 255 else 255)
    image.paste(BLACK, (0, 0, *image.size))
    image.paste(BLUE, (0, 0, 12, 6))
    image.putalpha(alpha)
    return encoded(image.convert(mode))


def transparent_palette() -> bytes:
    """A palette PNG: colour 0 is blue, colour 1 black and transparent."""
    image = Image.new("P", scene().size, 1)
    image.putpalette([*BLUE, *BLACK])
    ImageDraw.Draw(image).rectangle((0, 0, 11, 5), fill=0)
    return encoded(image, transparency=bytes([255, 0]))


def colour_key() -> bytes:
    """An RGB PNG whose black stands for transparent."""
    image = Image.new("RGB", scene().size, BLACK)
    ImageDraw.Draw(image).rectangle((0, 0, 11, 5), fill=BLUE)
    return encoded(image, transparency=BLACK)


def sixteen_bit_key() -> bytes:
    """A 16-bit grey PNG with a transparent grey, which no pixel has."""
    return sixteen_bits("PNG")[:33] + chunk(b"tRNS", struct.pack(">H", 4660)) + sixteen_bits("PNG")[33:]


@pytest.mark.parametrize(
    ("content", "expected", "tolerance"),
    [
        pytest.param(animation("GIF"), BLUE, 40, id="animated GIF"),
        pytest.param(animation("WEBP"), BLUE, 40, id="animated WebP"),
        pytest.param(animation("TIFF"), BLUE, 0, id="TIFF of pages"),
        pytest.param(animation("PNG"), BLUE, 0, id="animated PNG"),
        pytest.param(encoded(scene("CMYK"), "JPEG", quality=95), BLUE, 12, id="CMYK JPEG"),
        pytest.param(encoded(scene("CMYK"), "TIFF"), BLUE, 0, id="CMYK TIFF"),
        pytest.param(encoded(scene("YCbCr"), "TIFF"), BLUE, 2, id="YCbCr TIFF"),
        pytest.param(encoded(scene("L"), "JPEG", quality=95), GREY, 4, id="grey JPEG"),
        pytest.param(sixteen_bits("PNG"), GREY, 0, id="16-bit PNG"),
        pytest.param(sixteen_bits("TIFF"), GREY, 0, id="16-bit TIFF"),
        pytest.param(sixteen_bits("TIFF", ">"), GREY, 0, id="16-bit big-endian TIFF"),
        pytest.param(sixteen_bit_key(), GREY, 0, id="16-bit PNG with a transparent grey"),
        pytest.param(sixteen_bit_colour(), BLUE, 0, id="16-bit RGB PNG"),
        pytest.param(encoded(scene().quantize(4)), BLUE, 4, id="palette PNG"),
        pytest.param(encoded(scene("1")), None, 0, id="1-bit PNG"),
        pytest.param(encoded(scene("1"), "TIFF", compression="group4"), None, 0, id="fax TIFF"),
        pytest.param(encoded(scene("LA")), GREY, 0, id="grey PNG with alpha"),
        pytest.param(transparent("RGBA"), BLUE, 0, id="transparent PNG"),
        pytest.param(transparent_palette(), BLUE, 0, id="transparent palette PNG"),
        pytest.param(colour_key(), BLUE, 0, id="PNG with a transparent colour"),
    ],
)
def test_odd_image_is_read_right(content: bytes, expected: tuple[int, ...] | None, tolerance: int) -> None:
    image = decode(content, LIMITS)
    assert image.size == scene().size
    top_left = expected or corners(image)[0]
    near(image, top_left, WHITE, WHITE, WHITE, tolerance=tolerance)
    if expected is None:  # dithered
        assert np.unique(np.asarray(image.crop((0, 0, 12, 6)))).tolist() == [0, 255]


def test_translucent_pixels_are_mixed_with_white() -> None:
    image = decode(encoded(Image.new("RGBA", (8, 8), (0, 0, 0, 128))), LIMITS)
    near(image, *[(127, 127, 127)] * 4)


def webp_header(width: int, height: int) -> bytes:
    sizes = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    body = b"WEBPVP8X" + struct.pack("<I", 10) + bytes(4) + sizes
    return b"RIFF" + struct.pack("<I", len(body)) + body


def broken_metadata() -> bytes:
    """A JPEG whose EXIF block is noise behind its signature."""
    noise = b"Exif\0\0MM\0*" + bytes(range(60))
    content = encoded(scene(), "JPEG", quality=95)
    return content[:2] + b"\xff\xe1" + struct.pack(">H", len(noise) + 2) + noise + content[2:]


def test_broken_metadata_spoils_no_pixel() -> None:
    near(decode(broken_metadata(), LIMITS), BLUE, WHITE, WHITE, WHITE, tolerance=12)


def jpeg_of_scans(count: int) -> bytes:
    """A progressive JPEG that repeats its last scan until it has so many."""
    content = encoded(scene(), "JPEG", progressive=True)
    scan = content[content.rindex(SCAN) : -2]
    return content[:-2] + scan * (count - content.count(SCAN)) + content[-2:]


SCAN = b"\xff\xda"
JPEG = encoded(scene(), "JPEG")
PNG = encoded(scene())

BAD = {
    "nothing": (b"", UndecodableImageError, "0 bytes"),
    "text": (b"not an image at all", UnsupportedMediaTypeError, "JPEG, PNG"),
    "SVG": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", UnsupportedMediaTypeError, "no image"),
    "PDF": (b"%PDF-1.7\n", UnsupportedMediaTypeError, "no image"),
    "text that begins like a BMP": (b"BMP is a format " * 9, UnsupportedMediaTypeError, "no image"),
    "RIFF that is no WebP": (b"RIFF\x24\0\0\0WAVEfmt ", UnsupportedMediaTypeError, "no image"),
    "JPEG signature alone": (JPEG[:3], UndecodableImageError, "JPEG"),
    "half a JPEG": (JPEG[: len(JPEG) // 2], UndecodableImageError, "JPEG"),
    "JPEG without its last pixels": (JPEG[:-20], UndecodableImageError, "JPEG"),
    "JPEG of 101 scans": (jpeg_of_scans(101), UndecodableImageError, "101 scans; at most 100"),
    "half a PNG": (PNG[: len(PNG) // 2], UndecodableImageError, "PNG"),
    "PNG with a bit turned": (PNG[:50] + bytes([PNG[50] ^ 1]) + PNG[51:], UndecodableImageError, "PNG"),
    "PNG without pixels": (png(100, 100), UndecodableImageError, "PNG"),
    "PNG of no width": (png(0, 100), UndecodableImageError, ""),
    "half a GIF": (encoded(scene(), "GIF")[:60], UndecodableImageError, "GIF"),
    "half a WebP": (encoded(scene(), "WEBP")[:60], UndecodableImageError, "WEBP"),
    "half a BMP": (encoded(scene(), "BMP")[:200], UndecodableImageError, "BMP"),
    "half a TIFF": (encoded(scene(), "TIFF")[:100], UndecodableImageError, "TIFF"),
    "TIFF of 32-bit floats": (encoded(scene("F"), "TIFF"), UndecodableImageError, "8 or 16 bits"),
    "TIFF of 32-bit integers": (encoded(scene("I"), "TIFF"), UndecodableImageError, "8 or 16 bits"),
    "too many bytes": (PNG + bytes(LIMITS.max_bytes), ImageTooLargeError, "100000"),
    "PNG of 4.004 megapixels": (png(2002, 2000), ImageTooLargeError, "2002×2000"),
    "PNG of 100 megapixels": (png(10_000, 10_000), ImageTooLargeError, "10000×10000"),
    "PNG of 10 gigapixels": (png(100_000, 100_000), ImageTooLargeError, "4000000"),
    "PNG header of 100 megapixels alone": (png(10_000, 10_000)[:33], ImageTooLargeError, "10000×10000"),
    "PNG cut in its size": (png(10_000, 10_000)[:23], UndecodableImageError, "PNG"),
    "WebP of 268 megapixels": (webp_header(16_384, 16_384), ImageTooLargeError, "4000000"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_image_is_refused(name: str) -> None:
    content, error, mentions = BAD[name]
    with pytest.raises(ServiceError) as caught:
        decode(content, LIMITS)
    assert (type(caught.value), mentions in str(caught.value)) == (error, True), caught.value


def test_image_at_the_limits_is_read() -> None:
    content = encoded(Image.new("1", (2000, 2000)))
    assert decode(content, ImageLimits(max_bytes=len(content), max_pixels=4_000_000)).size == (2000, 2000)
    near(decode(jpeg_of_scans(100), LIMITS), BLUE, WHITE, WHITE, WHITE, tolerance=40)


def test_bomb_in_compressed_text_is_refused() -> None:
    bomb = chunk(b"zTXt", b"key\0\0" + zlib.compress(bytes(PngImagePlugin.MAX_TEXT_CHUNK + 1)))
    with pytest.raises(UndecodableImageError):
        decode(png(8, 8, extra=bomb), LIMITS)


ODD = [png(10_000, 10_000), broken_metadata(), transparent_palette()]


def test_no_warning_leaks_from_any_thread() -> None:
    def work() -> None:
        for _ in range(20):
            for content in ODD:
                with suppress(ImageTooLargeError):
                    decode(content, LIMITS)

    with warnings.catch_warnings(record=True) as leaked:
        warnings.simplefilter("always")
        filters = list(warnings.filters)
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert list(warnings.filters) == filters
    assert leaked == []


def test_the_images_of_the_leak_test_do_make_pillow_warn() -> None:
    with warnings.catch_warnings(record=True) as leaked:
        warnings.simplefilter("always")
        for content in ODD[:2]:
            with suppress(OSError), Image.open(io.BytesIO(content)) as image:
                image.getexif()
    assert len(leaked) >= 2


def cut(content: bytes, place: int, _: int) -> bytes:
    return content[: place % len(content)]


def overwrite(content: bytes, place: int, value: int) -> bytes:
    place %= len(content)
    return content[:place] + bytes([value]) + content[place + 1 :]


def insert(content: bytes, place: int, value: int) -> bytes:
    place %= len(content)
    return content[:place] + bytes([value]) * 9 + content[place:]


@given(
    st.sampled_from([encoded(scene(), file_format) for file_format in MEDIA_TYPES.values()]),
    st.lists(
        st.tuples(st.sampled_from([cut, overwrite, insert]), st.integers(0, 5000), st.integers(0, 255)),
        max_size=4,
    ),
)
def test_mutated_image_is_read_or_refused(
    content: bytes, mutations: list[tuple[Callable[[bytes, int, int], bytes], int, int]]
) -> None:
    for mutate, place, value in mutations:
        content = mutate(content, place, value) or b"\0"
    try:
        outcome = decode(content, LIMITS).mode
    except ServiceError as error:
        outcome = error.code
    assert outcome in {"RGB", "image_too_large", "unsupported_media_type", "undecodable_image"}
