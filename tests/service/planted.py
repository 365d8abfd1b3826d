"""Secrets to plant in what a service is sent, and what shows of them in what it writes.

service = ...  # started with CLIP4STR_LOG_LEVEL=debug, KEY among its keys
post(..., headers={"Authorization": f"Bearer {KEY}"}, json={"crops": [{"content": base64_of(png())}]})
assert planted_in(output) == []
"""

import base64
import io
import random

from PIL import Image
from PIL.PngImagePlugin import PngInfo

KEY = "c4s_Zk3vQ9pXw7LtR2yNbH5mJd8sGf6aUeCq1oVi4Tx"
"""An API key."""

TEXT = "Kd82hVqPzR5xTn7LmW3cJb9sYg4fUoEa6iXw1QtHvB0"
"""What the images' metadata say."""

_PIECE = 12  # characters that nobody writes by chance
_IMAGE_DESCRIPTION = 270


def png() -> bytes:
    """A crop of noise whose metadata hold TEXT."""
    info = PngInfo()
    info.add_text("Comment", TEXT)
    return _saved("PNG", pnginfo=info)


def tiff() -> bytes:
    """Likewise, of the format whose decoder tells most when it is asked to."""
    return _saved("TIFF", tiffinfo={_IMAGE_DESCRIPTION: TEXT})


def base64_of(content: bytes) -> str:
    """As a JSON request holds a crop."""
    return base64.b64encode(content).decode()


def planted_in(output: str) -> list[str]:
    """Pieces of the key, of the images' text, and of their base64 and hex forms that `output` holds."""
    planted = [KEY, TEXT, TEXT.encode().hex()]
    for content in (png(), tiff()):
        planted += [base64_of(content), content.hex()]
    pieces = {
        text[start : start + _PIECE] for text in planted for start in range(0, len(text) - _PIECE, _PIECE)
    }
    return sorted(piece for piece in pieces if piece.lower() in output.lower())


def _saved(kind: str, **options: object) -> bytes:
    noise = random.Random(7).randbytes(40 * 16 * 3)
    buffer = io.BytesIO()
    Image.frombytes("RGB", (40, 16), noise).save(buffer, kind, **options)
    return buffer.getvalue()
