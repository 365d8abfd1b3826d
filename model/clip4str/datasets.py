"""Labelled word images on disk: a folder with `labels.tsv`, or a benchmark LMDB.

Labels pass the filter of the published benchmarks: blanks removed, accents folded to ASCII, words longer
than the model can spell and words without any of the 94 characters left out.
"""

import io
import os
import unicodedata
from abc import ABC, abstractmethod
from pathlib import Path

import lmdb
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from clip4str.charset import CHARACTERS, adapt

MAX_LENGTH = 25
LABELS_FILE = "labels.tsv"
LMDB_FILE = "data.mdb"


class DatasetError(Exception):
    """A set of labelled words cannot be used; the message is one line that says what to mend."""


def clean_label(raw: str) -> str | None:
    """Fold a raw label to the 94 characters; None if the benchmarks leave such a word out."""
    folded = unicodedata.normalize("NFKD", "".join(raw.split())).encode("ascii", "ignore").decode()
    if len(folded) > MAX_LENGTH:
        return None
    return adapt(folded, CHARACTERS) or None


def decode_image(content: bytes, name: str) -> Image.Image:
    """Decode an image file's bytes, upright by its EXIF orientation, 16-bit grey scaled to 8 bits.

    Raises:
        DatasetError: it is no image, or a broken one; `name` is what the message calls it.
    """
    try:
        image = ImageOps.exif_transpose(Image.open(io.BytesIO(content)))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = "no known image format" if isinstance(error, UnidentifiedImageError) else error
        raise DatasetError(f"{name} is not a readable image ({reason})") from error
    if image.mode.startswith("I;16"):  # converting to RGB would clip, not scale
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return image


class WordSet(ABC):
    """Word images with their texts, in a fixed order.

    Attributes:
        name: the folder's name.
        keys: the images' names in it.
        labels: the exact-case texts, each 1 to 25 of the 94 characters.
    """

    def __init__(self, path: Path, raw_labels: list[tuple[str, str]]) -> None:
        """Keep of the (key, raw label) pairs those that pass the label filter.

        Raises:
            DatasetError: none passes.
        """
        self.name, self._path = path.resolve().name, path
        cleaned = [(key, clean_label(raw)) for key, raw in raw_labels]
        kept = [(key, label) for key, label in cleaned if label is not None]
        if not kept:
            raise DatasetError(f"{path}: holds no word of 1 to {MAX_LENGTH} of the 94 characters")
        self.keys = [key for key, _ in kept]
        self.labels = [label for _, label in kept]

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, index: int) -> Image.Image:
        """Decode the image of `labels[index]`.

        Raises:
            DatasetError: the image is missing or broken.
        """
        key = self.keys[index]
        try:
            content = self._read(key)
        except OSError as error:
            raise DatasetError(f"{self._path}: {key} cannot be read ({error.strerror})") from error
        return decode_image(content, f"{self._path}: {key}")

    @abstractmethod
    def _read(self, key: str) -> bytes:
        """Return the encoded image stored under a key."""


class FolderSet(WordSet):
    """A folder of images and a `labels.tsv` of lines `filename<TAB>text`."""

    def __init__(self, path: Path) -> None:
        """Read `labels.tsv`; the images are read one by one later.

        Raises:
            DatasetError: the file is not such a list.
        """
        labels_path = path / LABELS_FILE
        try:
            lines = labels_path.read_text(encoding="utf-8").split("\n")
        except UnicodeDecodeError as error:
            raise DatasetError(f"{labels_path}: not UTF-8 text ({error})") from error
        pairs = []
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            filename, tab, text = line.removesuffix("\r").partition("\t")
            if not tab:
                raise DatasetError(f"{labels_path}, line {number}: expected filename, one tab, text")
            pairs.append((filename, text))
        super().__init__(path, pairs)

    def _read(self, key: str) -> bytes:
        return (self._path / key).read_bytes()


_environments: dict[Path, lmdb.Environment] = {}  # LMDB lets a process open a file once


def _environment(path: Path) -> lmdb.Environment:
    """Open an LMDB folder, its path resolved, for reading, for as long as this process lives."""
    if path not in _environments:
        _environments[path] = lmdb.open(str(path), readonly=True, lock=False, readahead=False, meminit=False)
    return _environments[path]


def _close_environments() -> None:
    for environment in _environments.values():
        environment.close()
    _environments.clear()


if hasattr(os, "register_at_fork"):  # a forked process must not use what its parent opened
    os.register_at_fork(after_in_child=_close_environments)


class LmdbSet(WordSet):
    """An LMDB of `num-samples`, `image-%09d` and `label-%09d`, counted from 1."""

    def __init__(self, path: Path) -> None:
        """Open the database for reading and read its labels.

        Raises:
            DatasetError: the database is broken or keys are missing.
        """
        self._path, self._resolved = path, path.resolve()
        try:
            _environment(self._resolved)
        except lmdb.Error as error:
            raise DatasetError(f"{path}: not a readable LMDB ({error})") from error
        count = self._read("num-samples")
        if not count.isdigit():
            raise DatasetError(f"{path}: num-samples is {count[:20]!r}, expected a number")
        pairs = []
        for number in range(1, int(count) + 1):
            label = self._read(f"label-{number:09d}")
            try:
                pairs.append((f"image-{number:09d}", label.decode()))
            except UnicodeDecodeError as error:
                raise DatasetError(f"{path}: label-{number:09d} is not UTF-8 text ({error})") from error
        super().__init__(path, pairs)

    def _read(self, key: str) -> bytes:
        with _environment(self._resolved).begin() as transaction:
            value = transaction.get(key.encode())
        if value is None:
            raise DatasetError(f"{self._path}: the key {key} is missing")
        return bytes(value)


def open_set(path: Path) -> WordSet:
    """Open a folder with `labels.tsv` or an LMDB folder.

    Raises:
        DatasetError: it is neither, or it is broken.
    """
    if (path / LABELS_FILE).is_file():
        return FolderSet(path)
    if (path / LMDB_FILE).is_file():
        return LmdbSet(path)
    if not path.is_dir():
        raise DatasetError(f"{path}: no such folder")
    raise DatasetError(f"{path}: holds neither {LABELS_FILE} nor {LMDB_FILE}")
