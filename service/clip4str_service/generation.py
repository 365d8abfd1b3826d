"""A loaded model as the supervisor has it: its workers kept alive, the slots for its crops, its batches.

A reload makes a new generation beside the old one, which then answers what it has accepted and goes.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, Protocol

import msgspec

from clip4str_service.arena import Slots
from clip4str_service.batcher import Batch, Batcher, BatcherClosedError, Bounds, Fate
from clip4str_service.child import side_by_side
from clip4str_service.readings import ModelInfo
from clip4str_service.wire import Done, DropReason, Load, Loaded, Wanted
from clip4str_service.workers import WorkerDiedError, WorkerStartError

log = logging.getLogger(__name__)

_FIRST_PAUSE, _LAST_PAUSE = 0.5, 30.0  # seconds before a worker that could not start is started again
_HOPELESS = 5  # starts in a row that failed, after which only a new service can help
_SLOW = 20.0  # times the usual duration: a batch that takes as long never ends


class Job(NamedTuple):
    """One crop: the slot that its pixels are in, and how to read it."""

    slot: int
    wanted: Wanted


class UnreadableError(Exception):
    """The model failed on this crop alone."""


class Observer(Protocol):
    """Is told what happens to a generation's crops and workers."""

    def sealed(self, batch: Batch[Job, bytes]) -> None:
        """A batch goes to a worker."""

    def read(
        self,
        generation: Generation,
        batch: Batch[Job, bytes],
        finished_at: float,
        stages: Mapping[str, float],
        failure: str = "",
    ) -> None:
        """A batch was read, or failed as a whole; `stages` holds the seconds of each part of the work."""

    def dropped(self, reason: DropReason) -> None:
        """An admitted crop will never run."""

    def restarted(self, reason: Literal["exit", "hang"]) -> None:
        """A worker is gone and another is started."""


class Worker(Protocol):
    """One life of a worker, see `WorkerProcess`."""

    @property
    def hung(self) -> bool:
        """Whether it was killed because it hung."""

    @property
    def load_seconds(self) -> float:
        """From its start until it was warm."""

    async def start(self) -> Loaded:
        """Returns when its model is warm. Raises WorkerStartError."""

    def share(self, slots: Slots) -> None:
        """Gives it the memory that batches will be in."""

    async def read(self, slots: Sequence[int], wanted: Sequence[Wanted], limit: float) -> Done:
        """Reads one batch. Raises WorkerDiedError, also when it takes longer than `limit` seconds."""

    async def over(self) -> None:
        """Returns when it is gone."""

    async def stop(self) -> None:
        """Ends it."""


@dataclass(frozen=True, slots=True)
class Care:
    """How workers are had and watched.

    `worker`: makes one. `patience`: seconds that any batch may take. `changed` is called when a generation's `up`,
    `hopeless` or `stale` has changed.
    """

    worker: Callable[[Load], Worker]
    patience: float
    changed: Callable[[], None]


