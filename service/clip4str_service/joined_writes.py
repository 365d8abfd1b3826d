"""A transport that joins small writes: what is written in one turn of the loop leaves in one system call.

An answer's head and its body are written one after the other. Each by itself is a packet of its own, and wakes the
other end: for a small answer, that is a third of all the work on it.
"""

from __future__ import annotations

import asyncio
from typing import Any


class JoinedWrites(asyncio.Transport):
    """As the transport within, but `write` waits for the end of this turn of the loop. Made on its event loop."""

    def __init__(self, transport: asyncio.Transport) -> None:
        super().__init__()
        self._transport = transport
        self._loop = asyncio.get_running_loop()
        self._unsent: list[bytes | bytearray | memoryview] = []

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """As asyncio.Transport; `data` must not be changed afterwards."""
        if not self._unsent:
            self._loop.call_soon(self._flush)
        self._unsent.append(data)

    def write_eof(self) -> None:
        """As asyncio.Transport."""
        self._flush()
        self._transport.write_eof()

    def can_write_eof(self) -> bool:
        """As asyncio.Transport."""
        return self._transport.can_write_eof()

    def get_write_buffer_size(self) -> int:
        """As asyncio.Transport."""
        return self._transport.get_write_buffer_size() + sum(map(len, self._unsent))

    def close(self) -> None:
        """As asyncio.Transport: what is written leaves before."""
        self._flush()
        self._transport.close()

    def abort(self) -> None:
        """As asyncio.Transport."""
        self._unsent.clear()
        self._transport.abort()

    def is_closing(self) -> bool:
        """As asyncio.Transport."""
        return self._transport.is_closing()

    def is_reading(self) -> bool:
        """As asyncio.Transport."""
        return self._transport.is_reading()

    def pause_reading(self) -> None:
        """As asyncio.Transport."""
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        """As asyncio.Transport."""
        self._transport.resume_reading()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """As asyncio.Transport."""
        return self._transport.get_extra_info(name, default)

    def _flush(self) -> None:
        unsent, self._unsent = self._unsent, []
        if unsent and not self._transport.is_closing():
            self._transport.write(b"".join(unsent))
