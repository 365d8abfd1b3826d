"""What an input stands for, and which tables can be read."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clip4str.bulk.errors import BulkError
from clip4str.bulk.inputs import Columns, chosen, find, table_of_images
from clip4str.bulk.storage import locate
from tests.model.bulk.pictures import folder, table

NAMES = ("b.png", "a/c.JPG", "a/d/e.tif", "a/d/f.png")


def found(path: Path | str) -> list[str]:
    return list(find(locate(str(path))).files)


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("", ("a/c.JPG", "a/d/e.tif", "a/d/f.png", "b.png")),
        ("b.png", ("b.png",)),
        ("*.png", ("b.png",)),
        ("a/*/*.png", ("a/d/f.png",)),
        ("**/*.png", ("a/d/f.png", "b.png")),
        ("a/**", ("a/c.JPG", "a/d/e.tif", "a/d/f.png")),
        ("a/d/*", ("a/d/e.tif", "a/d/f.png")),
    ],
)
def test_images_by_folder_file_and_pattern(pattern: str, names: tuple[str, ...], tmp_path: Path) -> None:
    folder(tmp_path, *NAMES)
    (tmp_path / "labels.tsv").write_text("b.png\tEXIT\n")
    assert found(tmp_path / pattern) == [str(tmp_path / name) for name in names]


def test_a_folder_becomes_a_table_of_names(tmp_path: Path) -> None:
    content = table_of_images(find(locate(str(folder(tmp_path, *NAMES)))), 3)
    names = ["a/c.JPG", "a/d/e.tif", "a/d/f.png", "b.png"]
    assert pq.read_table(io.BytesIO(content)).to_pydict() == {"id": names, "image": names}
    assert pq.ParquetFile(io.BytesIO(content)).num_row_groups == 2


def test_names_are_told_from_where_the_pattern_begins(tmp_path: Path) -> None:
    content = table_of_images(find(locate(f"{folder(tmp_path, *NAMES)}/a/*/f.png")), 3)
    assert pq.read_table(io.BytesIO(content)).to_pydict() == {"id": ["d/f.png"], "image": ["d/f.png"]}


def test_tables_are_found(tmp_path: Path) -> None:
    for name in ("2.parquet", "1.parquet"):
        table(tmp_path / name, {"image": [b""]})
    inputs = find(locate(str(tmp_path)))
    assert (inputs.are_tables, list(inputs.files)) == (
        True,
        [f"{tmp_path}/1.parquet", f"{tmp_path}/2.parquet"],
    )
    assert inputs.files[f"{tmp_path}/1.parquet"] == (tmp_path / "1.parquet").stat().st_size


def test_both_kinds_or_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BulkError, match="there is no Parquet file and no image"):
        found(tmp_path / "nowhere")
    table(folder(tmp_path, "a.png") / "b.parquet", {"image": [b""]})
    with pytest.raises(
        BulkError, match=r"holds Parquet files and images; name one kind, such as '.*/\*.parquet'"
    ):
        found(tmp_path)
    assert found(tmp_path / "*.parquet") == [str(tmp_path / "b.parquet")]


BOX = pa.struct({"left": pa.int32(), "top": pa.int32(), "right": pa.int32(), "bottom": pa.int32()})


@pytest.mark.parametrize(
    "kind", [pa.binary(), pa.large_binary(), pa.string(), pa.struct({"bytes": pa.binary()})]
)
@pytest.mark.parametrize(
    "boxes", [pa.list_(BOX), pa.list_(pa.list_(pa.float32())), pa.list_(pa.list_(pa.int64(), 4))]
)
def test_columns_that_can_be_read(kind: pa.DataType, boxes: pa.DataType) -> None:
    schema = pa.schema({"id": pa.int64(), "image": kind, "words": boxes})
    assert chosen(Columns(boxes="words"), schema, "f") == Columns("image", "id", "words")
    assert chosen(Columns(boxes="words"), schema.remove(0), "f") == Columns("image", None, "words")


@pytest.mark.parametrize(
    ("columns", "problem"),
    [
        ({"image": "picture"}, r"has no column 'picture' \(--image-column\); it has image, words, boxes"),
        ({"id": "key"}, r"has no column 'key' \(--id-column\)"),
        ({"boxes": "box"}, r"has no column 'box' \(--boxes-column\)"),
        ({"image": "words"}, "column 'words' is int64: expected binary"),
        ({"boxes": "words"}, "column 'words' is int64: expected a list of boxes"),
        ({"boxes": "boxes"}, "column 'boxes' is list.*: expected a list of boxes"),
    ],
)
def test_columns_that_cannot_be_read(columns: dict[str, Any], problem: str) -> None:
    schema = pa.schema({"image": pa.binary(), "words": pa.int64(), "boxes": pa.list_(pa.int32())})
    with pytest.raises(BulkError, match=f"^s3://f: {problem}"):
        chosen(Columns(**columns), schema, "s3://f")
