"""Shards hold each crop once, keep to their row groups, and are near the size asked for."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clip4str.bulk import plan
from clip4str.bulk.plan import Shard
from tests.model.bulk.pictures import table

BOX = [0.0, 0.0, 1.0, 1.0]


def planned(path: Path, boxes: str | None, size: int) -> list[Shard]:
    return list(plan.shards([("t", pq.ParquetFile(path))], boxes, size))


def test_rows_are_divided_within_their_groups(tmp_path: Path) -> None:
    path = table(tmp_path / "t", {"image": [b""] * 25}, rows_in_group=10)
    runs = [
        (each.number, each.row_group, each.start, each.rows, each.crops) for each in planned(path, None, 4)
    ]
    assert runs == [
        (0, 0, 0, 4, 4),
        (1, 0, 4, 4, 4),
        (2, 0, 8, 2, 2),
        (3, 1, 0, 4, 4),
        (4, 1, 4, 4, 4),
        (5, 1, 8, 2, 2),
        (6, 2, 0, 4, 4),
        (7, 2, 4, 1, 1),
    ]
    assert planned(path, None, 4)[7].result == "part-000007.parquet"


def test_shards_of_several_tables_are_numbered_on(tmp_path: Path) -> None:
    files = [pq.ParquetFile(table(tmp_path / name, {"image": [b""] * 3})) for name in "ab"]
    made = list(plan.shards(zip("ab", files, strict=True), None, 2))
    assert [(each.number, each.file) for each in made] == [(0, "a"), (1, "a"), (2, "b"), (3, "b")]


@given(
    st.lists(st.one_of(st.none(), st.integers(0, 9)), min_size=1, max_size=40),
    st.integers(1, 12),
    st.integers(1, 40),
)
def test_each_box_is_in_one_shard(
    tmp_path_factory: pytest.TempPathFactory, counts: list[int | None], size: int, group: int
) -> None:
    boxes = [None if each is None else [BOX] * each for each in counts]
    path = tmp_path_factory.mktemp("plan") / "t"
    table(path, {"image": [b""] * len(boxes), "boxes": boxes}, rows_in_group=group)
    made = planned(path, "boxes", size) if any(boxes) else []
    of_rows: list[int] = []
    for shard in made:
        first = shard.row_group * group + shard.start
        rows = range(first, first + shard.rows)
        assert shard.crops == sum(counts[row] or 0 for row in rows) > 0
        assert shard.crops - (counts[rows[-1]] or 0) < size or shard.rows == 1
        of_rows += rows
    assert len(of_rows) == len(set(of_rows))
    assert sum(shard.crops for shard in made) == sum(each or 0 for each in counts)


def test_a_plan_is_kept(tmp_path: Path) -> None:
    made = planned(table(tmp_path / "t", {"image": [b""] * 25}), None, 4)
    assert plan.unpacked(plan.packed(made)) == made
