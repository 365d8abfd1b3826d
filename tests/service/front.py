"""What REST and gRPC of a front end share, before a real engine: limits, keys, room for bytes."""

import asyncio

from clip4str_service.gate import Gate
from clip4str_service.intake import Intake
from clip4str_service.settings import Settings
from clip4str_service.tracing import RequestTracing
from tests.service.engine_stage import Stage
from tests.service.pixel_worker import settings

LIMITS = settings(max_crop_bytes=2000, max_request_bytes=10_000, max_crops=4)

PATIENCE = 10.0
"""Seconds in which anything that must happen does happen, on the slowest machine."""


class Front:
    """The parts of a front end, in this process. Not started: the stage."""

    def __init__(self, limits: Settings = LIMITS) -> None:
        self.stage = Stage(limits)
        self.gate = Gate(limits.api_keys_file)
        self.intake = Intake(limits.queue_bytes)
        self.tracing = RequestTracing(None, 1.0)

    async def open(self, loaded: bool = True) -> None:
        """The front end reaches the supervisor; the model is loaded or not."""
        await self.stage.connect()
        if loaded:
            await self.stage.load()

    async def stop(self) -> None:
        """Gives everything up; the test fails if anything is held of a request."""
        self.stage.worker.gate.set()
        try:
            if hasattr(self.stage.generation, "batcher"):
                await self.until_idle()
        finally:
            await self.stage.stop()

    @property
    def held(self) -> dict[str, int]:
        """What is held of requests: crops that are queued or run, slots of theirs, bytes."""
        return {
            "queued": self.stage.queued,
            "running": self.stage.running,
            "slots": self.stage.capacity - self.stage.generation.slots.free,
            "bytes": self.intake.held,
        }

    async def until_idle(self) -> None:
        """Returns when nothing is held of any request; the test fails if that takes long."""
        try:
            async with asyncio.timeout(PATIENCE):
                while any(self.held.values()):  # noqa: ASYNC110 (nobody raises an event)
                    await asyncio.sleep(0.001)
        except TimeoutError:
            raise AssertionError(f"this is held for nobody: {self.held}") from None
