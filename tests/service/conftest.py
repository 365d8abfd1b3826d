"""Services that tests share."""

from collections.abc import AsyncIterator

import pytest

from tests.service import rest_service, rpc_service


@pytest.fixture
async def service() -> AsyncIterator[rest_service.Service]:
    async with rest_service.serving() as service:
        yield service


@pytest.fixture
async def cold() -> AsyncIterator[rest_service.Service]:
    """A service whose model is not loaded."""
    async with rest_service.serving(loaded=False) as service:
        yield service


@pytest.fixture
async def rpc() -> AsyncIterator[rpc_service.RpcService]:
    async with rpc_service.serving() as service:
        yield service
