"""Downloads the way each host offers them: Zenodo's list of files, and Hugging Face through its own library."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest

from clip4str.fetch import Fetched, fetch
from clip4str.registry import HubFile, ZenodoFile
from clip4str.transfer import FetchError
from tests.model.downloads import CONTENT, SHA256, assert_whole, published
from tests.model.file_server import COMMIT, Site


class TestZenodo:
    """The record's list of files says where the file is, and its MD5."""

    def listing(self, site: Site, key: str = "clip4str_abc.ckpt", md5: str = "") -> dict[str, object]:
        checksum = f"md5:{md5 or hashlib.md5(CONTENT, usedforsecurity=False).hexdigest()}"
        return {
            "key": key,
            "size": len(CONTENT),
            "checksum": checksum,
            "links": {"self": f"{site.url}/content"},
        }

    def fetch(self, site: Site, folder: Path) -> Fetched:
        return fetch(published(ZenodoFile(f"{site.url}/record", "abc")), folder)

    def test_found_by_its_fragment(self, site: Site, tmp_path: Path) -> None:
        site.record = {"files": [self.listing(site), self.listing(site, key="clip4str_def.ckpt")]}
        fetched = self.fetch(site, tmp_path)
        assert fetched.path == tmp_path / "clip4str_abc.ckpt"
        assert_whole(fetched, tmp_path)

    def test_wrong_md5(self, site: Site, tmp_path: Path) -> None:
        site.record = {"files": [self.listing(site, md5="0" * 32)]}
        with pytest.raises(FetchError, match="not 00000000000000000000000000000000 as its host states"):
            self.fetch(site, tmp_path)

    @pytest.mark.parametrize("record", [None, [], {"files": 3}, {"files": [{"key": "abc"}]}])
    def test_no_listing(self, record: object, site: Site, tmp_path: Path) -> None:
        site.record = record
        with pytest.raises(FetchError, match="no list of files"):
            self.fetch(site, tmp_path)

    def test_not_in_the_record(self, site: Site, tmp_path: Path) -> None:
        site.record = {"files": [self.listing(site, key="other.ckpt")]}
        with pytest.raises(FetchError, match="lists 0 files with abc"):
            self.fetch(site, tmp_path)

    def test_no_record(self, tmp_path: Path) -> None:
        with pytest.raises(FetchError, match="refused"):
            fetch(published(ZenodoFile("http://127.0.0.1:9/record", "abc")), tmp_path)


class TestHub:
    """Through huggingface_hub, whose server we imitate: it states the SHA-256 of large files."""

    @pytest.fixture(autouse=True)
    def endpoint(self, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
        constants = huggingface_hub.constants
        monkeypatch.setattr(constants, "ENDPOINT", site.url)
        template = site.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 10_000)

    def fetch(self, folder: Path, sha256: str | None = None) -> Fetched:
        return fetch(published(HubFile("some/one", "model.pt", COMMIT), sha256), folder)

    def test_checksum_of_the_hub(self, tmp_path: Path) -> None:
        fetched = self.fetch(tmp_path)
        assert fetched.stated
        assert_whole(fetched, tmp_path)

    def test_broken_connections_are_continued(self, site: Site, tmp_path: Path) -> None:
        site.cuts = [100_000]
        assert_whole(self.fetch(tmp_path), tmp_path)
        assert site.requests[-1]["Range"] == "bytes=100000-"

    def test_another_checksum_than_published(self, tmp_path: Path) -> None:
        with pytest.raises(FetchError, match=f"not {'0' * 64} as its host states"):
            self.fetch(tmp_path, sha256="0" * 64)
        assert not (tmp_path / "model.pt").exists()

    def test_no_such_file(self, site: Site, tmp_path: Path) -> None:
        site.statuses = [404]
        with pytest.raises(FetchError, match=r"some/one on Hugging Face: .*404"):
            self.fetch(tmp_path)


def test_command(site: Site, tmp_path: Path) -> None:
    """The whole way, with the registry's own table: only the hub's address is ours."""
    environment = {**os.environ, "HF_ENDPOINT": site.url, "CLIP4STR_CACHE_DIR": str(tmp_path)}
    command = [str(Path(sys.executable).with_name("clip4str")), "fetch", "large14"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    path = tmp_path / "clip4str_large_3c9d881b88.pt"
    assert done.stdout.splitlines() == [
        str(path),
        f"sha256 {SHA256} (as stated by its host)",
        "use it with --model large14-rbu",
    ]
    assert path.read_bytes() == CONTENT
