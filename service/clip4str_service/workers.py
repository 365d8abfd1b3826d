"""The supervisor's side of a worker: its process, the batches it reads, its death or silence."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from time import monotonic

from clip4str_service.arena import Slots
from clip4str_service.child import Child
from clip4str_service.wire import (
    Arena,
    Batch,
    Beat,
    Done,
    FromWorker,
    Load,
    Loaded,
    StartFailed,
    Wanted,
)

WORKER = "clip4str_service.worker"
"""The module that a worker's process runs."""


class WorkerStartError(Exception):
    """The model cannot be loaded; the message is one line that says why."""


class WorkerDiedError(Exception):
    """The worker ended, or was silent for too long, with batches in hand."""


class WorkerProcess:
    """One worker, from its start to its end; another life needs another object."""

    def __init__(self, order: Load, *, silence: float, module: str = WORKER) -> None:
        """`silence`: seconds without a beat after which it is taken for hung; `module`: what the process runs."""
        self._module = module
        self.load_seconds = 0.0
        self._order = order
        self._child: Child[FromWorker] = Child(order.name, self._told, silence)
        self._loaded: asyncio.Future[Loaded] = asyncio.get_running_loop().create_future()
        self._batches: dict[int, asyncio.Future[Done]] = {}
        self._numbers = itertools.count()

    async def start(self) -> Loaded:
        """Starts the process and waits until its model is warm. Raises WorkerStartError."""
        started = monotonic()
        try:
            await self._child.start(self._module, FromWorker)
        except OSError as error:
            raise WorkerStartError(f"the worker's process cannot be started: {error.strerror}") from error
        self._child.over.add_done_callback(self._gone)
        self._child.send(self._order)
        loaded = await self._loaded
        self.load_seconds = monotonic() - started
        return loaded

    @property
    def hung(self) -> bool:
        """Whether it was killed because it hung."""
        return self._child.hung

    async def over(self) -> None:
        """Returns when the started worker is gone."""
        await asyncio.wait([self._child.over])

    def share(self, slots: Slots) -> None:
        """Gives the started worker the memory that batches will be in."""
        self._child.give(Arena(slots.count), slots.descriptor)

    async def read(self, slots: Sequence[int], wanted: Sequence[Wanted], limit: float) -> Done:
        """Has one batch read. Raises WorkerDiedError, also when it takes longer than `limit` seconds."""
        if self._child.over.done():
            raise WorkerDiedError("the worker is gone")
        number = next(self._numbers)
        answer = self._batches[number] = asyncio.get_running_loop().create_future()
        self._child.send(Batch(number, list(slots), list(wanted)))
        try:
            async with asyncio.timeout(limit):
                done: Done = await answer
        except TimeoutError:
            self._child.kill_hung(f"a batch of {len(slots)} crops took longer than {limit:.1f} s")
            await self.over()  # nothing of the batch is given to another lane of the same dying process
            raise WorkerDiedError("the worker hung") from None
        finally:
            del self._batches[number]
        return done

    async def stop(self) -> None:
        """Ends it; what it still reads is lost."""
        await self._child.end(0.0)

    def _told(self, message: FromWorker) -> None:
        match message:
            case Loaded():
                self._child.begun()
                if not self._loaded.done():  # else whoever waited was cancelled
                    self._loaded.set_result(message)
            case StartFailed():
                self._fail(message.reason)
            case Done():
                answer = self._batches.get(message.number)
                if answer is not None and not answer.done():
                    answer.set_result(message)
            case Beat():
                pass  # that it spoke is all

    def _gone(self, exited: asyncio.Task[int]) -> None:
        code = exited.result()
        how = f"exit code {code}" if code >= 0 else f"signal {-code}"
        self._fail(f"the worker ended while it loaded the model: {how}")
        for answer in self._batches.values():
            if not answer.done():
                answer.set_exception(WorkerDiedError("the worker ended"))

    def _fail(self, reason: str) -> None:
        if not self._loaded.done():
            self._loaded.set_exception(WorkerStartError(reason))
            self._loaded.exception()  # whoever waits gets it; if nobody does any more, that is no oversight
