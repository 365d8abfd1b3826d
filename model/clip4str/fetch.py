"""Downloads published checkpoints: continued where a transfer broke off, checked, and only then put in place.

A file is held to the checksum that its host states. Where none is stated, the first download is believed and
its SHA-256 recorded beside it; every later download and load is held to the record. An unfinished download
lies next to its destination as `<name>.part`, with the server's version of the file in `<name>.part.etag`.
"""

from __future__ import annotations

import fcntl
import hashlib
import re
import shutil
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
from tqdm import tqdm

from clip4str.registry import (
    HubFile,
    Published,
    WebFile,
    ZenodoFile,
    cache_folder,
    expected_sha256,
    record_path,
)

_TIMEOUT_S = 30.0  # without a byte from the server
_ATTEMPTS = 5  # in a row that bring nothing new
_PAUSE_S = 1.0  # before the first retry; doubled for each further one
_CHUNK = 1 << 20  # bytes
_STRONG_ETAG = re.compile(r'"[\x21\x23-\x7e]+"')


class FetchError(Exception):
    """A checkpoint could not be downloaded, or is not what it should be; the message is one line for the user."""


class _InterruptedError(Exception):
    """A transfer broke off; trying again may help."""


@dataclass(frozen=True, slots=True)
class Fetched:
    """A downloaded checkpoint. `stated`: its host states the checksum; else it was believed at first sight."""

    path: Path
    sha256: str
    stated: bool


@dataclass(frozen=True, slots=True)
class _Arrival:
    """A complete download, and the checksums of it that its host states."""

    path: Path
    sha256: str | None = None
    md5: str | None = None


def fetch(entry: Published, folder: Path | None = None) -> Fetched:
    """Download a checkpoint into `folder` (default: the cache), or check the one that is already there.

    Raises FetchError, and OSError where the folder cannot be made or written to.
    """
    folder = folder or cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / entry.location.filename
    with _alone(folder):
        if path.is_file():
            return _check_present(entry, path)
        part = path.with_name(path.name + ".part")
        arrival = _obtain(entry, part)
        stated = entry.sha256 or arrival.sha256
        digest = _check_arrival(entry, arrival, stated or expected_sha256(entry, path))
        _record(path, digest)
        arrival.path.replace(path)
        if part.is_dir():
            shutil.rmtree(part)
        _version_file(part).unlink(missing_ok=True)
        return Fetched(path, digest, stated is not None)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Two downloads into one folder would write to the same unfinished file."""
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FetchError(f"another download into {folder} is running: wait for it") from None
        yield


def _obtain(entry: Published, part: Path) -> _Arrival:
    """Download whatever is still missing."""
    with httpx2.Client(follow_redirects=True, timeout=_TIMEOUT_S) as client:
        match entry.location:
            case HubFile() as location:
                return _from_hub(entry, location, part)
            case WebFile(url):
                _download(client, entry, url, part)
                return _Arrival(part)
            case ZenodoFile() as location:
                url, md5 = _find_in_record(client, entry, location)
                _download(client, entry, url, part)
                return _Arrival(part, md5=md5)


def _check_present(entry: Published, path: Path) -> Fetched:
    digest = _digest(path, "sha256")
    expected = expected_sha256(entry, path)
    if expected is None:  # put there by hand
        _record(path, digest)
    elif digest != expected:
        raise FetchError(
            f"{path}: its sha256 is {digest}, not {expected}: it is damaged; remove it and fetch again"
        )
    return Fetched(path, digest, entry.sha256 is not None)


def _check_arrival(entry: Published, arrival: _Arrival, expected: str | None) -> str:
    """The new file's SHA-256. A file that is wrong is removed, for to continue it would not mend it."""
    try:
        if not _is_zip(arrival.path):
            raise FetchError(f"{entry.name}: what its host sent is no checkpoint (not a zip archive)")
        if arrival.md5 is not None and (md5 := _digest(arrival.path, "md5")) != arrival.md5:
            raise FetchError(f"{entry.name}: the file's md5 is {md5}, not {arrival.md5} as its host states")
        digest = _digest(arrival.path, "sha256")
        if expected is not None and digest != expected:
            source = (
                "its host states" if entry.sha256 or arrival.sha256 else "was recorded at the first download"
            )
            raise FetchError(f"{entry.name}: the file's sha256 is {digest}, not {expected} as {source}")
    except FetchError:
        arrival.path.unlink()
        raise
    return digest


