"""Counts that several processes share: each writes its own files in one directory, a scrape adds them up.

It is prometheus_client's multiprocess mode, with names for processes in place of process ids: a process that follows
another of the same name goes on in its files, so that counts never fall and files never pile up.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from prometheus_client import Metric, values
from prometheus_client.multiprocess import MultiProcessCollector

_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"  # prometheus_client's; children inherit it
_PREFIX = "clip4str-metrics-"
_MEMORY = Path("/dev/shm")  # noqa: S108 (the directory in it is ours alone)
_FILE_BYTES = 256 << 10  # some ten times what our families need
_KINDS = ("counter", "gauge_sum", "histogram")
_YOUNG_SECONDS = 60.0  # for a directory whose owner has yet to lock it


class MetricFilesError(Exception):
    """There is no place where processes could count; the message is one line."""


class MetricFiles:
    """The directory; made by the main process, which is alive as long as it holds a lock on it."""

    def __init__(self) -> None:
        """Raises MetricFilesError."""
        parent = _MEMORY if os.access(_MEMORY, os.W_OK) else Path(tempfile.gettempdir())
        with _told(parent):
            _sweep(parent)
            self._path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
            self._lock = os.open(self._path, os.O_RDONLY)
            fcntl.flock(self._lock, fcntl.LOCK_EX)
        os.environ[_VARIABLE] = str(self._path)

    def collect(self) -> Iterable[Metric]:
        """The families that processes counted so far, added up."""
        made = [path for path in self._path.glob("*.db") if path.stat().st_size]  # not in this very moment
        files = sorted(map(str, made))
        merged: Iterable[Metric] = MultiProcessCollector.merge(files)
        return merged

    def close(self) -> None:
        """Removes it, with what was counted; metrics made from now on are this process's own."""
        os.environ.pop(_VARIABLE, None)
        values.ValueClass = values.MutexValue
        shutil.rmtree(self._path, ignore_errors=True)
        os.close(self._lock)


def count_as(process: str) -> None:
    """Lets this process count in files of that name. For each process, before its first metric is made.

    `process`: a name without underscore that no other process has at the same time. Raises MetricFilesError.
    """
    directory = Path(os.environ[_VARIABLE])
    with _told(directory.parent):
        for kind in _KINDS:
            _reserve(directory / f"{kind}_{process}.db")
    values.ValueClass = values.MultiProcessValue(lambda: process)


def _reserve(path: Path) -> None:
    """Takes a file's room now: a count that found the disk full would end the process by a signal."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        os.posix_fallocate(descriptor, 0, _FILE_BYTES)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _told(parent: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        kib = len(_KINDS) * _FILE_BYTES >> 10
        why = f"{parent} has no room for metrics ({error.strerror}): each process needs {kib} KiB there"
        raise MetricFilesError(why) from None


def _sweep(parent: Path) -> None:
    """Removes what main processes left that were killed."""
    for path in parent.glob(_PREFIX + "*"):
        try:
            lock = os.open(path, os.O_RDONLY)
        except OSError:  # somebody else's, or gone
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if time.time() - path.stat().st_mtime > _YOUNG_SECONDS:
                shutil.rmtree(path, ignore_errors=True)
        except OSError:  # its owner lives
            pass
        finally:
            os.close(lock)
