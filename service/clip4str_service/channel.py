"""Messages between two processes of the service, over one end of a socket pair.

Each message is four bytes of length, little-endian, and MessagePack. Descriptors travel beside the messages, over
a socket pair of their own.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import Callable
from typing import Any, Generic, TypeVar, cast

import msgspec

M = TypeVar("M")

_LENGTH = struct.Struct("<I")


class Channel(asyncio.Protocol, Generic[M]):
    """One end, once `open_channel` made it.

    `receive` is called with each message of the other end, then `closed` once, when the other end is gone.
    """

    def __init__(self, messages: Any, receive: Callable[[M], None], closed: Callable[[], None]) -> None:
        """`messages`: the union of the types that may come."""
        self._decoder = msgspec.msgpack.Decoder(messages)
        self._encoder = msgspec.msgpack.Encoder()
        self._receive = receive
        self._closed = closed
        self._buffer = bytearray()
        self._unsent: list[bytes] = []
        self._transport: asyncio.WriteTransport | None = None

    def send(self, message: msgspec.Struct) -> None:
        """Sends one message, with the others of this turn of the loop; once the other end is gone, to nobody."""
        if not self._unsent:
            asyncio.get_running_loop().call_soon(self._flush)
        body = self._encoder.encode(message)
        self._unsent += (_LENGTH.pack(len(body)), body)

    def close(self) -> None:
        """Sends what is still to be sent, then closes."""
        self._flush()
        if self._transport is not None:
            self._transport.close()

    def _flush(self) -> None:
        unsent, self._unsent = self._unsent, []
        if unsent and self._transport is not None and not self._transport.is_closing():
            self._transport.write(b"".join(unsent))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """As asyncio.Protocol."""
        self._transport = cast(asyncio.WriteTransport, transport)

    def data_received(self, data: bytes) -> None:
        """As asyncio.Protocol."""
        buffer = self._buffer
        buffer += data
        start = 0
        while len(buffer) - start >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(buffer, start)
            end = start + _LENGTH.size + length
            if len(buffer) < end:
                break
            message = self._decoder.decode(buffer[start + _LENGTH.size : end])
            start = end
            self._receive(message)
        del buffer[:start]

    def connection_lost(self, error: Exception | None) -> None:  # noqa: ARG002 (its end is all that counts)
        """As asyncio.Protocol."""
        self._closed()


async def open_channel(
    end: socket.socket, messages: Any, receive: Callable[[M], None], closed: Callable[[], None]
) -> Channel[M]:
    """A channel over a socket, which it takes over."""
    end.setblocking(False)
    channel: Channel[M] = Channel(messages, receive, closed)
    await asyncio.get_running_loop().create_unix_connection(lambda: channel, sock=end)
    return channel


def send_descriptor(end: socket.socket, descriptor: int) -> None:
    """Sends a descriptor, to be taken with the message that tells of it; the sender keeps its own."""
    socket.send_fds(end, [b"\0"], [descriptor])


def take_descriptor(end: socket.socket) -> int:
    """The next descriptor that was sent. Raises OSError when there is none."""
    _, descriptors, _, _ = socket.recv_fds(end, 1, 1)
    if not descriptors:
        raise OSError("the other end sent no descriptor")
    os.set_inheritable(descriptors[0], False)
    return descriptors[0]
