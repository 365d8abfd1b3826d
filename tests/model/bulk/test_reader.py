"""A worker's part without Ray, with a model of few weights: what goes into a file of results."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from clip4str.bulk import reader
from clip4str.bulk.errors import BulkError
from clip4str.bulk.inputs import Columns
from clip4str.bulk.job import Job, Work, work
from clip4str.bulk.reader import Outcome, Reader
from clip4str.checkpoint import load
from clip4str.recognizer import Recognizer
from tests.model.bulk.pictures import page, png, table
from tests.model.small import small_model


@pytest.fixture(autouse=True)
def _threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "fit_threads", lambda _: 1)  # they are the test process's as well
    monkeypatch.setattr(reader, "_PAUSES", (0.0, 0.0))


@pytest.fixture
def model(tmp_path: Path) -> str:
    path = tmp_path / "model.pt"
    torch.save(small_model().state_dict(), path)
    return str(path)


def begun(tmp_path: Path, model: str, revision: str | None = None) -> Work:
    """A job of one page with 70 boxes, one of them bad, and of a page that is broken."""
    boxes = [[float(left), 0.0, left + 8.0, 20.0] for left in range(-20, 50)]
    images = [png(page()), png(page())[:50]]
    table(tmp_path / "in.parquet", {"id": ["a", "b"], "image": images, "words": [boxes, boxes[:2]]})
    wanted = Job(
        input=str(tmp_path / "in.parquet"),
        output=str(tmp_path / "out"),
        model=model,
        revision=revision or load(model).revision,
        columns=Columns(boxes="words"),
        precision="fp32",
    )
    return work(wanted)


def test_one_row_a_crop(tmp_path: Path, model: str) -> None:
    job = begun(tmp_path, model)
    (shard,) = job.todo
    outcome = Reader(job, "cpu", 1).read(shard)
    bad = 13 + 10  # left of the page, and right of it
    assert outcome == Outcome(0, 72, {"invalid_box": bad, "undecodable_image": 2})
    results = pq.read_table(tmp_path / "out/part-000000.parquet")
    notes = json.loads(results.schema.metadata[b"clip4str"])
    assert (notes["revision"], notes["dtype"], notes["device"]) == (job.job.revision, "float32", "cpu")
    rows = results.to_pylist()
    assert [(row["id"], row["box_number"]) for row in rows] == [("a", n) for n in range(70)] + [
        ("b", 0),
        ("b", 1),
    ]
    assert sum(row["error"] is None for row in rows) == 70 - bad
    recognizer = Recognizer.load(model, device="cpu", precision="fp32")
    for row in rows[13:60:9]:
        left = int(row["box"]["left"])
        (reading,) = recognizer.read([page().crop((max(left, 0), 0, min(left + 8, 40), 20))])
        assert (row["text"], row["agreement"]) == (reading.text, reading.agreement)
        assert row["confidence"] == pytest.approx(reading.confidence, abs=1e-5)
        assert [each["text"] for each in row["visual"]["characters"]] == list(reading.visual.text)
    assert work(job.job).todo == []


def test_another_model_is_refused(tmp_path: Path, model: str) -> None:
    job = begun(tmp_path, model, "sha256:another")
    with pytest.raises(BulkError, match=r"is sha256:[0-9a-f]{64} where it is to be used, not sha256:another"):
        Reader(job, "cpu", 1)


def test_storage_that_fails_is_tried_again(tmp_path: Path, model: str) -> None:
    job = begun(tmp_path, model)
    worker = Reader(job, "cpu", 1)
    table_file = tmp_path / "in.parquet"
    table_file.rename(tmp_path / "away.parquet")
    with pytest.raises(FileNotFoundError, match=r"in\.parquet"):
        worker.read(job.todo[0])
    (tmp_path / "away.parquet").rename(table_file)
    assert worker.read(job.todo[0]).crops == 72


def test_a_table_that_changed_is_refused(tmp_path: Path, model: str) -> None:
    job = begun(tmp_path, model)
    worker = Reader(job, "cpu", 1)
    table(tmp_path / "in.parquet", {"id": ["a"], "image": [png(page())], "words": [[[0.0, 0.0, 9.0, 9.0]]]})
    with pytest.raises(BulkError, match=r"in.parquet: has 1 crops where 72 were planned"):
        worker.read(job.todo[0])
    assert not list((tmp_path / "out").glob("part-*"))
