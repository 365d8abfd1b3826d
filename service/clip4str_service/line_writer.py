"""Lines to a descriptor, written by a thread: who adds a line never waits for it and never fails by it.

What reads the other end may be slow, the disk full, the pipe closed. Then lines wait, as many as there is room for;
what is lost is counted, and the first line that can be written again tells how much it was.
"""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Callable, Iterator
from time import sleep

MAX_LINE = select.PIPE_BUF - 1
"""Bytes of a line, its newline included: what a pipe takes whole, so that lines of several processes never mix."""

_CAPACITY = 2000  # lines that wait
_PAUSE = 0.01  # seconds between two writes: lines that come together are written together
_LOOK_MS = 100  # between two looks at a descriptor that takes nothing


class LineWriter:
    """Owns `descriptor`, and closes it in the end."""

    def __init__(self, descriptor: int, notice: Callable[[int], bytes]) -> None:
        """`notice`: the line that tells how many lines were lost."""
        self._descriptor = descriptor
        self._notice = notice
        self._lines: list[bytes] = []
        self._lost = 0
        self._torn = False  # the last write ended within a line
        self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    def add(self, line: bytes) -> None:
        """Takes a line of at most MAX_LINE bytes, its newline included."""
        with self._changed:
            if self._closed or len(self._lines) >= _CAPACITY:
                self._lost += 1
                return
            self._lines.append(line)
            if len(self._lines) == 1:
                self._changed.notify()

    def close(self, seconds: float) -> None:
        """Takes no more lines, and waits at most `seconds` for those it has."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(seconds)  # one that is stuck in a write ends with the process

    def _run(self) -> None:
        while self._write_round():
            sleep(_PAUSE)
        os.close(self._descriptor)

    def _write_round(self) -> bool:
        """Waits for lines and writes them; False when there will be no more."""
        with self._changed:
            self._changed.wait_for(lambda: self._lines or self._closed)
            lines, self._lines = self._lines, []
            lost, self._lost = self._lost, 0
        if lost and self._put(self._notice(lost)):
            lost = 0
        for piece in _pieces(lines):
            if lost or not self._put(b"".join(piece)):
                lost += len(piece)
        with self._changed:
            self._lost += lost
            return not self._closed or bool(self._lines)

    def _put(self, content: bytes) -> bool:
        """Writes some lines; False when they are lost, the first of them perhaps torn."""
        if self._torn:
            content = b"\n" + content
        while content:
            try:
                written = os.write(self._descriptor, content)
            except BlockingIOError:  # whoever made the descriptor wants no waiting writes
                if self._closed:
                    return False
                self._await_room()
            except OSError:
                return False
            else:
                content = content[written:]
                self._torn = bool(content)
        return True

    def _await_room(self) -> None:
        poll = select.poll()
        poll.register(self._descriptor, select.POLLOUT)
        poll.poll(_LOOK_MS)


def _pieces(lines: list[bytes]) -> Iterator[list[bytes]]:
    """Neighbouring lines, as many as a pipe takes whole."""
    piece: list[bytes] = []
    size = 0
    for line in lines:
        if piece and size + len(line) > MAX_LINE:
            yield piece
            piece, size = [], 0
        piece.append(line)
        size += len(line)
    if piece:
        yield piece
