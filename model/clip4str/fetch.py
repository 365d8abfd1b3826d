"""Downloads checkpoints: continued where a transfer broke off, checked, and only then put in place.

A published file is held to the checksum that its host states. Where none is stated, the first download is believed
and its SHA-256 recorded beside it; every later download and load is held to the record. A file at any other address
is fetched by its SHA-256 alone.
"""

from __future__ import annotations

import fcntl
import hashlib
import re
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2

from clip4str.registry import (
    HubFile,
    Published,
    WebFile,
    ZenodoFile,
    cache_folder,
    expected_sha256,
    record_path,
)
from clip4str.transfer import FetchError, client, download, reason, version_file

_SHA256 = re.compile("[0-9a-fA-F]{64}")
_URL = re.compile(r"https?://[^\s/]+/\S+")


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
        version_file(part).unlink(missing_ok=True)
        return Fetched(path, digest, stated is not None)


def fetch_file(url: str, sha256: str, output: Path) -> bool:
    """Make `output` the file at this address, whose SHA-256 (hexadecimal) is known; False if it is that already.

    Another file there is replaced once the new one has come and was checked, in one step.

    Raises FetchError, and OSError where the folder cannot be made or written to.
    """
    if not _SHA256.fullmatch(sha256):
        raise FetchError(f"--sha256 is {sha256!r}: expected 64 hexadecimal digits")
    if not _URL.fullmatch(url):
        raise FetchError(f"{url!r} is no address of a file: expected http:// or https://, a host and a path")
    expected = sha256.lower()
    output.parent.mkdir(parents=True, exist_ok=True)
    with _alone(output.parent):
        if output.is_dir():
            raise FetchError(f"{output} is a folder: name the file to make")
        if output.is_file() and _digest(output, "sha256") == expected:
            return False
        part = output.with_name(output.name + ".part")
        with client() as opened:
            download(opened, output.name, url, part)
        if (digest := _digest(part, "sha256")) != expected:
            part.unlink()
            version_file(part).unlink(missing_ok=True)
            raise FetchError(f"{output.name}: the file's sha256 is {digest}, not {expected}: it was not kept")
        part.replace(output)
        version_file(part).unlink(missing_ok=True)
        return True


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
    with client() as opened:
        match entry.location:
            case HubFile() as location:
                return _from_hub(entry, location, part)
            case WebFile(url):
                download(opened, entry.name, url, part)
                return _Arrival(part)
            case ZenodoFile() as location:
                url, md5 = _find_in_record(opened, entry, location)
                download(opened, entry.name, url, part)
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
        raise FetchError(f"{entry.name}: {repository} on Hugging Face: {reason(error)[:300]}") from None
    return _Arrival(Path(arrived), sha256=etag if re.fullmatch("[0-9a-f]{64}", etag) else None)


def _find_in_record(opened: httpx2.Client, entry: Published, location: ZenodoFile) -> tuple[str, str | None]:
    """Address and MD5 of the file in the Zenodo record that the registry means."""
    try:
        response = opened.get(location.url)
        response.raise_for_status()
        files: list[dict[str, Any]] = response.json()["files"]
        found = [file for file in files if location.fragment in file["key"]]
        sources = [(str(file["links"]["self"]), _md5(file["checksum"])) for file in found]
    except httpx2.HTTPError as error:
        raise FetchError(f"{entry.name}: {location.url}: {reason(error)}") from None
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
