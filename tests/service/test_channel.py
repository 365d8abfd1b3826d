"""Messages over a socket pair: however their bytes are cut, each comes once, whole and in order."""

import asyncio
import logging
import os
import socket
import struct
from typing import TypeAlias

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Struct

from clip4str_service.channel import Channel, open_channel, send_descriptor, take_descriptor


class Word(Struct, frozen=True, array_like=True, tag=True):
    content: bytes


class Number(Struct, frozen=True, array_like=True, tag=True):
    value: int


Said: TypeAlias = Word | Number

said = st.lists(
    st.builds(Word, st.binary(max_size=300)) | st.builds(Number, st.integers(0, 1 << 40)), max_size=8
)


def framed(*messages: Said) -> bytes:
    """The bytes that messages travel as."""
    bodies = [msgspec.msgpack.encode(message) for message in messages]
    return b"".join(struct.pack("<I", len(body)) + body for body in bodies)


def receiver(heard: list[Said]) -> Channel[Said]:
    return Channel(Said, heard.append, lambda: None)


@settings(deadline=None)
@given(said, st.data())
def test_messages_survive_any_splitting(messages: list[Said], data: st.DataObject) -> None:
    content = framed(*messages)
    cuts = data.draw(st.lists(st.integers(0, len(content)), max_size=20).map(sorted))
    heard: list[Said] = []
    channel = receiver(heard)
    for start, end in zip([0, *cuts], [*cuts, len(content)], strict=True):
        channel.data_received(content[start:end])
    assert heard == messages


def test_message_is_heard_with_its_last_byte_and_not_before() -> None:
    first, second = framed(Word(b"a" * 70_000)), framed(Number(1))
    heard: list[Said] = []
    channel = receiver(heard)
    for number, byte in enumerate(first + second, 1):
        channel.data_received(bytes([byte]))
        assert len(heard) == (number >= len(first)) + (number == len(first + second))


class End:
    """One end of a channel, and what came to it."""

    channel: Channel[Said]

    def __init__(self) -> None:
        self.heard: list[Said] = []
        self.closed = 0
        self.over = asyncio.Event()

    def _closed(self) -> None:
        self.closed += 1
        self.over.set()

    async def open(self, end: socket.socket) -> "End":
        self.channel = await open_channel(end, Said, self.heard.append, self._closed)
        return self


async def pair() -> tuple[End, End]:
    one, other = socket.socketpair()
    return await End().open(one), await End().open(other)


async def test_large_messages_go_both_ways_at_once_and_in_order() -> None:
    one, other = await pair()
    messages: list[Said] = [Word(os.urandom(3 << 20)), Number(1), Word(b""), Number(2)]
    for message in messages:
        one.channel.send(message)
        other.channel.send(message)
    one.channel.close()  # what was sent goes first
    await other.over.wait()
    other.channel.close()
    await one.over.wait()
    assert other.heard == messages
    assert (one.closed, other.closed) == (1, 1)


async def test_end_that_is_gone_is_told_once_and_hears_nothing() -> None:
    one, theirs = socket.socketpair()
    end = await End().open(one)
    theirs.close()
    await end.over.wait()
    for _ in range(10):
        end.channel.send(Number(1))
    end.channel.close()
    await asyncio.sleep(0.01)
    assert end.closed == 1


async def test_reset_is_an_end_as_well() -> None:
    one, theirs = socket.socketpair()
    end = await End().open(one)
    end.channel.send(Number(1))
    theirs.close()  # with a message unread
    await end.over.wait()
    assert end.closed == 1


@pytest.mark.parametrize(
    "content", [b"\x01\0\0\0\xc1", b"\x02\0\0\0\x90\x90", b"\x07\0\0\0\x92\xa5Other\x01"]
)
async def test_what_nobody_may_say_ends_the_channel(content: bytes, caplog: pytest.LogCaptureFixture) -> None:
    one, theirs = socket.socketpair()
    with theirs:
        end = await End().open(one)
        theirs.send(content)
        await end.over.wait()
    assert end.heard == []
    assert [record.levelno for record in caplog.records] == [logging.ERROR]


async def test_what_one_turn_of_the_loop_says_is_one_write() -> None:
    one, theirs = socket.socketpair()
    with theirs:
        theirs.setblocking(False)
        end = await End().open(one)
        messages: list[Said] = [Number(number) for number in range(100)]
        for message in messages:
            end.channel.send(message)
        with pytest.raises(BlockingIOError):
            theirs.recv(1)
        await asyncio.sleep(0)
        assert theirs.recv(1 << 16) == framed(*messages)
        end.channel.send(Number(1))
        end.channel.close()
        assert theirs.recv(1 << 16) == framed(Number(1))
        await end.over.wait()


def test_descriptor_is_the_takers_own() -> None:
    one, other = socket.socketpair()
    with one, other:
        sent = os.memfd_create("test")
        os.write(sent, b"shared")
        send_descriptor(one, sent)
        os.close(sent)
        taken = take_descriptor(other)
        assert os.pread(taken, 6, 0) == b"shared"
        assert not os.get_inheritable(taken)
        os.close(taken)


def test_message_without_its_descriptor_is_an_error() -> None:
    one, other = socket.socketpair()
    with one, other:
        one.send(b"\0")
        with pytest.raises(OSError, match="sent no descriptor"):
            take_descriptor(other)
