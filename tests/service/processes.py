"""What the system tells of processes: whose children they are, what they have open and mapped."""

import asyncio
import gc
import os
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

_PROC = Path("/proc")
_KEPT = ("/dev/shm/clip4str-metrics", "/tmp/clip4str-metrics", "anon_inode:")  # noqa: S108
_CLOSING = 5.0  # seconds
_PATIENCE = 60.0  # seconds, on a machine that is busy with other things


def children(parent: int | None = None) -> list[int]:
    """The living children that a process, this one if none is named, started as the service starts its own.

    Those lead a process group; what other tests keep running beside them does not.
    """
    parent = os.getpid() if parent is None else parent
    every = [int(path.name) for path in _PROC.iterdir() if path.name.isdigit()]
    return sorted(pid for pid in every if (found := _stat(pid)) is not None and found[1:] == (parent, pid))


def only_child() -> int:
    """The one child that this process has."""
    (child,) = children()
    return child


def alive(pid: int) -> bool:
    """Whether it runs, or could."""
    return _stat(pid) is not None


def module(pid: int) -> str:
    """What `python -m` it runs; empty while it is no such program yet, or no more."""
    try:
        arguments = (_PROC / str(pid) / "cmdline").read_text().split("\0")
    except OSError:
        return ""
    return arguments[arguments.index("-m") + 1] if "-m" in arguments else ""


def mapped(pid: int, name: str) -> int:
    """How many mappings it has of files whose path contains `name`."""
    return sum(name in line for line in (_PROC / str(pid) / "maps").read_text().splitlines())


def descriptors(pid: int | None = None) -> list[str]:
    """What a process, this one if none is named, has open; sockets and pipes without their numbers."""
    named = []
    for path in (_PROC / str(pid or "self") / "fd").iterdir():
        try:
            named.append(str(path.readlink()).partition("[")[0])
        except FileNotFoundError:  # the descriptor of this very list
            continue
    return sorted(named)


@asynccontextmanager
async def nothing_left() -> AsyncIterator[None]:
    """In the end this process has the children and descriptors that it had in the beginning.

    But for what libraries keep for the life of the process: prometheus_client the files of its metrics, gRPC what its
    threads wait with, which close their sockets when they get to it.
    """
    processes, opened = children(), descriptors()
    yield
    gc.collect()
    with suppress(TimeoutError):
        await until(lambda: not _opened_since(opened), _CLOSING)
    left = _opened_since(opened)
    assert not left, f"left open: {dict(left)}"
    assert children() == processes, "left running"


def _opened_since(opened: list[str]) -> Counter[str]:
    kept = [name for name in descriptors() if not name.startswith(_KEPT)]
    return Counter(kept) - Counter(opened)


async def until(condition: Callable[[], bool], seconds: float = _PATIENCE) -> None:
    """Returns when it holds. Raises TimeoutError when it does not in so many seconds."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 (the system raises no event)
            await asyncio.sleep(0.01)


def wait_until(condition: Callable[[], bool], seconds: float = _PATIENCE) -> None:
    """As `until`, without a loop of events."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came to that"
        time.sleep(0.02)


def _stat(pid: int) -> tuple[str, int, int] | None:
    """State, parent and process group; None when it is gone, or dead and not yet buried."""
    try:
        text = (_PROC / str(pid) / "stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    state, parent, group = text.rpartition(")")[2].split()[:3]
    return None if state in "ZX" else (state, int(parent), int(group))
