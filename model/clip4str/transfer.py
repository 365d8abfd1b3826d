"""One file over HTTP into `<name>.part`, continued where a transfer broke off as long as it is the same file.

The server's version of the file (a strong ETag) lies beside it, in `<name>.part.etag`.
"""

from __future__ import annotations

import re
import shutil
import time
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
from tqdm import tqdm

_TIMEOUT_S = 30.0  # without a byte from the server
_ATTEMPTS = 5  # in a row that bring nothing new
_PAUSE_S = 1.0  # before the first retry; doubled for each further one
_CHUNK = 1 << 20  # bytes
_STRONG_ETAG = re.compile(r'"[\x21\x23-\x7e]+"')


class FetchError(Exception):
    """A file could not be downloaded, or is not what it should be; the message is one line for the user."""


class _InterruptedError(Exception):
    """A transfer broke off; trying again may help."""


def client() -> httpx2.Client:
    """What asks: it follows redirects and does not wait for ever."""
    return httpx2.Client(follow_redirects=True, timeout=_TIMEOUT_S)


def download(client: httpx2.Client, name: str, url: str, part: Path) -> None:
    """All of the file into `part`, however often the connection breaks, as long as each try brings it forward.

    `name` is what messages call it. Raises FetchError.
    """
    failures = furthest = 0
    while True:
        try:
            return _transfer(client, name, url, part)
        except (httpx2.TransportError, _InterruptedError) as error:
            arrived = part.stat().st_size if part.is_file() else 0
            failures = failures + 1 if arrived <= furthest else 1
            furthest = max(furthest, arrived)
            if failures == _ATTEMPTS:
                raise FetchError(
                    f"{name}: {_shown(url)}: {reason(error)} ({failures} tries); fetch again to continue"
                ) from None
            time.sleep(_PAUSE_S * 2 ** (failures - 1))
        except httpx2.HTTPError as error:
            raise FetchError(f"{name}: {_shown(url)}: {reason(error)}") from None


def _transfer(client: httpx2.Client, name: str, url: str, part: Path) -> None:
    """One request: the rest of the file if it is still the version that `part` began, else all of it."""
    version = version_file(part)
    begun = _noted_version(version)
    offset = part.stat().st_size if begun and part.is_file() else 0
    headers = {"Accept-Encoding": "identity"}  # bytes as they lie on the server, so that they can be counted
    if begun and offset:
        headers |= {"Range": f"bytes={offset}-", "If-Range": begun}
    with client.stream("GET", url, headers=headers) as response:
        if _is_complete(response, offset):
            return
        total = _total(name, response, offset, part)
        start = offset if response.status_code == httpx2.codes.PARTIAL_CONTENT else 0
        free = shutil.disk_usage(part.parent).free
        if total is not None and total - start > free:
            raise FetchError(
                f"{name}: {(total - start) / 1e9:.2f} GB are to come, but {part.parent} "
                f"has {free / 1e9:.2f} GB left: make room, or choose another folder"
            )
        if not start:
            part.unlink(missing_ok=True)  # first: its bytes are not of the version noted next
        _note_version(response, version)
        try:
            with (
                part.open("ab") as file,
                tqdm(total=total, initial=start, unit="B", unit_scale=True, desc=name, disable=None) as bar,
            ):
                for chunk in response.iter_raw(_CHUNK):
                    file.write(chunk)
                    bar.update(len(chunk))
        except OSError as error:
            raise FetchError(f"{name}: {part} cannot be written ({error.strerror})") from None
    arrived = part.stat().st_size
    if total is not None and arrived != total:
        raise _InterruptedError(f"{arrived} of {total} bytes came")


def _is_complete(response: httpx2.Response, offset: int) -> bool:
    """Whether we asked for what follows the last byte."""
    unsatisfiable = response.status_code == httpx2.codes.RANGE_NOT_SATISFIABLE
    return unsatisfiable and response.headers.get("Content-Range") == f"bytes */{offset}"


def _total(name: str, response: httpx2.Response, offset: int, part: Path) -> int | None:
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
        raise FetchError(f"{name}: {_shown(str(response.url))} answers {status} {response.reason_phrase}")
    if response.headers.get("Content-Type", "").startswith("text/html"):
        raise FetchError(f"{name}: {_shown(str(response.url))} answers with a web page, not with a file")
    length = response.headers.get("Content-Length")
    return int(length) if length else None


def version_file(part: Path) -> Path:
    """Where the version of an unfinished download is noted."""
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


def reason(error: Exception) -> str:
    """What an error says, in one line."""
    return " ".join(str(error).split()) or type(error).__name__


def _shown(url: str) -> str:
    """The address without what may be a secret: a password, or the signature in its query."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()