def _is_zip(path: Path) -> bool:
    try:
        return zipfile.is_zipfile(path)
    except zipfile.BadZipFile:  # its end is that of an archive, but says what none does
        return False


def _digest(path: Path, algorithm: str) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def _record(path: Path, digest: str) -> None:
    record_path(path).write_text(f"{digest}  {path.name}\n", encoding="utf-8")


def _from_hub(entry: Published, location: HubFile, part: Path) -> _Arrival:
    """Download through huggingface_hub, which continues and retries by itself, into the folder `part`."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url

    repository, filename, revision = location.repository, location.filename, location.revision
    try:
        # of large files, the version that the hub reports is the SHA-256 of the content
        etag = get_hf_file_metadata(hf_hub_url(repository, filename, revision=revision)).etag or ""
        arrived = hf_hub_download(repository, filename, revision=revision, local_dir=part)
    except (OSError, ValueError, RuntimeError, httpx2.HTTPError) as error:
        reason = " ".join(str(error).split())[:300]
        raise FetchError(f"{entry.name}: {repository} on Hugging Face: {reason}") from None
    return _Arrival(Path(arrived), sha256=etag if re.fullmatch("[0-9a-f]{64}", etag) else None)


def _find_in_record(client: httpx2.Client, entry: Published, location: ZenodoFile) -> tuple[str, str | None]:
    """Address and MD5 of the file in the Zenodo record that the registry means."""
    try:
        response = client.get(location.url)
        response.raise_for_status()
        files: list[dict[str, Any]] = response.json()["files"]
        found = [file for file in files if location.fragment in file["key"]]
        sources = [(str(file["links"]["self"]), _md5(file["checksum"])) for file in found]
    except httpx2.HTTPError as error:
        raise FetchError(f"{entry.name}: {location.url}: {_reason(error)}") from None
    except (ValueError, LookupError, TypeError):
        raise FetchError(f"{entry.name}: {location.url} is no list of files as Zenodo gives it") from None
    if len(sources) != 1:
        raise FetchError(
            f"{entry.name}: {location.url} lists {len(sources)} files with {location.fragment} in their names, not 1"
        )
    return sources[0]


def _md5(checksum: str) -> str | None:
    algorithm, _, digest = checksum.partition(":")
    return digest if algorithm == "md5" else None


def _download(client: httpx2.Client, entry: Published, url: str, part: Path) -> None:
    """All of the file into `part`, however often the connection breaks, as long as each try brings it forward."""
    failures = furthest = 0
    while True:
        try:
            return _transfer(client, entry, url, part)
        except (httpx2.TransportError, _InterruptedError) as error:
            arrived = part.stat().st_size if part.is_file() else 0
            failures = failures + 1 if arrived <= furthest else 1
            furthest = max(furthest, arrived)
            if failures == _ATTEMPTS:
                raise FetchError(
                    f"{entry.name}: {url}: {_reason(error)} ({failures} tries); fetch again to continue"
                ) from None
            time.sleep(_PAUSE_S * 2 ** (failures - 1))
        except httpx2.HTTPError as error:
            raise FetchError(f"{entry.name}: {url}: {_reason(error)}") from None


def _transfer(client: httpx2.Client, entry: Published, url: str, part: Path) -> None:
    """One request: the rest of the file if it is still the version that `part` began, else all of it."""
    version = _version_file(part)
    begun = _noted_version(version)
    offset = part.stat().st_size if begun and part.is_file() else 0
    headers = {"Accept-Encoding": "identity"}  # bytes as they lie on the server, so that they can be counted
    if begun and offset:
        headers |= {"Range": f"bytes={offset}-", "If-Range": begun}
    with client.stream("GET", url, headers=headers) as response:
        if _is_complete(response, offset):
            return
        total = _total(entry, response, offset, part)
        start = offset if response.status_code == httpx2.codes.PARTIAL_CONTENT else 0
        free = shutil.disk_usage(part.parent).free
        if total is not None and total - start > free:
            raise FetchError(
                f"{entry.name}: {(total - start) / 1e9:.2f} GB are to come, but {part.parent} "
                f"has {free / 1e9:.2f} GB left: make room, or choose another folder"
            )
        if not start:
            part.unlink(missing_ok=True)  # first: its bytes are not of the version noted next
        _note_version(response, version)
        try:
            with (
                part.open("ab") as file,
                tqdm(
                    total=total, initial=start, unit="B", unit_scale=True, desc=entry.name, disable=None
                ) as bar,
            ):
                for chunk in response.iter_raw(_CHUNK):
                    file.write(chunk)
                    bar.update(len(chunk))
        except OSError as error:
            raise FetchError(f"{entry.name}: {part} cannot be written ({error.strerror})") from None
    arrived = part.stat().st_size
    if total is not None and arrived != total:
        raise _InterruptedError(f"{arrived} of {total} bytes came")


def _is_complete(response: httpx2.Response, offset: int) -> bool:
    """Whether we asked for what follows the last byte."""
    unsatisfiable = response.status_code == httpx2.codes.RANGE_NOT_SATISFIABLE
    return unsatisfiable and response.headers.get("Content-Range") == f"bytes */{offset}"


def _total(entry: Published, response: httpx2.Response, offset: int, part: Path) -> int | None:
    """The whole file's bytes as the answer states them. Raises where the answer is not (the rest of) a file."""
    status = response.status_code
    if status in (httpx2.codes.RANGE_NOT_SATISFIABLE, httpx2.codes.PARTIAL_CONTENT):
        rest = re.fullmatch(rf"bytes {offset}-\d+/(\d+)", response.headers.get("Content-Range", ""))
        if status == httpx2.codes.PARTIAL_CONTENT and offset and rest:
            return int(rest[1])
        part.unlink(missing_ok=True)  # what we hold cannot be continued
        raise _InterruptedError(f"answers {status} to a request for bytes from {offset} on")
    if status == httpx2.codes.TOO_MANY_REQUESTS or status >= httpx2.codes.INTERNAL_SERVER_ERROR:
        raise _InterruptedError(f"answers {status} {response.reason_phrase}")
    if status != httpx2.codes.OK:
        raise FetchError(f"{entry.name}: {response.url} answers {status} {response.reason_phrase}")
    if response.headers.get("Content-Type", "").startswith("text/html"):
        raise FetchError(f"{entry.name}: {response.url} answers with a web page, not with a file")
    length = response.headers.get("Content-Length")
    return int(length) if length else None


def _version_file(part: Path) -> Path:
    return part.with_name(part.name + ".etag")


def _note_version(response: httpx2.Response, version: Path) -> None:
    """Only a strong ETag tells that bytes fetched later belong to the same file."""
    etag = response.headers.get("ETag", "")
    if _STRONG_ETAG.fullmatch(etag):
        version.write_text(etag, encoding="ascii")
    else:
        version.unlink(missing_ok=True)


def _noted_version(version: Path) -> str | None:
    """The ETag noted there; None where there is no such file, or a damaged one."""
    try:
        etag = version.read_text(encoding="ascii")
    except (FileNotFoundError, UnicodeDecodeError):
        return None
    return etag if _STRONG_ETAG.fullmatch(etag) else None


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
