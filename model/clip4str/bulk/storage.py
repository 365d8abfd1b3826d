"""Files wherever they are: on local disks, in object stores, by one interface.

PyArrow knows s3, gs, hdfs and some others by itself; of other protocols fsspec's packages are asked.
"""

from __future__ import annotations

import re
import uuid
from dataclasses import dataclass
from pathlib import Path

import fsspec
import pyarrow as pa
from pyarrow import fs

from clip4str.bulk.errors import BulkError

_JOB = "_job"  # readers of Parquet folders leave out what begins like this
_UNFINISHED = f"{_JOB}/unfinished"


@dataclass(frozen=True, slots=True)
class Place:
    """A path in a file system. `prefix` and a path make what people call a file: "s3://" and "bucket/key"."""

    filesystem: fs.FileSystem
    path: str
    prefix: str

    def url(self, path: str) -> str:
        """How people call a path of the same file system."""
        return self.prefix + path

    def inside(self, *parts: str) -> str:
        """The path of a file below this place."""
        return "/".join([self.path.rstrip("/"), *parts])

    def notes(self, name: str) -> str:
        """The path of a file that a job keeps for itself in this folder, apart from its results."""
        return self.inside(_JOB, name)

    def files(self) -> dict[str, int]:
        """Paths of all files below this folder, in order, and their sizes in bytes; empty where there is no folder.

        Hidden ones, and those of folders that begin with an underscore, are left out.
        """
        found = self.filesystem.get_file_info(
            fs.FileSelector(self.path, allow_not_found=True, recursive=True)
        )
        start = len(self.path.rstrip("/")) + 1
        return {
            info.path: info.size
            for info in sorted(found, key=lambda info: str(info.path))
            if info.type == fs.FileType.File and not re.search(r"(^|/)[._]", info.path[start:])
        }

    def content(self, path: str) -> bytes | None:
        """A small file's bytes, or None where there is none. Raises OSError."""
        if self.filesystem.get_file_info(path).type == fs.FileType.NotFound:
            return None
        with self.filesystem.open_input_stream(path, compression=None) as stream:
            return bytes(stream.readall())

    def prepare(self) -> None:
        """Make the folder, to `put` files into. Raises OSError."""
        self.filesystem.create_dir(self.inside(_UNFINISHED), recursive=True)

    def put(self, path: str, content: bytes | pa.Buffer) -> None:
        """Write a file into this folder: all of it appears at once, or nothing. Raises OSError.

        What is written under another name first, nobody takes for the file, whenever the writer dies.
        """
        unfinished = self.inside(_UNFINISHED, uuid.uuid4().hex)
        with self.filesystem.open_output_stream(unfinished, compression=None) as stream:
            stream.write(content)
        self.filesystem.move(unfinished, path)

    def clean(self) -> None:
        """Remove what writers that died have left. Raises OSError."""
        self.filesystem.delete_dir_contents(self.inside(_UNFINISHED), missing_dir_ok=True)


def absolute(url: str) -> str:
    """A URL as it is, a local path from the root: it means the same on every machine that has the file."""
    return url if "://" in url else str(Path(url).expanduser().absolute())


def locate(url: str) -> Place:
    """The place that a URL or a local path names. Raises BulkError, OSError."""
    if "://" not in url:
        return Place(fs.LocalFileSystem(), absolute(url), "")
    try:
        filesystem, path = fs.FileSystem.from_uri(url)
    except pa.ArrowInvalid as unknown:
        try:
            filesystem, path = fsspec.core.url_to_fs(url)
        except (ValueError, ImportError) as error:
            raise BulkError(f"{url}: no such kind of storage ({error})") from unknown
        filesystem = fs.PyFileSystem(fs.FSSpecHandler(filesystem))
    named = url.partition("?")[0].rstrip("/")
    path = path.rstrip("/")
    prefix = named.removesuffix(path) if named.endswith(path) else f"{named.partition('://')[0]}://"
    return Place(filesystem, path, prefix)
