"""Lines to a descriptor whose other end is slow, full, or gone."""

import fcntl
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from clip4str_service import line_writer
from clip4str_service.line_writer import MAX_LINE, LineWriter


@contextmanager
def written_to(descriptor: int) -> Iterator[LineWriter]:
    """A writer to a copy of the descriptor, closed at the end."""
    writer = LineWriter(os.dup(descriptor), lambda lost: f"{lost} lost\n".encode())
    try:
        yield writer
    finally:
        writer.close(10)


@contextmanager
def pipe() -> Iterator[tuple[int, int]]:
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)  # one page: full after one line of it
    try:
        yield reading, writing
    finally:
        for end in (reading, writing):
            os.close(end)


def wait_until_blocked(writer: LineWriter) -> None:
    """Returns when the thread has taken the lines that there are."""
    while writer._lines:
        time.sleep(0.001)
    time.sleep(0.03)


def test_lines_are_written_in_order(tmp_path: Path) -> None:
    lines = [f"{number} {'x' * (number % 50)}\n".encode() for number in range(1000)]
    with (tmp_path / "log").open("wb") as file, written_to(file.fileno()) as writer:
        for line in lines:
            writer.add(line)
    assert (tmp_path / "log").read_bytes() == b"".join(lines)


def test_nobody_waits_for_a_reader_that_sleeps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(line_writer, "_CAPACITY", 10)
    with pipe() as (reading, writing), written_to(writing) as writer:
        writer.add(b"x" * (MAX_LINE - 1) + b"\n")
        writer.add(b"stuck\n")
        wait_until_blocked(writer)
        started = time.monotonic()
        for number in range(100):
            writer.add(b"%d\n" % number)
        assert time.monotonic() - started < 1
        reader = threading.Thread(target=lambda: received.append(os.read(reading, 1 << 20)))
        received: list[bytes] = []
        reader.start()
        reader.join(10)
        while not received[-1].endswith(b"9\n"):
            received.append(os.read(reading, 1 << 20))
    lines = b"".join(received).split(b"\n")
    assert lines[1:] == [b"stuck", b"90 lost", *(b"%d" % number for number in range(10)), b""]


def test_end_does_not_wait_for_a_reader_that_sleeps() -> None:
    with pipe() as (reading, writing):
        writer = LineWriter(os.dup(writing), lambda lost: f"{lost} lost\n".encode())
        for _ in range(3):
            writer.add(b"x" * (MAX_LINE - 1) + b"\n")
        started = time.monotonic()
        writer.close(0.1)
        assert time.monotonic() - started < 1
        while writer._thread.is_alive():  # lets the thread go before the descriptors do
            os.read(reading, 1 << 20)
            writer._thread.join(0.01)


def test_descriptor_that_does_not_wait_loses_nothing() -> None:
    with pipe() as (reading, writing):
        os.set_blocking(writing, False)
        received = bytearray()
        with written_to(writing) as writer:
            for _ in range(20):
                writer.add(b"y" * 1000 + b"\n")
            while len(received) < 20 * 1001:
                received += os.read(reading, 1500)
        assert bytes(received) == (b"y" * 1000 + b"\n") * 20


def test_full_disk_costs_lines_and_nothing_else() -> None:
    with Path("/dev/full").open("wb", buffering=0) as full, written_to(full.fileno()) as writer:
        for number in range(5000):
            writer.add(b"%d\n" % number)
    assert not writer._thread.is_alive()


def test_closed_pipe_costs_lines_and_nothing_else() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with written_to(writing) as writer:
        writer.add(b"a\n")
    os.close(writing)
    assert not writer._thread.is_alive()


def test_what_was_lost_is_told_when_there_is_room_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full, then takes half a line, then is full again, then has room."""
    room = [0, 3, 0]
    write = os.write

    def limited(descriptor: int, content: bytes) -> int:
        if room:
            taken = room.pop(0)
            if not taken:
                raise OSError(28, "No space left on device")
            content = content[:taken]
        return write(descriptor, content)

    monkeypatch.setattr(os, "write", limited)
    with (tmp_path / "log").open("wb") as file, written_to(file.fileno()) as writer:
        for text in (b"first\n", b"second\n", b"third\n"):
            left = len(room)
            writer.add(text)
            while room and len(room) >= left:
                time.sleep(0.001)
            time.sleep(0.03)
    lines = (tmp_path / "log").read_bytes().split(b"\n")
    assert lines == [b"1 l", b"2 lost", b"third", b""]


def test_lines_of_several_writers_never_mix() -> None:
    """Each as long as a line may be, to one pipe that a slow reader empties in odd portions."""
    with pipe() as (reading, writing):
        received = bytearray()
        writers = [LineWriter(os.dup(writing), lambda lost: b"%d lost\n" % lost) for _ in range(4)]
        for number in range(25):
            for index, writer in enumerate(writers):
                size = MAX_LINE if number % 2 else 100
                writer.add(b"%d " % index + b"abcd"[index : index + 1] * (size - 3) + b"\n")
        total = 4 * (12 * MAX_LINE + 13 * 100)
        while len(received) < total:
            received += os.read(reading, 777)
        for writer in writers:
            writer.close(10)
    lines = bytes(received).splitlines()
    assert len(lines) == 100
    for line in lines:
        index = int(line[:1])
        assert set(line[2:]) == {b"abcd"[index]}


def test_no_line_is_taken_after_the_end(tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb") as file, written_to(file.fileno()) as writer:
        writer.close(10)
        writer.add(b"late\n")
    assert (tmp_path / "log").read_bytes() == b""
