"""An engine before a worker that reads pixels, its metrics, and what it answers."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from clip4str_service.engine import Answer, Engine
from clip4str_service.errors import ServiceError
from clip4str_service.metrics import Metrics
from clip4str_service.readings import Reading
from tests.service.pixel_worker import PixelWorker, settings


class Stage:
    """A started engine, its worker and its metrics."""

    def __init__(self, **changes: Any) -> None:
        self.worker = PixelWorker()
        self.metrics = Metrics()
        self.engine = Engine(self.worker, settings(**changes), self.metrics)

    def value(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(f"clip4str_{name}", labels) or 0.0

    async def until(self, value: float, name: str, **labels: str) -> None:
        """Returns when a metric has a value."""
        while self.value(name, **labels) != value:  # noqa: ASYNC110 (metrics raise no event)
            await asyncio.sleep(0.001)

    async def until_running(self, crops: int) -> None:
        await self.until(crops, "inflight_crops")

    async def until_prepared(self, crops: int) -> None:
        """Returns when so many crops, of all, wait or were run."""
        await self.until(crops, "stage_duration_seconds_count", stage="preprocess")
        await asyncio.sleep(0.01)


@asynccontextmanager
async def started(**changes: Any) -> AsyncIterator[Stage]:
    stage = Stage(**changes)
    await stage.engine.start()
    try:
        yield stage
    finally:
        stage.worker.gate.set()
        await stage.engine.drain()
        await stage.engine.stop()


def said(answer: Answer) -> list[str | type[ServiceError]]:
    """The text of each crop, or the kind of its error."""
    return [outcome.text if isinstance(outcome, Reading) else type(outcome) for outcome in answer.outcomes]
