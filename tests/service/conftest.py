"""Services that tests share."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.service import rest_service, rpc_service
from tests.service.certificates import Mint
from tests.service.guarded import Doors


@pytest.fixture
def mint(tmp_path: Path) -> Mint:
    return Mint(tmp_path)


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


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def servers() -> AsyncIterator[Doors]:
    opened = Doors()
    yield opened
    await opened.close()


@pytest_asyncio.fixture(loop_scope="module")
async def doors(servers: Doors) -> AsyncIterator[Doors]:
    """Servers that must be empty when a test has ended."""
    yield servers
    await servers.until_empty()
