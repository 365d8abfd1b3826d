"""API keys: who a caller is, by a key whose SHA-256 is in a mounted file. Keys themselves are stored nowhere.

The file is TOML, a table for each key:

    [keys.invoices]
    sha256 = "<64 hex digits>"     # of the key; `clip4str-service key invoices` makes both
    crops_per_second = 50          # optional: the rate it may keep up
    burst_crops = 200              # optional, with crops_per_second: how many at once after a pause
    max_crops_in_flight = 64       # optional
    expires = 2027-01-01           # optional: refused from 00:00 UTC of this day on
"""

from __future__ import annotations

import hashlib
import hmac
import math
import re
import secrets
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from clip4str_service.errors import UnauthenticatedError
from clip4str_service.limits import Allowance

AUTHORIZATION = "authorization"
API_KEY = "x-api-key"
"""The headers, or metadata, that a key may come in."""

DEFAULT_BURST = 128
"""`burst_crops` of a key that has a rate below it and names none: one request of the default largest size."""

_MAX_FILE_BYTES = 1 << 20
_KEY_PREFIX = "c4s_"  # tells what it is, to people and to scanners for leaked secrets
_KEY_BYTES = 32
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_PRESENTABLE = re.compile(r"[\x21-\x7e]{1,256}")
_BEARER = re.compile(r"bearer +(\S+) *", re.IGNORECASE)

_NAMES = "a name has 1 to 64 letters, digits, - and _, and begins with a letter or digit"
_HOW = "send it as `Authorization: Bearer KEY` or `X-API-Key: KEY`"


class KeysError(Exception):
    """The file of keys is no good, or a name is; the message is one line that says where and why."""


@dataclass(frozen=True, slots=True)
class Key:
    """An API key as it is known here: its owner's name, the digest of it, what it may ask, when it ends."""

    name: str
    digest: bytes
    allowance: Allowance
    expires: date | None


class Keys:
    """The keys of one file."""

    def __init__(self, keys: Sequence[Key]) -> None:
        self._keys = tuple(keys)

    def authenticate(self, presented: str | None) -> Key:
        """The key that was presented. Raises UnauthenticatedError, whose message does not repeat it."""
        if presented is None:
            raise UnauthenticatedError(f"an API key is needed: {_HOW}")
        if not _PRESENTABLE.fullmatch(presented):
            raise UnauthenticatedError(f"the API key is malformed: {_HOW}")
        digest = hashlib.sha256(presented.encode()).digest()
        found = None
        for key in self._keys:  # all of them, so that the time it takes tells nothing
            if hmac.compare_digest(key.digest, digest):
                found = key
        if found is None:
            raise UnauthenticatedError("the API key is unknown")
        if found.expires is not None and datetime.now(UTC).date() >= found.expires:
            raise UnauthenticatedError(f"the API key expired on {found.expires}")
        return found

    @property
    def allowances(self) -> dict[str, Allowance]:
        """What each key may ask, by its name."""
        return {key.name: key.allowance for key in self._keys}


class KeyRing:
    """The keys of a file that changes: `reload` takes a good new one whole, and a bad one not at all."""

    def __init__(self, path: Path) -> None:
        """Raises KeysError."""
        self._path = path
        self._keys = load_keys(path)

    @property
    def keys(self) -> Keys:
        """Those of the last good file."""
        return self._keys

    def reload(self) -> Keys:
        """Reads the file again. Raises KeysError: it is no good, and the keys stay as they were."""
        self._keys = load_keys(self._path)
        return self._keys


def load_keys(path: Path) -> Keys:
    """Reads a file of keys, 1 MiB at most. Raises KeysError."""
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_FILE_BYTES + 1)
    except OSError as error:
        raise KeysError(f"{path}: {error.strerror or error}") from None
    if len(content) > _MAX_FILE_BYTES:
        raise KeysError(f"{path}: the file has more than {_MAX_FILE_BYTES} bytes")
    try:
        parsed = _File.model_validate(tomllib.loads(content.decode()))
    except UnicodeDecodeError:
        raise KeysError(f"{path}: the file is not UTF-8 text") from None
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise KeysError(f"{path}: the file is not TOML: {error}") from None
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(_shown(str(each)) for each in first["loc"])
        raise KeysError(f"{path}: {where}: {first['msg']}") from None
    return Keys(_checked(path, parsed.keys))


def new_key(name: str) -> tuple[str, str]:
    """A new key of 256 random bits, and the lines of TOML that make it known. Raises KeysError for a bad name."""
    if not _NAME.fullmatch(name):
        raise KeysError(f"keys.{_shown(name)}: {_NAMES}")
    key = _KEY_PREFIX + secrets.token_urlsafe(_KEY_BYTES)
    digest = hashlib.sha256(key.encode()).hexdigest()
    return key, f'[keys.{name}]\nsha256 = "{digest}"\n'


def presented_key(values: Callable[[str], Sequence[str]]) -> str | None:
    """The key that a request carries, unchecked; None if it carries none.

    `values` gives all values of a header, or of metadata, by its name in lower case.

    Raises:
        UnauthenticatedError: it carries more than one, or credentials of another kind.
    """
    presented = list(values(API_KEY))
    for value in values(AUTHORIZATION):
        bearer = _BEARER.fullmatch(value)
        if bearer is None:
            raise UnauthenticatedError(
                f"Authorization carries no bearer token; if that is the API key, {_HOW}"
            )
        presented.append(bearer[1])
    if not presented:
        return None
    first = presented[0].encode()
    if not all(hmac.compare_digest(first, each.encode()) for each in presented):
        raise UnauthenticatedError("the request carries several API keys that differ; send one")
    return presented[0]


_Count = Annotated[int, Field(ge=1, le=1_000_000)]


class _Entry(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    sha256: Annotated[str, Field(pattern="^[0-9a-fA-F]{64}$")]
    crops_per_second: Annotated[float, Field(gt=0, le=1_000_000)] | None = None
    burst_crops: _Count | None = None
    max_crops_in_flight: _Count | None = None
    expires: date | None = None


class _File(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    keys: dict[str, _Entry] = {}


def _checked(path: Path, entries: Mapping[str, _Entry]) -> list[Key]:
    if not entries:
        raise KeysError(f"{path}: the file has no keys; `clip4str-service key NAME` makes one")
    keys: dict[bytes, Key] = {}
    for name, entry in entries.items():
        where = f"{path}: keys.{_shown(name)}"
        if not _NAME.fullmatch(name):
            raise KeysError(f"{where}: {_NAMES}")
        if entry.burst_crops is not None and entry.crops_per_second is None:
            raise KeysError(f"{where}.burst_crops: it needs crops_per_second beside it")
        digest = bytes.fromhex(entry.sha256)
        if digest in keys:
            raise KeysError(
                f"{where}.sha256: it is that of keys.{keys[digest].name} too; give each its own key"
            )
        keys[digest] = Key(name, digest, _allowance(entry), entry.expires)
    return list(keys.values())


def _allowance(entry: _Entry) -> Allowance:
    rate, burst = entry.crops_per_second, entry.burst_crops
    if rate is None:
        return Allowance(max_crops_in_flight=entry.max_crops_in_flight)
    return Allowance(rate, burst or max(DEFAULT_BURST, math.ceil(rate)), entry.max_crops_in_flight)


def _shown(name: str) -> str:
    return name if _NAME.fullmatch(name) else repr(name[:64])
