"""A child's process that does as it is told, and starts fast: `python -m tests.service.echo_process`.

It is told ["Act", WHAT]: "say" something, "beat" on, be "deaf" to Stop, "read" the descriptor that comes beside.
"""

import os
import select
import socket
import struct
import sys
from typing import Any

import msgspec

_BEAT_SECONDS = 0.02


def _receive(channel: socket.socket) -> Any:
    """The next message, None at the end."""
    head = channel.recv(4, socket.MSG_WAITALL)
    if not head:
        return None
    (length,) = struct.unpack("<I", head)
    return msgspec.msgpack.decode(channel.recv(length, socket.MSG_WAITALL))


def _say(channel: socket.socket, text: str) -> None:
    body = msgspec.msgpack.encode(["Said", text])
    channel.sendall(struct.pack("<I", len(body)) + body)


def main() -> None:
    channel, descriptors = (socket.socket(fileno=int(number)) for number in sys.argv[1:])
    beats, heeds = False, True
    while True:
        if not select.select([channel], [], [], _BEAT_SECONDS)[0]:
            if beats:
                _say(channel, "beat")
            continue
        match _receive(channel):
            case None:
                return
            case ["Stop", _] if heeds:
                return
            case ["Act", "say"]:
                _say(channel, "something")
            case ["Act", "beat"]:
                beats = True
            case ["Act", "deaf"]:
                heeds = False
            case ["Act", "read"]:
                _, (descriptor,), _, _ = socket.recv_fds(descriptors, 1, 1)
                _say(channel, os.pread(descriptor, 100, 0).decode())


if __name__ == "__main__":
    main()
