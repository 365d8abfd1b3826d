"""The service's ports: taken by the supervisor before anything else, used by the front ends."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from typing import NamedTuple

from clip4str_service.settings import Settings, flag, variable

_BACKLOG = 2048  # connections that wait to be accepted


class PortError(Exception):
    """A port cannot be taken; the message is one line that names its setting."""


class Ports(NamedTuple):
    """The ports that were taken."""

    http: int
    grpc: int
    metrics: int


@contextlib.contextmanager
def taking(settings: Settings, field: str) -> Iterator[None]:
    """Turns an OSError into a PortError that names the setting."""
    try:
        yield
    except OSError as error:
        where = f"{settings.host}:{getattr(settings, field)}"
        reason = error.strerror or str(error)
        raise PortError(f"{variable(field)} ({flag(field)}): cannot listen on {where}: {reason}") from error


def listening_socket(host: str, port: int) -> socket.socket:
    """A socket that listens, for front ends to accept from side by side. Raises OSError."""
    listening = _socket(host)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen(_BACKLOG)
    except OSError:
        listening.close()
        raise
    return listening


def reserved_port(host: str, port: int) -> socket.socket:
    """A socket that holds a port which the front ends, each for itself, listen on. Raises OSError.

    gRPC takes no socket that is open already: its servers share a port by SO_REUSEPORT, and whoever comes later
    could do so unseen. Hence the port is first taken without.
    """
    with _socket(host) as alone:
        alone.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        alone.bind((host, port))
        port = alone.getsockname()[1]
    held = _socket(host)
    try:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        held.bind((host, port))
    except OSError:
        held.close()
        raise
    return held


def _socket(host: str) -> socket.socket:
    # asyncio turns Nagle's algorithm off only for sockets that name TCP as their protocol; with it on, each
    # answer, written as head and body, would wait for the client's delayed acknowledgement: 40 ms.
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
