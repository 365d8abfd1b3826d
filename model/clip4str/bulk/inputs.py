"""What a job is to read: the files that its input names, as one or more tables of images.

A table is a Parquet file of one row an image: a column with its encoded bytes or its file's name, and perhaps one
with an id and one with the boxes of its words. Images in a folder become such a table first, of names.
"""

from __future__ import annotations

import io
import posixpath
import re
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from clip4str.bulk.errors import BulkError
from clip4str.bulk.storage import Place

EDGES = ("left", "top", "right", "bottom")
"""A box's fields, in pixels of the upright image; right and bottom are the first column and row outside."""

_IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")
_TABLE_SUFFIX = ".parquet"


@dataclass(frozen=True, slots=True)
class Columns:
    """Which columns of a table hold what. Without `id`, rows are numbered; without `boxes`, an image is a crop."""

    image: str = "image"
    id: str | None = None
    boxes: str | None = None

    @property
    def names(self) -> list[str]:
        """Those to be read."""
        return [name for name in (self.image, self.id, self.boxes) if name is not None]


@dataclass(frozen=True, slots=True)
class Found:
    """Files by their paths, in order, and their sizes in bytes: all tables, or all images below the folder `base`."""

    base: str
    files: dict[str, int]
    are_tables: bool


def find(place: Place) -> Found:
    """The files that a folder, a file or a pattern stands for. Raises BulkError, OSError.

    In a pattern, `*` is any part of a name, and `**/` any folders.
    """
    path = place.path
    if "*" in path:
        base = posixpath.dirname(path[: path.index("*")])
        pattern = _compiled(path)
        files = Place(place.filesystem, base, place.prefix).files()
        files = {name: size for name, size in files.items() if pattern.fullmatch(name)}
    else:
        info = place.filesystem.get_file_info(path)
        base = path if not info.is_file else posixpath.dirname(path)
        files = {path: info.size} if info.is_file else place.files()
    kinds = [_of_kind(files, (_TABLE_SUFFIX,)), _of_kind(files, _IMAGE_SUFFIXES)]
    if not any(kinds):
        raise BulkError(
            f"{place.url(path)}: there is no Parquet file and no image ({', '.join(_IMAGE_SUFFIXES)})"
        )
    if all(kinds):
        raise BulkError(
            f"{place.url(path)}: holds Parquet files and images; name one kind, such as '{place.url(base)}/*.parquet'"
        )
    return Found(base, kinds[0] or kinds[1], bool(kinds[0]))


def _of_kind(files: dict[str, int], suffixes: tuple[str, ...]) -> dict[str, int]:
    return {path: size for path, size in files.items() if path.lower().endswith(suffixes)}


def _compiled(pattern: str) -> re.Pattern[str]:
    meanings = {"**/": "(?:[^/]+/)*", "**": ".*", "*": "[^/]*"}
    parts = re.split(r"(\*\*/|\*\*|\*)", pattern)
    return re.compile("".join(meanings.get(part) or re.escape(part) for part in parts))


def table_of_images(found: Found, rows_in_group: int) -> bytes:
    """A Parquet file of the images' names below `found.base`, which are their ids too."""
    names = [posixpath.relpath(path, found.base) for path in found.files]
    content = io.BytesIO()
    pq.write_table(pa.table({"id": names, "image": names}), content, row_group_size=rows_in_group)
    return content.getvalue()


def chosen(wanted: Columns, schema: pa.Schema, file: str) -> Columns:
    """The columns of a table to be read: those wanted, and `id` where there is one. Raises BulkError."""
    for option, name in (("image", wanted.image), ("id", wanted.id), ("boxes", wanted.boxes)):
        if name is not None and name not in schema.names:
            raise BulkError(
                f"{file}: has no column {name!r} (--{option}-column); it has {', '.join(schema.names)}"
            )
    if not _holds_images(schema.field(wanted.image).type):
        raise BulkError(
            f"{file}: column {wanted.image!r} is {schema.field(wanted.image).type}: expected binary (an encoded "
            "image), string (a file's name) or a struct with `bytes`"
        )
    if wanted.boxes is not None and not _holds_boxes(schema.field(wanted.boxes).type):
        raise BulkError(
            f"{file}: column {wanted.boxes!r} is {schema.field(wanted.boxes).type}: expected a list of boxes, each a "
            f"list of four numbers or a struct of {', '.join(EDGES)}"
        )
    name = wanted.id or ("id" if "id" in schema.names else None)
    return Columns(wanted.image, name, wanted.boxes)


def _holds_images(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):  # as Hugging Face's data sets have it
        return any(field.name == "bytes" and _is_binary(field.type) for field in kind)
    return _is_binary(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _holds_boxes(kind: pa.DataType) -> bool:
    if not _is_list(kind):
        return False
    box = kind.value_type
    if pa.types.is_struct(box):
        kinds = {field.name: field.type for field in box}
        return all(edge in kinds and _is_number(kinds[edge]) for edge in EDGES)
    return _is_list(box) and _is_number(box.value_type)


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))
