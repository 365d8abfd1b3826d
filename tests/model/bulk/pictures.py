"""Images and tables to plan and cut."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageDraw

WHITE, BLUE = (255, 255, 255), (20, 60, 200)


def page() -> Image.Image:
    """40×20 pixels: white, its top left quarter blue."""
    image = Image.new("RGB", (40, 20), WHITE)
    ImageDraw.Draw(image).rectangle((0, 0, 19, 9), fill=BLUE)
    return image


def png(image: Image.Image) -> bytes:
    content = io.BytesIO()
    image.save(content, "PNG")
    return content.getvalue()


def folder(path: Path, *names: str) -> Path:
    """A folder of pages."""
    for name in names:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(png(page()))
    return path


def table(path: Path, columns: dict[str, Any], rows_in_group: int | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, row_group_size=rows_in_group)
    return path
