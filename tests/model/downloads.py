"""What the tests of downloads share: a small archive, its entry in the table, a server for it."""

from __future__ import annotations

import hashlib
import io
import zipfile
from pathlib import Path

from clip4str.fetch import Fetched
from clip4str.registry import HubFile, Published, WebFile, ZenodoFile, record_path


def archive(seed: int = 0, size: int = 300_000) -> bytes:
    """A zip archive, as every checkpoint is one."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("archive/data.pkl", bytes([seed]) * size)
    return buffer.getvalue()


CONTENT = archive()
SHA256 = hashlib.sha256(CONTENT).hexdigest()


def published(location: HubFile | WebFile | ZenodoFile, sha256: str | None = None) -> Published:
    return Published("some", "base16", location, "CLIP", "words", (), sha256=sha256)


def assert_whole(fetched: Fetched, folder: Path) -> None:
    """The file is in place, with its record, and nothing unfinished lies beside it."""
    assert fetched.path.read_bytes() == CONTENT
    assert fetched.sha256 == SHA256
    assert record_path(fetched.path).read_text() == f"{SHA256}  {fetched.path.name}\n"
    assert {path.name for path in folder.iterdir()} == {
        ".lock",
        fetched.path.name,
        record_path(fetched.path).name,
    }
