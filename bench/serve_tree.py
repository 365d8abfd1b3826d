"""What processes cost: CPU time and memory of everything that descends from this process, by /proc (Linux)."""

from __future__ import annotations

import ctypes
import os
import signal
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_PROC = Path("/proc")
_TICKS = os.sysconf("SC_CLK_TCK")
_PR_SET_CHILD_SUBREAPER = 36
_STOP_SECONDS = 5.0


@contextmanager
def orphans_adopted() -> Iterator[None]:
    """Inside, this process is the parent of descendants whose own parent ends, so that none is lost from sight."""
    control = ctypes.CDLL(None).prctl
    control(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        yield
    finally:
        control(_PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


def descendants(process: int | None = None) -> set[int]:
    """Ids of all processes below a process, if not of this one."""
    children: dict[int, list[int]] = defaultdict(list)
    for folder in _PROC.iterdir():
        if folder.name.isdecimal() and (fields := _stat(int(folder.name))):
            children[int(fields[1])].append(int(folder.name))
    found: set[int] = set()
    waiting = [process or os.getpid()]
    while waiting:
        below = children[waiting.pop()]
        found.update(below)
        waiting += below
    return found


class Tree:
    """The processes of a server: all below this one that were not there when this was made."""

    def __init__(self) -> None:
        self._others = descendants()
        self._own: set[int] | None = None

    def settle(self) -> None:
        """Takes those that run now for all; what starts later is another server's."""
        self._own = self.processes()

    def processes(self) -> set[int]:
        """Their ids, now."""
        found = descendants() - self._others
        return found if self._own is None else found & self._own

    def cpu_seconds(self) -> float:
        """Spent so far by those that run now, to the hundredth."""
        spent = (_stat(process) for process in self.processes())
        return sum(int(fields[11]) + int(fields[12]) for fields in spent if fields) / _TICKS

    def rss(self) -> int:
        """Bytes in memory now; what processes share counts in each."""
        return sum(memory(process, "VmRSS") for process in self.processes())

    def peak_rss(self) -> int:
        """Bytes in memory at most: the sum of each process's own peak."""
        return sum(memory(process, "VmHWM") for process in self.processes())

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Inside, none of them runs."""
        stopped = self.processes()
        _signal(stopped, signal.SIGSTOP)
        try:
            yield
        finally:
            _signal(stopped, signal.SIGCONT)

    def end(self) -> None:
        """End those that are left, by force in the end."""
        deadline = time.monotonic() + _STOP_SECONDS
        while left := self.processes():
            number = signal.SIGTERM if time.monotonic() < deadline else signal.SIGKILL
            _signal(left, number)
            for process in left:
                with suppress(ChildProcessError):
                    os.waitpid(process, os.WNOHANG)  # an orphan that we adopted
            time.sleep(0.1)


def _signal(processes: set[int], number: int) -> None:
    for process in processes:
        with suppress(ProcessLookupError):
            os.kill(process, number)


def machine_cpu_seconds() -> float:
    """Spent so far by all programs of the machine, and by those who share its processors without being seen."""
    user, nice, system, _idle, _waiting, irq, soft, steal = map(
        int, (_PROC / "stat").read_text().split()[1:9]
    )
    return (user + nice + system + irq + soft + steal) / _TICKS


def command_of(process: int) -> str:
    """The end of a process' command line, for people; empty when it has ended."""
    try:
        return (_PROC / str(process) / "cmdline").read_text().replace("\0", " ").strip()[-40:]
    except OSError:
        return ""


def memory(process: int, field: str) -> int:
    """A field of a process' status in bytes; 0 when it has ended."""
    try:
        lines = (_PROC / str(process) / "status").read_text().splitlines()
    except OSError:
        return 0
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def _stat(process: int) -> list[str]:
    """The fields of a process after its name, from its state on; none when it has ended."""
    try:
        text = (_PROC / str(process) / "stat").read_text()
    except OSError:
        return []
    return text.rpartition(")")[2].split()
