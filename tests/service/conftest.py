"""Services that tests share."""

from collections.abc import AsyncIterator

import pytest

from tests.service.rest_service import Service


@pytest.fixture
async def cold() -> AsyncIterator[Service]:
    """A service whose engine was not started."""
    service = Service()
    async with service.http:
        yield service
    await service.engine.drain()
    await service.engine.stop()


@pytest.fixture
async def service(cold: Service) -> Service:
    await cold.engine.start()
    return cold
