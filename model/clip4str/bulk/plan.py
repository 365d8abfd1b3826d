"""How a job is divided: into shards, each a run of rows of one table and one file of results."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import count

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

_SCHEMA = pa.schema(
    {
        "number": pa.int64(),
        "file": pa.string(),
        "row_group": pa.int32(),
        "start": pa.int64(),
        "rows": pa.int64(),
        "crops": pa.int64(),
    }
)


@dataclass(frozen=True, slots=True)
class Shard:
    """`rows` rows of the table at the path `file`, from the `start`-th of its row group on, with so many `crops`."""

    number: int
    file: str
    row_group: int
    start: int
    rows: int
    crops: int

    @property
    def result(self) -> str:
        """The name of its file of results."""
        return f"part-{self.number:06d}.parquet"


def shards(tables: Iterable[tuple[str, pq.ParquetFile]], boxes: str | None, size: int) -> Iterator[Shard]:
    """Divide tables, each with its path, into shards of about `size` crops, none of more than one image more.

    Shards end with their row group: a Parquet file is read from the beginning of one. An image without boxes, where
    there is a column of `boxes`, is of no crop; one with a thousand is not divided.
    """
    numbers = count()
    for file, table in tables:
        for group in range(table.num_row_groups):
            for start, rows, crops in _runs(table, group, boxes, size):
                yield Shard(next(numbers), file, group, start, rows, crops)


def _runs(table: pq.ParquetFile, group: int, boxes: str | None, size: int) -> Iterator[tuple[int, int, int]]:
    rows = table.metadata.row_group(group).num_rows
    if boxes is None:
        for start in range(0, rows, size):
            length = min(size, rows - start)
            yield start, length, length
        return
    column = table.read_row_group(group, columns=[boxes]).column(0)
    start = crops = 0
    for row, length in enumerate(pc.fill_null(pc.list_value_length(column), 0).to_pylist()):
        crops += length
        if crops >= size:
            yield start, row + 1 - start, crops
            start, crops = row + 1, 0
    if crops:
        yield start, rows - start, crops


def packed(plan: list[Shard]) -> bytes:
    """A plan as a Parquet file."""
    content = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([asdict(shard) for shard in plan], schema=_SCHEMA), content)
    return content.getvalue()


def unpacked(content: bytes) -> list[Shard]:
    """What was packed. Raises pyarrow.ArrowException, KeyError or TypeError for anything else."""
    return [Shard(**row) for row in pq.read_table(io.BytesIO(content)).to_pylist()]
