"""The limit of open files is raised where that is allowed, and else fewer connections are taken."""

import resource

import pytest

from clip4str_service.descriptors import with_descriptors
from tests.service.pixel_worker import settings


@pytest.mark.parametrize(
    ("soft", "hard", "raised", "connections"),
    [
        (1024, 1 << 20, 2 * 1000 + 256, 1000),
        (1024, 2256, 2256, 1000),
        (1024, resource.RLIM_INFINITY, 2256, 1000),
        (1024, 1024, 1024, 384),
        (1024, 2000, 2000, 872),
        (2256, 1 << 20, 2256, 1000),
        (resource.RLIM_INFINITY, resource.RLIM_INFINITY, resource.RLIM_INFINITY, 1000),
        (200, 200, 200, 1),
    ],
)
def test_room(
    soft: int,
    hard: int,
    raised: int,
    connections: int,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    limits = [(soft, hard)]
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda _, pair: limits.append(pair))
    assert with_descriptors(settings(max_connections=1000)).max_connections == connections
    assert limits[-1] == (raised, hard)
    assert bool(caplog.records) == (connections < 1000)
