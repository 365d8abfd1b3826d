"""Untrusted bytes to a checked RGB image, or an ImageError; nothing else escapes, no warning either.

The format is told by the first bytes, then only that format's reader looks at them. The size is judged by the
header, before any pixel is decoded. Of several frames the first counts. Without PyTorch: a process that decodes for
others need not hold a model.
"""

from __future__ import annotations

import io
import struct
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from PIL import Image

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")
"""What is read, by Pillow's names."""

UNDECODABLE, UNSUPPORTED, TOO_LARGE = "undecodable_image", "unsupported_media_type", "image_too_large"
CODES = (UNDECODABLE, UNSUPPORTED, TOO_LARGE)
"""What can be wrong with an image: empty, truncated or corrupt; of no known format; of too many bytes or pixels."""

_SIGNATURES = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"II*\x00", "TIFF"),
    (b"MM\x00*", "TIFF"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
)
_BMP_HEADER_SIZES = (12, 16, 40, 52, 56, 64, 108, 124)

_START_OF_SCAN = b"\xff\xda"
_MAX_SCANS = 100
"""Scans of a JPEG: encoders write about ten, and each costs a pass over all pixels, however short it is."""

_USUAL_SCANS = 12
_PACKED_CHUNKS = (b"iCCP", b"zTXt", b"iTXt")

_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation -> what turns the stored image upright."""


class ImageError(Exception):
    """An image that is not read: one of CODES, and a line that says why."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code = code


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """The largest image: `max_bytes` encoded, `max_pixels` by its header."""

    max_bytes: int
    max_pixels: int


def opened(content: bytes, limits: ImageLimits) -> Image.Image:
    """An image of which the header alone is read: its size holds, its pixels are to be had from `loaded`.

    Both are safe to call from several threads.

    Raises ImageError: empty, with a broken header, or of too many scans; not an image of a known format; of too many
    bytes, or pixels by its header.
    """
    if not content:
        raise ImageError(UNDECODABLE, "the image is empty: 0 bytes")
    if len(content) > limits.max_bytes:
        raise ImageError(
            TOO_LARGE, f"the image has {len(content)} bytes; at most {limits.max_bytes} are read"
        )
    name = sniff(content)
    if name is None:
        raise ImageError(UNSUPPORTED, f"these bytes are no image; {', '.join(FORMATS)} are read")
    if name == "PNG" and content[12:16] == b"IHDR" and len(content) >= 24:
        # Pillow knows the size of a PNG only once it has come, through chunks of any length, to the pixels.
        width, height = struct.unpack_from(">II", content, 16)
        _check_size(width, height, limits)
    if name == "JPEG" and (scans := content.count(_START_OF_SCAN)) > _MAX_SCANS:
        # Within a scan the marker cannot occur: each 0xff there is followed by a zero.
        raise ImageError(UNDECODABLE, f"the JPEG has {scans} scans; at most {_MAX_SCANS} are read")
    try:
        with _pillow_is_quiet:
            image = Image.open(io.BytesIO(content), formats=[name])
    except Image.DecompressionBombError:
        raise ImageError(TOO_LARGE, f"the image has more than {limits.max_pixels} pixels") from None
    except Exception as error:  # the readers of corrupt files raise whatever comes up
        raise _corrupt(name) from error
    _check_size(image.width, image.height, limits)
    return image


def quick(content: bytes) -> bool:
    """Whether an image, of any content, takes no longer to read than its bytes and pixels let expect.

    Few bytes can hold much that is unpacked before the pixels, or many passes over them.
    """
    match sniff(content):
        case "PNG":
            return not any(name in content for name in _PACKED_CHUNKS)
        case "JPEG":
            return content.count(_START_OF_SCAN) <= _USUAL_SCANS
        case "TIFF":
            return False
        case _:
            return True


def loaded(image: Image.Image) -> Image.Image:
    """The pixels of an opened image: RGB, upright, transparent parts on white.

    Raises ImageError: truncated, corrupt, or of samples that have no agreed range.
    """
    name = image.format or "image"
    try:
        with _pillow_is_quiet, image:
            image.load()
            return _upright(_rgb(image), _orientation(image))
    except ImageError:
        raise
    except Exception as error:  # as above
        raise _corrupt(name) from error


def _corrupt(name: str) -> ImageError:
    return ImageError(UNDECODABLE, f"the {name} data is truncated or corrupt")


def sniff(content: bytes) -> str | None:
    """The format's name by the first bytes, or None."""
    for signature, name in _SIGNATURES:
        if content.startswith(signature):
            return name
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return "WEBP"
    if content[:2] == b"BM" and int.from_bytes(content[14:18], "little") in _BMP_HEADER_SIZES:
        return "BMP"
    return None


def _check_size(width: int, height: int, limits: ImageLimits) -> None:
    if width < 1 or height < 1:
        raise ImageError(UNDECODABLE, f"the image is {width}×{height} pixels: there is nothing to read")
    if width * height > limits.max_pixels:
        raise ImageError(
            TOO_LARGE, f"the image is {width}×{height} pixels; at most {limits.max_pixels} are read"
        )


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        # A plain conversion clips at 255 instead of scaling 0..65535 to 0..255.
        image = image.convert("I").point(lambda sample: sample * (1 / 257) + 0.5).convert("L")
    elif image.mode in ("I", "F"):
        raise ImageError(UNDECODABLE, "its samples have 32 bits, of unknown range; save it with 8 or 16 bits")
    if image.has_transparency_data or image.mode in ("RGBa", "La"):
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _orientation(image: Image.Image) -> int:
    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # noqa: BLE001 (broken metadata raises whatever comes up, and spoils no pixel)
        return 1
    return orientation if isinstance(orientation, int) else 1


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image


class _PillowIsQuiet:
    """Ignores Pillow's warnings while any thread decodes.

    Warning filters belong to the whole process, so threads must not each save and restore them: the first one
    in sets the filter, the last one out restores.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._saved = self._ignoring()

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._saved = self._ignoring()
                self._saved.__enter__()
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self._saved.__exit__(None, None, None)

    @staticmethod
    @contextmanager
    def _ignoring() -> Iterator[None]:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="PIL")
            yield


_pillow_is_quiet = _PillowIsQuiet()
