"""Writes of one turn of the loop leave together, in order, and before the end; over real sockets."""

import asyncio
import socket
from collections.abc import AsyncIterator

import pytest

from clip4str_service.joined_writes import JoinedWrites
from tests.service.front import PATIENCE


class Ends(asyncio.Protocol):
    """One end of a connection whose transport joins writes; `theirs` is the other, which keeps packets apart."""

    def __init__(self) -> None:
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.theirs, self._ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self.theirs.setblocking(False)
        self.paused = False

    async def open(self) -> None:
        await asyncio.get_running_loop().create_unix_connection(lambda: self, sock=self._ours)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.within = transport
        self.joined = JoinedWrites(transport)

    def pause_writing(self) -> None:
        self.paused = True

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self.over.set_result(None)

    async def received(self, most: int = 1 << 20) -> bytes:
        """What one read of the other end gives."""
        async with asyncio.timeout(PATIENCE):
            return await asyncio.get_running_loop().sock_recv(self.theirs, most)


@pytest.fixture
async def ends() -> AsyncIterator[Ends]:
    ends = Ends()
    await ends.open()
    yield ends
    ends.within.abort()
    await ends.over
    ends.theirs.close()


def nothing_came(ends: Ends) -> bool:
    try:
        ends.theirs.recv(1)
    except BlockingIOError:
        return True
    return False


async def test_writes_of_a_turn_leave_together_and_in_order(ends: Ends) -> None:
    ends.joined.write(b"head ")
    ends.joined.write(bytearray(b"body "))
    ends.joined.write(memoryview(b"end"))
    assert nothing_came(ends)
    assert ends.joined.get_write_buffer_size() == 13
    assert await ends.received() == b"head body end"
    assert ends.joined.get_write_buffer_size() == 0
    ends.joined.write(b"again")
    assert await ends.received() == b"again"


async def test_what_is_written_leaves_before_the_end(ends: Ends) -> None:
    ends.joined.write(b"last")
    ends.joined.close()
    assert ends.joined.is_closing()
    assert await ends.received() == b"last"
    assert await ends.received() == b""


async def test_what_is_written_leaves_before_half_an_end(ends: Ends) -> None:
    assert ends.joined.can_write_eof()
    ends.joined.write(b"last")
    ends.joined.write_eof()
    assert (await ends.received(), await ends.received()) == (b"last", b"")
    assert not ends.joined.is_closing()
    assert ends.joined.is_reading()


async def test_abort_sends_nothing_more(ends: Ends) -> None:
    ends.joined.write(b"never")
    ends.joined.abort()
    assert await ends.received() == b""


async def test_writes_after_the_end_are_lost_without_a_word(ends: Ends) -> None:
    ends.joined.close()
    ends.joined.write(b"too late")
    await asyncio.sleep(0)
    assert await ends.received() == b""


async def test_who_does_not_read_makes_the_writer_pause(ends: Ends) -> None:
    ends.joined.write(bytes(1 << 22))
    await asyncio.sleep(0)
    assert ends.paused
    assert ends.joined.get_write_buffer_size() > 0
    ends.joined.pause_reading()
    assert not ends.within.is_reading()
    ends.joined.resume_reading()
    assert ends.within.is_reading()
    assert ends.joined.get_extra_info("socket") is ends.within.get_extra_info("socket")
