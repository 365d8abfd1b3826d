"""Fixtures of the model library's tests."""

from collections.abc import Iterator

import pytest

from clip4str import transfer
from tests.model.downloads import CONTENT
from tests.model.file_server import Site, serving


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """A server for downloads of CONTENT, in small chunks and without waiting."""
    monkeypatch.setattr(transfer, "_PAUSE_S", 0.0)
    monkeypatch.setattr(transfer, "_CHUNK", 10_000)
    with serving(CONTENT) as site:
        yield site
