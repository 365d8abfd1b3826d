"""A gRPC client, in plain bytes of HTTP/2, that begins a message and does not end it."""

import asyncio
import struct

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _SETTINGS = 0, 1, 4
_ACK, _END_HEADERS = 1, 4
_FRAME_BYTES = 16_000


class HalfSent:
    """One call on a connection of its own. `open` it; the message says of itself that it has `size` bytes."""

    def __init__(self, port: int, method: str, size: int = 4000) -> None:
        self._port = port
        self._method = method
        self._size = size

    async def open(self, sent: int = 100) -> None:
        """Begins the call and sends so many bytes of its message."""
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
        self._writer.write(_PREFACE + _frame(_SETTINGS, 0, 0, b"") + _frame(_SETTINGS, _ACK, 0, b""))
        fields = {
            ":method": "POST",
            ":scheme": "http",
            ":path": self._method,
            ":authority": "test",
            "te": "trailers",
            "content-type": "application/grpc",
        }
        block = b"".join(_field(name, value) for name, value in fields.items())
        self._writer.write(_frame(_HEADERS, _END_HEADERS, 1, block))
        self.send(struct.pack(">BI", 0, self._size) + bytes(sent))

    def send(self, data: bytes) -> None:
        """More of the message; what the server's window has no room for is not for this client."""
        for start in range(0, len(data), _FRAME_BYTES):
            self._writer.write(_frame(_DATA, 0, 1, data[start : start + _FRAME_BYTES]))

    def leave(self) -> None:
        """Cuts the connection."""
        self._writer.transport.abort()


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def _field(name: str, value: str) -> bytes:
    """A header field as HPACK's literal without indexing."""
    return b"\0" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()
