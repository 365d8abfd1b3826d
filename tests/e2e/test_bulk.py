"""`clip4str batch` with the shipped model on a Ray cluster of two workers, one of which is killed half-way."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bench.bulk import Batch, shards_of, workers
from clip4str_service.samples import Sample

CROPS, SHARDS = 480, 40
BAD = range(0, CROPS, 97)


@pytest.fixture
def source(samples: list[Sample], tmp_path: Path) -> Path:
    """The samples again and again, some of them broken."""
    images = [samples[number % len(samples)].content for number in range(CROPS)]
    for number in BAD:
        images[number] = images[number][:200]
    path = tmp_path / "crops.parquet"
    pq.write_table(pa.table({"id": range(CROPS), "image": images}), path)
    return path


def test_every_crop_has_one_row_though_a_worker_is_killed(
    source: Path, samples: list[Sample], tmp_path: Path
) -> None:
    output = tmp_path / "out"
    options = ("--workers", "2", "--shard-crops", str(CROPS // SHARDS))
    batch = Batch(source, output, *options)
    batch.wait_for(SHARDS // 4)
    batch.kill_worker()
    assert len(shards_of(output)) < SHARDS, "the worker was killed too late"
    said = batch.summary()
    assert (said["crops_now"], said["shards_now"]) == (CROPS, SHARDS)
    assert said["errors_now"] == {"undecodable_image": len(BAD)}
    rows = sorted(pq.read_table(output).to_pylist(), key=lambda row: int(row["id"]))
    assert [row["id"] for row in rows] == [str(number) for number in range(CROPS)]
    for number, row in enumerate(rows):
        if number in BAD:
            assert (row["text"], row["error"]["code"]) == (None, "undecodable_image")
        else:
            assert (row["text"], row["error"]) == (samples[number % len(samples)].text, None)
    assert workers() == []

    before = shards_of(output)
    again = Batch(source, output, *options)
    assert again.summary()["shards_now"] == 0
    assert shards_of(output) == before
    refused = Batch(source, output, *options, "--top-k", "1").end()
    assert refused == (
        2,
        "",
        f"clip4str batch: {output}: was begun with top-k 0, not 1: use the same, or name a new folder\n",
    )
