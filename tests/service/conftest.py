"""Services that tests share."""

from collections.abc import AsyncIterator

import pytest

from tests.service.rest_service import Service


@pytest.fixture
async def cold() -> AsyncIterator[Service]:
    """A service whose model is not loaded."""
    service = Service()
    await service.stage.connect()
    async with service.http:
        yield service
    service.stage.worker.gate.set()
    await service.stage.stop()


@pytest.fixture
async def service(cold: Service) -> Service:
    await cold.stage.load()
    return cold
