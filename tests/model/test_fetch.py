"""Downloads from a local server that breaks off, lies, changes its mind; what is kept, and what is said."""

from __future__ import annotations

import hashlib
import io
import os
import resource
import signal
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest

from clip4str import fetch as module
from clip4str.cli import main
from clip4str.fetch import Fetched, FetchError, fetch
from clip4str.registry import PUBLISHED, HubFile, Published, WebFile, ZenodoFile, record_path
from tests.model.file_server import COMMIT, Site, serving


def archive(seed: int = 0, size: int = 300_000) -> bytes:
    """A zip archive, as every checkpoint is one."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("archive/data.pkl", bytes([seed]) * size)
    return buffer.getvalue()


CONTENT = archive()
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setattr(module, "_PAUSE_S", 0.0)
    monkeypatch.setattr(module, "_CHUNK", 10_000)
    with serving(CONTENT) as site:
        yield site


def published(location: HubFile | WebFile | ZenodoFile, sha256: str | None = None) -> Published:
    return Published("some", "base16", location, "CLIP", "words", (), sha256=sha256)


def fetch_web(site: Site, folder: Path, sha256: str | None = SHA256, path: str = "model.ckpt") -> Fetched:
    return fetch(published(WebFile(f"{site.url}/{path}"), sha256), folder)


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


def begin(site: Site, folder: Path, length: int = 100_000) -> None:
    """Leave an unfinished download of `length` bytes."""
    site.cuts = [length] + [0] * 4
    with pytest.raises(FetchError, match="fetch again to continue"):
        fetch_web(site, folder)
    assert (folder / "model.ckpt.part").read_bytes() == CONTENT[:length]
    site.requests.clear()


def test_whole_file_in_a_new_folder(site: Site, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "cache"
    fetched = fetch_web(site, folder)
    assert_whole(fetched, folder)
    assert fetched.stated
    assert len(site.requests) == 1


def test_redirect_is_followed(site: Site, tmp_path: Path) -> None:
    assert fetch_web(site, tmp_path, path="moved").path.read_bytes() == CONTENT


def test_broken_connections_are_continued(site: Site, tmp_path: Path) -> None:
    site.cuts = [50_000] * 4
    assert_whole(fetch_web(site, tmp_path), tmp_path)
    assert [headers["Range"] for headers in site.requests] == [None] + [
        f"bytes={50_000 * n}-" for n in (1, 2, 3, 4)
    ]


def test_a_later_fetch_continues(site: Site, tmp_path: Path) -> None:
    begin(site, tmp_path)
    assert_whole(fetch_web(site, tmp_path), tmp_path)
    assert [headers["Range"] for headers in site.requests] == ["bytes=100000-"]


def test_a_server_without_ranges_sends_all_again(site: Site, tmp_path: Path) -> None:
    begin(site, tmp_path)
    site.ranges = False
    assert_whole(fetch_web(site, tmp_path), tmp_path)


def test_a_server_without_ranges_that_always_breaks_off_is_given_up(site: Site, tmp_path: Path) -> None:
    site.ranges = False
    site.cuts = [50_000] * 100
    with pytest.raises(FetchError, match="5 tries"):
        fetch_web(site, tmp_path)
    assert len(site.requests) == 5


def test_a_changed_file_is_fetched_from_its_start(site: Site, tmp_path: Path) -> None:
    begin(site, tmp_path)
    site.content, site.etag = archive(seed=1), '"second"'
    fetched = fetch_web(site, tmp_path, sha256=None)
    assert fetched.path.read_bytes() == site.content
    assert site.requests[0]["If-Range"] == '"first"'


@pytest.mark.parametrize("etag", ['W/"weak"', "unquoted"])
def test_without_a_strong_etag_nothing_is_continued(etag: str, site: Site, tmp_path: Path) -> None:
    site.etag = etag
    site.cuts = [100_000]
    assert_whole(fetch_web(site, tmp_path), tmp_path)
    assert [headers["Range"] for headers in site.requests] == [None, None]


def test_a_download_that_only_lacked_its_name_is_not_repeated(site: Site, tmp_path: Path) -> None:
    begin(site, tmp_path)
    (tmp_path / "model.ckpt.part").write_bytes(CONTENT)
    assert_whole(fetch_web(site, tmp_path), tmp_path)
    assert len(site.requests) == 1


def test_a_part_longer_than_the_file_is_dropped(site: Site, tmp_path: Path) -> None:
    begin(site, tmp_path)
    (tmp_path / "model.ckpt.part").write_bytes(CONTENT + b"more")
    assert_whole(fetch_web(site, tmp_path), tmp_path)


def test_a_range_that_was_not_asked_for_is_not_appended(site: Site, tmp_path: Path) -> None:
    begin(site, tmp_path)
    site.wrong_range = True
    assert_whole(fetch_web(site, tmp_path), tmp_path)


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_server_is_asked_again(status: int, site: Site, tmp_path: Path) -> None:
    site.statuses = [status, status]
    assert_whole(fetch_web(site, tmp_path), tmp_path)


def test_a_server_that_stays_broken_is_given_up(site: Site, tmp_path: Path) -> None:
    site.statuses = [500] * 10
    with pytest.raises(FetchError, match=r"some: http.*answers 500 .*\(5 tries\)"):
        fetch_web(site, tmp_path)
    assert len(site.requests) == 5


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_refusal_is_final(status: int, site: Site, tmp_path: Path) -> None:
    site.statuses = [status]
    with pytest.raises(FetchError, match=f"answers {status}"):
        fetch_web(site, tmp_path)
    assert len(site.requests) == 1


def test_a_silent_server_is_given_up(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_TIMEOUT_S", 0.2)
    site.length = len(CONTENT) + 1  # the last byte never comes
    with pytest.raises(FetchError, match="timed out"):
        fetch_web(site, tmp_path)


@pytest.mark.usefixtures("site")
def test_nobody_listens(tmp_path: Path) -> None:
    with pytest.raises(FetchError, match="5 tries"):
        fetch(published(WebFile("http://127.0.0.1:9/model.ckpt")), tmp_path)


def test_a_web_page_is_no_checkpoint(site: Site, tmp_path: Path) -> None:
    site.content_type = "text/html; charset=utf-8"
    with pytest.raises(FetchError, match="web page"):
        fetch_web(site, tmp_path)


def test_what_is_no_archive_is_not_kept(site: Site, tmp_path: Path) -> None:
    site.content = b"<html>sign in</html>"
    with pytest.raises(FetchError, match="no checkpoint"):
        fetch_web(site, tmp_path, sha256=None)
    assert not list(tmp_path.glob("model.ckpt*.part"))
    assert not (tmp_path / "model.ckpt").exists()


def test_another_checksum_than_published(site: Site, tmp_path: Path) -> None:
    site.content = archive(seed=1)
    with pytest.raises(FetchError, match=f"not {SHA256} as its host states"):
        fetch_web(site, tmp_path)
    assert not (tmp_path / "model.ckpt").exists()
    site.content = CONTENT
    assert_whole(fetch_web(site, tmp_path), tmp_path)


def test_the_first_download_is_believed_and_later_ones_held_to_it(site: Site, tmp_path: Path) -> None:
    fetched = fetch_web(site, tmp_path, sha256=None)
    assert_whole(fetched, tmp_path)
    assert not fetched.stated
    fetched.path.unlink()
    site.content, site.etag = archive(seed=1), '"second"'
    with pytest.raises(FetchError, match=f"not {SHA256} as was recorded at the first download"):
        fetch_web(site, tmp_path, sha256=None)


def test_a_file_that_is_there_is_checked_not_fetched(site: Site, tmp_path: Path) -> None:
    path = fetch_web(site, tmp_path).path
    assert_whole(fetch_web(site, tmp_path), tmp_path)
    assert len(site.requests) == 1
    path.write_bytes(CONTENT[:-1])
    with pytest.raises(FetchError, match="damaged; remove it"):
        fetch_web(site, tmp_path)


def test_a_file_put_there_by_hand_is_recorded(site: Site, tmp_path: Path) -> None:
    (tmp_path / "model.ckpt").write_bytes(CONTENT)
    fetched = fetch_web(site, tmp_path, sha256=None)
    assert record_path(fetched.path).read_text().startswith(SHA256)
    assert not site.requests


def test_no_room(site: Site, tmp_path: Path) -> None:
    site.length = 10**18
    with pytest.raises(FetchError, match=r"1000000000\.00 GB are to come.*make room"):
        fetch_web(site, tmp_path)


def test_a_disk_that_fills_up_keeps_what_came(site: Site, tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))  # as a full disk: write() fails
    try:
        with pytest.raises(FetchError, match=r"model\.ckpt\.part cannot be written"):
            fetch_web(site, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert_whole(fetch_web(site, tmp_path), tmp_path)
    assert site.requests[-1]["Range"] == "bytes=50000-"


def test_one_download_a_folder(site: Site, tmp_path: Path) -> None:
    with module._alone(tmp_path), pytest.raises(FetchError, match="another download"):
        fetch_web(site, tmp_path)
    assert_whole(fetch_web(site, tmp_path), tmp_path)


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


def test_stopped_by_the_user(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(PUBLISHED, "base16-real", published(WebFile(f"{site.url}/model.ckpt"), SHA256))
    site.length = len(CONTENT) + 1  # then the server falls silent
    main_thread = threading.main_thread().ident
    assert main_thread is not None
    timer = threading.Timer(0.5, signal.pthread_kill, (main_thread, signal.SIGINT))
    timer.start()
    assert main(["fetch", "base16-real", "--dir", str(tmp_path)]) == 2
    timer.join()
    assert capsys.readouterr().err == (
        "clip4str fetch: stopped; the same command continues where it broke off\n"
    )
    assert (tmp_path / "model.ckpt.part").read_bytes() == CONTENT[:300_000]  # whole chunks


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
