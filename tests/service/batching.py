"""A runner for batchers under test, and the stage on which they play, in virtual time."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from clip4str_service.batcher import Batcher, Bounds, DropReason
from tests.service.virtual_time import run

BOUNDS = Bounds(max_batch=4, max_delay=0.002, max_items=16, max_bytes=1000)


class BreakdownError(Exception):
    """The runner fails."""


@dataclass
class Runner:
    """Takes `seconds` for a batch and answers each item with its double; breaks when an item is negative."""

    seconds: float = 0.010
    batches: list[list[int]] = field(default_factory=list)
    starts: list[float] = field(default_factory=list)
    drops: list[DropReason] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)
    busy: bool = False

    async def __call__(self, items: list[int]) -> Sequence[int]:
        assert not self.busy, "two batches at a time"
        self.busy = True
        self.batches.append(items)
        self.starts.append(asyncio.get_running_loop().time())
        await asyncio.sleep(self.seconds)
        self.busy = False
        if min(items) < 0:
            raise BreakdownError
        return [2 * item for item in items]

    def sealed(self, waits: Sequence[float]) -> None:
        self.waits += waits

    def dropped(self, reason: DropReason) -> None:
        self.drops.append(reason)


def with_batcher(scenario: Callable[[Batcher[int, int]], Awaitable[None]], bounds: Bounds = BOUNDS) -> Runner:
    """Plays a scenario in virtual time and returns the runner it was played with."""

    async def play() -> Runner:
        runner = Runner()
        batcher = Batcher(runner, bounds, runner)
        batcher.start()
        await scenario(batcher)
        await batcher.stop()
        return runner

    return run(play())
