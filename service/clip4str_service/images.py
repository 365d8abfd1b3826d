"""The model library's checks of untrusted images, with the errors of this service's contract."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from PIL import Image

from clip4str import untrusted
from clip4str.untrusted import ImageLimits as ImageLimits
from clip4str.untrusted import quick as quick
from clip4str_service.errors import ImageTooLargeError, UndecodableImageError, UnsupportedMediaTypeError

MEDIA_TYPES = {f"image/{name.lower()}": name for name in untrusted.FORMATS}
"""What the service reads: media type -> the format's name."""

_ERRORS = {
    error.code: error for error in (ImageTooLargeError, UndecodableImageError, UnsupportedMediaTypeError)
}


def opened(content: bytes, limits: ImageLimits) -> Image.Image:
    """An image of which the header alone is read: its size holds, its pixels are to be had from `loaded`.

    Both are safe to call from several threads.

    Raises:
        UndecodableImageError: empty, with a broken header, or of too many scans.
        UnsupportedMediaTypeError: not an image of a known format.
        ImageTooLargeError: too many bytes, or pixels by its header.
    """
    with _as_service_error():
        return untrusted.opened(content, limits)


def loaded(image: Image.Image) -> Image.Image:
    """The pixels of an opened image: RGB, upright, transparent parts on white.

    Raises:
        UndecodableImageError: truncated, corrupt, or of samples that have no agreed range.
    """
    with _as_service_error():
        return untrusted.loaded(image)


@contextmanager
def _as_service_error() -> Iterator[None]:
    try:
        yield
    except untrusted.ImageError as error:
        raise _ERRORS[error.code](str(error)) from error.__cause__
