"""Files by path and by URL, and that they appear whole."""

from __future__ import annotations

from pathlib import Path

import fsspec
import pytest
from pyarrow import fs

from clip4str.bulk.errors import BulkError
from clip4str.bulk.storage import Place, absolute, locate


def test_paths_and_urls_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert absolute("words") == str(tmp_path / "words")
    assert absolute("s3://bucket/words") == "s3://bucket/words"
    by_path, by_url = locate("words"), locate(f"file://{tmp_path}/words/")
    assert by_path.path == by_url.path == str(tmp_path / "words")
    assert by_path.url(by_path.inside("a.png")) == str(tmp_path / "words/a.png")
    assert by_url.url(by_url.inside("a.png")) == f"file://{tmp_path}/words/a.png"


def test_other_protocols_are_asked_of_fsspec() -> None:
    place = locate("memory://bucket/words")
    place.prepare()
    place.put(place.inside("a.txt"), b"a")
    assert place.content(place.inside("a.txt")) == b"a"
    assert place.url(place.path) == "memory://bucket/words"


def test_an_unknown_protocol_is_named() -> None:
    with pytest.raises(BulkError, match=r"^carrier-pigeon://words: no such kind of storage \("):
        locate("carrier-pigeon://words")


def test_hidden_files_are_not_listed(tmp_path: Path) -> None:
    for name in ("b.png", "a/c.png", "a/.d.png", "_job/e.png", ".git/f.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"12345")
    assert locate(str(tmp_path)).files() == {str(tmp_path / "a/c.png"): 5, str(tmp_path / "b.png"): 5}
    assert locate(str(tmp_path / "nowhere")).files() == {}
    assert locate(str(tmp_path / "_job")).files() == {str(tmp_path / "_job/e.png"): 5}


class Failing(fs.PyFileSystem):  # type: ignore[misc]
    """A file system that fails before a file gets its name."""

    def move(self, *_: object) -> None:
        raise OSError("the disk is gone")


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    place = locate(str(tmp_path / "out"))
    place.prepare()
    place.put(place.inside("a"), b"first")
    local = fsspec.filesystem("file")
    broken = Place(Failing(fs.FSSpecHandler(local)), place.path, "")
    with pytest.raises(OSError, match="the disk is gone"):
        broken.put(place.inside("a"), b"second")
    assert place.content(place.inside("a")) == b"first"
    assert place.files() == {place.inside("a"): 5}
    (unfinished,) = (tmp_path / "out/_job/unfinished").iterdir()
    assert unfinished.read_bytes() == b"second"
    place.clean()
    assert not unfinished.exists()
