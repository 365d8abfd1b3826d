"""What is pinned when a job begins, and what a job that goes on must agree with."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from clip4str.bulk.errors import BulkError
from clip4str.bulk.inputs import Columns
from clip4str.bulk.job import Job, finish, work
from tests.model.bulk.pictures import folder, table


def job(tmp_path: Path, **others: Any) -> Job:
    wanted = {"input": str(tmp_path / "in"), "shard_crops": 2, **others}
    return Job(output=str(tmp_path / "out"), model="default", revision="sha256:1", **wanted)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return folder(tmp_path / "in", "a.png", "b.png", "c.png", "d.png", "e.png")


def test_a_job_goes_on_with_what_is_left(images: Path, tmp_path: Path) -> None:
    begun = work(job(tmp_path))
    assert (begun.crops, [shard.crops for shard in begun.todo]) == (5, [2, 2, 1])
    (tmp_path / "out/part-000001.parquet").write_bytes(b"")
    (tmp_path / "out/_job/unfinished/half").write_bytes(b"")
    (images / "f.png").write_bytes(b"")  # too late
    again = work(job(tmp_path))
    assert again.shards == begun.shards
    assert [shard.number for shard in again.todo] == [0, 2]
    assert (again.base, again.tables, again.columns) == (str(images), str(tmp_path / "out"), Columns(id="id"))
    finish(again)
    assert not (tmp_path / "out/_job/unfinished/half").exists()


def test_a_job_of_tables_goes_on_with_what_is_left(tmp_path: Path) -> None:
    for name in ("1.parquet", "2.parquet"):
        table(tmp_path / "in" / name, {"image": [b""] * 3, "words": [[[0, 0, 9, 9]] * 2] * 3})
    wanted = job(tmp_path, columns=Columns(boxes="words"))
    begun = work(wanted)
    assert (begun.crops, [shard.crops for shard in begun.todo]) == (12, [2] * 6)
    assert work(wanted) == begun
    table(tmp_path / "in/2.parquet", {"image": [b"other"] * 3, "words": [[[0, 0, 9, 9]] * 2] * 3})
    with pytest.raises(BulkError, match=r"^.*/in/2.parquet: has changed since the job was begun"):
        work(wanted)


@pytest.mark.parametrize(
    ("others", "named"),
    [
        ({"input": "/elsewhere"}, "input .*/in, not /elsewhere"),
        ({"revision": "sha256:2"}, "model sha256:1, not sha256:2"),
        ({"columns": Columns(image="picture")}, "image-column image, not picture"),
        ({"top_k": 2}, "top-k 0, not 2"),
        ({"charset": "digits"}, "charset None, not digits"),
        ({"precision": "fp32"}, "precision auto, not fp32"),
        ({"max_pixels": 9}, "max-pixels 64000000, not 9"),
        ({"shard_crops": 3}, "shard-crops 2, not 3"),
    ],
)
@pytest.mark.usefixtures("images")
def test_other_options_are_refused(others: dict[str, Any], named: str, tmp_path: Path) -> None:
    wanted = job(tmp_path)
    work(wanted)
    with pytest.raises(BulkError, match=f"^{tmp_path}/out: was begun with {named}: use the same") as refused:
        work(replace(wanted, **others))
    assert len(str(refused.value).splitlines()) == 1


def test_every_option_is_pinned(tmp_path: Path) -> None:
    """A field that comes to be must not be forgotten: two jobs' results would be mixed."""
    assert set(job(tmp_path).pinned()) == {
        "input",
        "model",
        "image-column",
        "id-column",
        "boxes-column",
        "precision",
        "top-k",
        "charset",
        "max-pixels",
        "shard-crops",
    }


def test_planning_that_was_cut_short_begins_anew(images: Path, tmp_path: Path) -> None:
    begun = work(job(tmp_path))
    (tmp_path / "out/_job/manifest.json").unlink()
    (images / "f.png").write_bytes(b"")
    assert work(job(tmp_path)).crops == begun.crops + 1


@pytest.mark.usefixtures("images")
def test_a_folder_of_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/thesis.docx").write_bytes(b"")
    with pytest.raises(BulkError, match=r"holds files of no job, such as .*/thesis.docx: name a new folder"):
        work(job(tmp_path))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.docx"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("manifest.json", b"{"),
        ("manifest.json", b"[]"),
        ("manifest.json", b'{"format": 1}'),
        ("plan.parquet", b"PAR1"),
    ],
)
@pytest.mark.usefixtures("images")
def test_a_damaged_job_is_refused(name: str, content: bytes, tmp_path: Path) -> None:
    work(job(tmp_path))
    (tmp_path / "out/_job" / name).write_bytes(content)
    with pytest.raises(BulkError, match="its _job folder is damaged"):
        work(job(tmp_path))


@pytest.mark.usefixtures("images")
def test_a_job_of_another_version_is_refused(tmp_path: Path) -> None:
    work(job(tmp_path))
    manifest = tmp_path / "out/_job/manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "format": 2}))
    with pytest.raises(BulkError, match="was begun by another version of this program"):
        work(job(tmp_path))


@pytest.mark.usefixtures("images")
def test_images_have_no_columns(tmp_path: Path) -> None:
    with pytest.raises(BulkError, match="holds images, which have no columns"):
        work(job(tmp_path, columns=Columns(boxes="words")))
    assert not (tmp_path / "out").exists()


def test_a_file_that_is_no_table_is_named(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.parquet").write_bytes(b"no table")
    with pytest.raises(BulkError, match=r"/in/a.parquet: not a readable Parquet file"):
        work(job(tmp_path))
