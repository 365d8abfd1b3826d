"""From rows of tables to pixels: the right part of the right image, or its error, and never a neighbour's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from clip4str.bulk import plan
from clip4str.bulk.crops import Crop, Cutter, edges
from clip4str.bulk.errors import CropError
from clip4str.bulk.inputs import Columns
from clip4str.bulk.storage import locate
from clip4str.image import prepare
from clip4str.untrusted import ImageLimits
from tests.model.bulk.pictures import BLUE, WHITE, folder, page, png, table

SIZE = (8, 16)
LIMITS = ImageLimits(max_bytes=10_000, max_pixels=1000)


def crops(path: Path, columns: Columns, base: Path | None = None, size: int = 100) -> list[Crop]:
    """All of a table's, shard by shard."""
    place = locate(str(path))
    cutter = Cutter(place, None if base is None else str(base), columns, place, LIMITS, SIZE)
    shards = plan.shards([(str(path), pq.ParquetFile(path))], columns.boxes, size)
    return [crop for shard in shards for crop in cutter.crops(shard)]


def colour(crop: Crop) -> tuple[int, ...]:
    """Of a crop of one colour."""
    assert isinstance(crop.outcome, np.ndarray), crop.outcome
    (found,) = {tuple(pixel) for pixel in crop.outcome.reshape(3, -1).T.tolist()}
    return found


def is_page(crop: Crop) -> bool:
    """Whether it is all of a page."""
    assert isinstance(crop.outcome, np.ndarray), crop.outcome
    return np.array_equal(crop.outcome, prepare(page(), SIZE))


def error(crop: Crop) -> CropError:
    assert isinstance(crop.outcome, CropError)
    return crop.outcome


def test_images_in_a_table(tmp_path: Path) -> None:
    path = table(tmp_path / "t.parquet", {"image": [png(page())], "key": [7]})
    (crop,) = crops(path, Columns(id="key"))
    assert (crop.id, crop.source, crop.number, crop.box) == ("7", str(path), None, None)
    assert is_page(crop)


def test_images_as_hugging_face_has_them(tmp_path: Path) -> None:
    path = table(tmp_path / "t.parquet", {"image": [{"bytes": png(page()), "path": "a.png"}, None]})
    good, missing = crops(path, Columns())
    assert is_page(good)
    assert error(missing) == CropError("undecodable_image", "the image is missing: its value is null")


def test_images_by_name(tmp_path: Path) -> None:
    """Beside the table, below a folder, from the root, and by URL."""
    folder(tmp_path, "words/a.png", "b.png")
    names = ["a.png", "../b.png", str(tmp_path / "b.png"), f"file://{tmp_path}/b.png"]
    path = table(tmp_path / "words/t.parquet", {"image": names})
    sources = [f"{tmp_path}/words/a.png", f"{tmp_path}/words/../b.png", names[2], names[3]]
    for found in (crops(path, Columns()), crops(path, Columns(), tmp_path / "words")):
        assert [(crop.id, crop.source) for crop in found] == list(zip("0123", sources, strict=True))
        assert all(is_page(crop) for crop in found)


def test_rows_are_numbered_over_groups_and_shards(tmp_path: Path) -> None:
    shades = [Image.new("RGB", (4, 4), (number, 0, 0)) for number in range(90)]
    path = table(tmp_path / "t", {"image": [png(shade) for shade in shades]}, rows_in_group=40)
    found = crops(path, Columns(), size=17)
    assert [(crop.id, colour(crop)) for crop in found] == [(str(n), (n, 0, 0)) for n in range(90)]


def test_boxes_are_cut_out(tmp_path: Path) -> None:
    boxes: list[list[float]] = [
        [0, 0, 20, 10],
        [20.0, 10.0, 40.0, 20.0],
        [-3.5, -1, 19.5, 9.1],
        [30, 15, 99, 99],
    ]
    path = table(
        tmp_path / "t", {"id": ["a", "b", "c"], "image": [png(page())] * 3, "words": [boxes, [], None]}
    )
    found = crops(path, Columns(id="id", boxes="words"))
    assert [(crop.id, crop.number) for crop in found] == [("a", number) for number in range(4)]
    assert [crop.box for crop in found] == [tuple(box) for box in boxes]
    assert [colour(crop) for crop in found] == [BLUE, WHITE, BLUE, WHITE]


@pytest.mark.parametrize(
    ("content", "code", "detail"),
    [
        (b"no image", "unsupported_media_type", "no image"),
        (png(page())[:60], "undecodable_image", "PNG"),
        (b"", "undecodable_image", "empty"),
        (png(Image.new("RGB", (40, 26))), "image_too_large", "40×26 pixels; at most 1000 are read"),
        (png(page()) + bytes(10_000), "image_too_large", "at most 10000 are read"),
    ],
)
def test_a_bad_image_spoils_no_neighbour(content: bytes, code: str, detail: str, tmp_path: Path) -> None:
    box = {"left": 0, "top": 0, "right": 20, "bottom": 10}
    path = table(tmp_path / "t", {"image": [png(page()), content, png(page())], "words": [[box] * 2] * 3})
    found = crops(path, Columns(boxes="words"))
    assert [crop.id for crop in found] == ["0", "0", "1", "1", "2", "2"]
    assert [colour(crop) for crop in [*found[:2], *found[4:]]] == [BLUE] * 4
    for crop in found[2:4]:
        assert error(crop).code == code
        assert detail in error(crop).detail


def test_a_missing_file_is_an_error_of_its_own(tmp_path: Path) -> None:
    folder(tmp_path, "a.png")
    found = crops(table(tmp_path / "t", {"image": ["a.png", "b.png"]}), Columns())
    assert isinstance(found[0].outcome, np.ndarray)
    assert error(found[1]).code == "unreadable_file"
    assert "No such file" in error(found[1]).detail
    assert found[1].source == str(tmp_path / "b.png")


@pytest.mark.parametrize(
    ("box", "detail"),
    [
        ([5, 5, 5, 9], "the box 5, 5, 5, 9 holds no pixel of the 40×20 image"),
        ([9, 5, 5, 9], "holds no pixel"),
        ([40, 0, 50, 20], "holds no pixel"),
        ([-9, 0, 0, 20], "holds no pixel"),
        ([0, 0, 1], "not four finite numbers"),
        ([0, 0, None, 1], "not four finite numbers"),
        ([0, 0, float("nan"), 1], "not four finite numbers"),
        ([0, 0, float("inf"), 1], "not four finite numbers"),
        (None, "not four finite numbers"),
    ],
)
def test_a_bad_box_spoils_no_neighbour(box: Any, detail: str, tmp_path: Path) -> None:
    good = [0.0, 0.0, 20.0, 10.0]
    path = table(tmp_path / "t", {"image": [png(page())], "words": [[good, box, good]]})
    first, bad, last = crops(path, Columns(boxes="words"))
    assert colour(first) == colour(last) == BLUE
    assert error(bad).code == "invalid_box"
    assert detail in error(bad).detail
    assert bad.number == 1


def test_boxes_as_structs() -> None:
    assert edges({"bottom": 4, "left": 1, "right": 3.5, "top": 2}) == (1.0, 2.0, 3.5, 4.0)
    assert edges({"bottom": 4, "left": 1, "right": None, "top": 2}) is None
