"""Ports are taken once, by us alone, or the start says which setting is wrong."""

import socket
from collections.abc import Callable

import pytest

from clip4str_service.ports import PortError, listening_socket, reserved_port, taking
from tests.service.pixel_worker import settings

HOSTS = ["127.0.0.1", "::1"]


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("take", [listening_socket, reserved_port])
def test_port_is_taken_once(host: str, take: Callable[[str, int], socket.socket]) -> None:
    with take(host, 0) as taken:
        port = taken.getsockname()[1]
        assert port > 0
        for other in (listening_socket, reserved_port):
            with pytest.raises(OSError, match="in use"):
                other(host, port)


def test_front_ends_listen_side_by_side_on_a_reserved_port() -> None:
    with reserved_port("127.0.0.1", 0) as held, socket.socket() as one, socket.socket() as other:
        for each in (one, other):
            each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            each.bind(held.getsockname())
            each.listen()
        reached = set()
        for _ in range(200):
            with socket.create_connection(held.getsockname()):
                one.settimeout(0.01)
                try:
                    one.accept()[0].close()
                    reached.add("one")
                except TimeoutError:
                    other.accept()[0].close()
                    reached.add("other")
            if len(reached) == 2:
                return
    pytest.fail(f"only {reached} was reached")


def test_nobody_is_answered_on_a_port_that_is_only_reserved() -> None:
    with reserved_port("127.0.0.1", 0) as held, pytest.raises(ConnectionRefusedError):
        socket.create_connection(held.getsockname())


@pytest.mark.parametrize("field", ["http_port", "grpc_port", "metrics_port"])
@pytest.mark.parametrize("error", [OSError(98, "Address already in use"), OSError("no such name")])
def test_setting_that_is_wrong_is_named_in_one_line(field: str, error: OSError) -> None:
    with pytest.raises(PortError) as caught, taking(settings(**{field: 8081}), field):
        raise error
    line = str(caught.value)
    flag = field.replace("_", "-")
    assert line == (
        f"CLIP4STR_{field.upper()} (--{flag}): cannot listen on 127.0.0.1:8081: {error.strerror or error}"
    )
