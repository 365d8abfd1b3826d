"""Downloads from a local server that breaks off, lies, changes its mind; what is kept, and what is said."""

from __future__ import annotations

import resource
import signal
import struct
import threading
import time
from pathlib import Path

import pytest

from clip4str import fetch as module
from clip4str import transfer
from clip4str.cli import main
from clip4str.fetch import Fetched, fetch
from clip4str.registry import PUBLISHED, WebFile, record_path
from clip4str.transfer import FetchError
from tests.model.downloads import CONTENT, SHA256, archive, assert_whole, published
from tests.model.file_server import Site


def fetch_web(site: Site, folder: Path, sha256: str | None = SHA256, path: str = "model.ckpt") -> Fetched:
    return fetch(published(WebFile(f"{site.url}/{path}"), sha256), folder)


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


@pytest.mark.parametrize("noted", [b"", b"\xff\xfe", b'"first', b'"first"\r\nX: y'])
def test_a_damaged_note_of_the_version_is_none(noted: bytes, site: Site, tmp_path: Path) -> None:
    begin(site, tmp_path)
    (tmp_path / "model.ckpt.part.etag").write_bytes(noted)
    assert_whole(fetch_web(site, tmp_path), tmp_path)
    assert [headers["Range"] for headers in site.requests] == [None]


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
    monkeypatch.setattr(transfer, "_TIMEOUT_S", 0.2)
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


def test_an_archive_with_a_forged_end_is_not_kept(site: Site, tmp_path: Path) -> None:
    """Parts on other disks, of which zipfile complains in its own way."""
    site.content = CONTENT + struct.pack("<4sLQL", b"PK\x06\x07", 0, 0, 2) + b"PK\x05\x06" + bytes(18)
    with pytest.raises(
        FetchError, match=r"^some: what its host sent is no checkpoint \(not a zip archive\)$"
    ):
        fetch_web(site, tmp_path, sha256=None)
    assert not (tmp_path / "model.ckpt.part").exists()


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


def test_stopped_by_the_user(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(PUBLISHED, "base16-real", published(WebFile(f"{site.url}/model.ckpt"), SHA256))
    site.length = len(CONTENT) + 1  # then the server falls silent
    main_thread = threading.main_thread().ident
    assert main_thread is not None
    part = tmp_path / "model.ckpt.part"

    def interrupt(user: int) -> None:
        while not part.is_file() or part.stat().st_size < 300_000:
            time.sleep(0.01)
        time.sleep(0.2)  # by now the program waits for more
        signal.pthread_kill(user, signal.SIGINT)

    user = threading.Thread(target=interrupt, args=(main_thread,))
    user.start()
    before = signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # ignored where a shell started us with &
    try:
        assert main(["fetch", "base16-real", "--dir", str(tmp_path)]) == 2
    finally:
        signal.signal(signal.SIGINT, before)
    user.join()
    assert capsys.readouterr().err == (
        "clip4str fetch: stopped; the same command continues where it broke off\n"
    )
    assert part.read_bytes() == CONTENT[:300_000]  # whole chunks
