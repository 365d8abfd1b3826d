"""Rows of a table of images to crops as the model sees them, or errors in their place."""

from __future__ import annotations

import math
import posixpath
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow.parquet as pq
from PIL import Image

from clip4str.bulk.errors import INVALID_BOX, UNREADABLE, CropError
from clip4str.bulk.inputs import EDGES, Columns
from clip4str.bulk.plan import Shard
from clip4str.bulk.storage import Place, locate
from clip4str.image import Pixels, prepare
from clip4str.untrusted import UNDECODABLE, ImageError, ImageLimits, loaded, opened

Box = tuple[float, float, float, float]
"""Left, top, right, bottom."""

_THREADS = 8  # that fetch and decode: an object store is slow to answer, not slow to deliver
_AHEAD = 2 * _THREADS  # images
_PAGE_BYTES = 1 << 20  # of a table's file, read at a time
_ROWS = 16  # of a table, held at a time: pages may have megabytes each


@dataclass(frozen=True, slots=True)
class Crop:
    """Pixels of one crop, uint8 [3, H, W], or why there are none, and where it is from.

    `number` is its box's in the image's list, from 0 on, and `box` as it was given; both are None where the crop is
    the whole image, `box` also where there are no four numbers.
    """

    id: str
    source: str
    number: int | None
    box: Box | None
    outcome: Pixels | CropError


class Cutter:
    """Reads shards' tables and cuts crops of `size` (height, width). Threads fetch and decode some images ahead."""

    def __init__(
        self,
        tables: Place,
        base: str | None,
        columns: Columns,
        images: Place,
        limits: ImageLimits,
        size: tuple[int, int],
    ) -> None:
        """`images` is where tables' relative names are looked up: below `base`, or else beside the table."""
        self._tables, self._images = tables, images
        self._base, self._columns, self._limits, self._size = base, columns, limits, size
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="cutter")

    def crops(self, shard: Shard) -> Iterator[Crop]:
        """All crops of a shard, in order. Raises OSError when the storage fails."""
        waiting: deque[Future[list[Crop]]] = deque()
        try:
            for number, row in self._rows(shard):
                waiting.append(self._pool.submit(self._cut, shard.file, number, row))
                if len(waiting) == _AHEAD:
                    yield from waiting.popleft().result()
            while waiting:
                yield from waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()

    def _rows(self, shard: Shard) -> Iterator[tuple[int, dict[str, Any]]]:
        """The shard's rows with their numbers in the file."""
        with self._tables.filesystem.open_input_file(shard.file) as file:
            table = pq.ParquetFile(file, buffer_size=_PAGE_BYTES)
            first = sum(table.metadata.row_group(group).num_rows for group in range(shard.row_group))
            number, end = first, first + shard.start + shard.rows
            for batch in table.iter_batches(_ROWS, row_groups=[shard.row_group], columns=self._columns.names):
                skipped = min(max(first + shard.start - number, 0), batch.num_rows)
                wanted = batch.slice(skipped, max(0, end - number - skipped))
                yield from enumerate(wanted.to_pylist(), number + skipped)
                number += batch.num_rows
                if number >= end:
                    return

    def _cut(self, file: str, number: int, row: dict[str, Any]) -> list[Crop]:
        columns = self._columns
        value = row[columns.image]
        given = None if columns.id is None else row[columns.id]
        name = str(number if given is None else given)
        boxes = [] if columns.boxes is None else row[columns.boxes] or []
        if columns.boxes is not None and not boxes:
            return []  # and nothing need be fetched
        place, path = self._place(file, value) if isinstance(value, str) else (self._tables, file)
        image: Image.Image | CropError
        try:
            content = _content(place, path, self._limits.max_bytes + 1) if isinstance(value, str) else value
            image = _decoded(content, self._limits)
        except (FileNotFoundError, PermissionError, IsADirectoryError) as error:
            image = CropError(UNREADABLE, " ".join(str(error).split()))
        source = place.url(path)
        if columns.boxes is None:
            return [Crop(name, source, None, None, self._prepared(image))]
        return [
            Crop(name, source, at, edges(box), self._boxed(image, edges(box))) for at, box in enumerate(boxes)
        ]

    def _place(self, file: str, name: str) -> tuple[Place, str]:
        if "://" in name:
            place = locate(name)
            return place, place.path
        base = posixpath.dirname(file) if self._base is None else self._base
        return self._images, posixpath.join(base, name)

    def _boxed(self, image: Image.Image | CropError, box: Box | None) -> Pixels | CropError:
        if isinstance(image, CropError):
            return image
        if box is None:
            return CropError(INVALID_BOX, f"the box is not four finite numbers: {', '.join(EDGES)}")
        left, top = max(0, math.floor(box[0])), max(0, math.floor(box[1]))
        right, bottom = min(image.width, math.ceil(box[2])), min(image.height, math.ceil(box[3]))
        if left >= right or top >= bottom:
            edges_text = ", ".join(f"{edge:g}" for edge in box)
            return CropError(
                INVALID_BOX, f"the box {edges_text} holds no pixel of the {image.width}×{image.height} image"
            )
        return self._prepared(image.crop((left, top, right, bottom)))

    def _prepared(self, image: Image.Image | CropError) -> Pixels | CropError:
        return image if isinstance(image, CropError) else prepare(image, self._size)


def edges(box: object) -> Box | None:
    """A box as a table has it, a list or a struct, as four finite numbers, or None."""
    values = [box.get(edge) for edge in EDGES] if isinstance(box, dict) else box
    if not isinstance(values, list) or len(values) != len(EDGES):
        return None
    numbers = [float(value) for value in values if isinstance(value, int | float) and math.isfinite(value)]
    return (numbers[0], numbers[1], numbers[2], numbers[3]) if len(numbers) == len(EDGES) else None


def _content(place: Place, path: str, most: int) -> bytes:
    with place.filesystem.open_input_stream(path, compression=None) as stream:
        return bytes(stream.read(most))


def _decoded(content: object, limits: ImageLimits) -> Image.Image | CropError:
    if isinstance(content, dict):
        content = content["bytes"]
    if not isinstance(content, bytes):
        return CropError(UNDECODABLE, "the image is missing: its value is null")
    try:
        return loaded(opened(content, limits))
    except ImageError as error:
        return CropError(error.code, str(error))