class Generation:
    """Workers of one model, one for each order and their companions, and what waits for them. Made by `load`."""

    def __init__(self, number: int, care: Care, bounds: Bounds, observer: Observer) -> None:
        self.number = number
        self.up: set[Worker] = set()
        # Whether the model's file is another one by now: no worker that ends can be replaced.
        self.stale = False
        self._care = care
        self._observer = observer
        self._bounds = bounds
        self._keepers: list[asyncio.Task[None]] = []
        self._failures: dict[str, int] = {}  # starts in a row that failed, by the order's name

    @property
    def hopeless(self) -> bool:
        """Whether no worker is up, and none can be started any more."""
        return not self.up and min(self._failures.values(), default=0) >= _HOPELESS

    async def load(self, orders: Sequence[Load]) -> None:
        """Starts a worker for each order. Raises WorkerStartError when one cannot, or loads another model.

        Their companions come later: the first to be warm can read meanwhile.
        """
        workers = [self._care.worker(order) for order in orders]
        try:
            loaded = await side_by_side(worker.start() for worker in workers)
            models = [each.model for each in loaded]
            if len({model.revision for model in models}) > 1:
                raise WorkerStartError("the model changed while it was loaded: load it again")
            self.model: ModelInfo = replace(models[0], device=", ".join(each.device for each in models))
            self.slots = Slots(self._bounds.max_items, self.model.image_size)
        except BaseException:
            await asyncio.gather(*(worker.stop() for worker in workers), return_exceptions=True)
            raise
        largest = min(each.max_batch for each in loaded)
        bounds = replace(self._bounds, max_batch=min(self._bounds.max_batch, largest))
        self.at_once = bounds.max_batch * sum(each.lanes * (1 + each.companions) for each in loaded)
        self.batcher: Batcher[Job, bytes] = Batcher(bounds, self, sizeof=len)
        self.load_seconds = max(worker.load_seconds for worker in workers)
        self.up.update(workers)  # at once: who goes over to this generation must not find it without workers
        for order, worker, each in zip(orders, workers, loaded, strict=True):
            self._have(order, (worker, each))
            for number in range(1, each.companions + 1):
                self._have(_companion(order, each, number))

    async def drained(self) -> None:
        """Takes no more crops; returns when every accepted one has its outcome."""
        self.batcher.close()
        await self.batcher.drained()

    async def stop(self) -> None:
        """Ends the workers; what has no outcome yet has that it is closed."""
        self.batcher.stop()
        for keeper in self._keepers:
            keeper.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)
        await asyncio.gather(*(worker.stop() for worker in self.up))  # those whose keepers had not begun
        self.slots.close()

    def sealed(self, batch: Batch[Job, bytes]) -> None:
        """As the batcher's observer."""
        self._observer.sealed(batch)

    def dropped(self, reason: DropReason) -> None:
        """As the batcher's observer."""
        self._observer.dropped(reason)

    def released(self, item: Job) -> None:
        """As the batcher's observer."""
        self.slots.give_back([item.slot])

    def _have(self, order: Load, first: tuple[Worker, Loaded] | None = None) -> None:
        """From now on there is a worker for this order; `first` runs already."""
        self._failures[order.name] = 0
        self._keepers.append(asyncio.create_task(self._keep(order, first)))

    async def _keep(self, order: Load, first: tuple[Worker, Loaded] | None) -> None:
        """Has a worker read, and another one when it is gone, until it is cancelled."""
        worker, loaded = first or await self._start(order)
        try:
            while True:
                await self._serve(worker, loaded)
                await worker.stop()
                reason: Literal["exit", "hang"] = "hang" if worker.hung else "exit"
                log.error(
                    "a worker is gone; another is started", extra={"worker": order.name, "reason": reason}
                )
                self._observer.restarted(reason)
                worker, loaded = await self._start(order)
        finally:
            await worker.stop()

    async def _serve(self, worker: Worker, loaded: Loaded) -> None:
        """Runs a worker's lanes until it is gone."""
        worker.share(self.slots)
        self.up.add(worker)
        self._care.changed()
        runners = [(worker, lane % loaded.processors) for lane in range(loaded.lanes)]
        fate = Fate()
        lanes = [asyncio.create_task(self._run(worker, runner, fate)) for runner in runners]
        try:
            await worker.over()
        finally:
            for lane in lanes:
                lane.cancel()
            await asyncio.wait(lanes)
            for runner in set(runners):
                self.batcher.forget(runner)
            self.up.discard(worker)
            self._care.changed()

    async def _run(self, worker: Worker, runner: Hashable, fate: Fate) -> None:
        """One lane: takes a batch, has it read, and again."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                batch = await self.batcher.take(runner, fate=fate)
            except BatcherClosedError:
                return
            slots, wanted = zip(*batch.items, strict=True)
            try:
                done = await worker.read(slots, wanted, self._limit(len(batch)))
            except (WorkerDiedError, asyncio.CancelledError) as error:
                self._observer.read(self, batch, loop.time(), {}, "worker_died")
                self.batcher.give_back(batch)
                if isinstance(error, asyncio.CancelledError):
                    raise
                return
            self._observer.read(self, batch, loop.time(), done.stages)
            outcomes = [UnreadableError() if each is None else each for each in done.readings]
            self.batcher.finish(batch, outcomes)

    def _limit(self, crops: int) -> float:
        """Seconds that a batch may take: many times what such a batch takes, or, not known, what loading took."""
        usual = self.batcher.cost.seconds(crops) or self.load_seconds
        return max(self._care.patience, _SLOW * usual)

    async def _start(self, order: Load) -> tuple[Worker, Loaded]:
        while True:
            worker = self._care.worker(order)
            try:
                loaded = await worker.start()
                if loaded.model.revision != self.model.revision:
                    self.stale = True
                    raise WorkerStartError("the model's file is another one now")
            except WorkerStartError as error:
                await worker.stop()
                failures = self._failures[order.name] = self._failures[order.name] + 1
                self._care.changed()
                pause = min(_LAST_PAUSE, _FIRST_PAUSE * 2 ** (failures - 1))
                why = {"worker": order.name, "why": str(error), "next_s": pause}
                log.error("a worker cannot be started", extra=why)
                await asyncio.sleep(pause)
            except BaseException:
                await worker.stop()
                raise
            else:
                self._failures[order.name] = 0
                self.load_seconds = worker.load_seconds
                return worker, loaded


def _companion(order: Load, loaded: Loaded, number: int) -> Load:
    """What is ordered of a companion of a worker that did as `order` says."""
    return msgspec.structs.replace(order, name=f"{order.name}-{number}", threads=loaded.lanes, processes=1)
