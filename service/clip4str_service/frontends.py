"""The supervisor's side of a front end: its process, started again whenever it is gone."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import msgspec

from clip4str_service.child import Child
from clip4str_service.dispatcher import Dispatcher, Peer
from clip4str_service.generation import Generation as Model
from clip4str_service.wire import (
    Admit,
    Beat,
    FromFrontend,
    Frontend,
    Generation,
    Listening,
    Retired,
    StartFailed,
    State,
    Submit,
    Withdraw,
)

log = logging.getLogger(__name__)

MODULE = "clip4str_service.frontend"

_PAUSE = 0.5  # seconds between two starts


class FrontEndError(Exception):
    """A front end cannot start; the message is one line that says why."""


class FrontEnd:
    """One front end, through as many processes as it takes."""

    def __init__(
        self,
        order: Frontend,
        dispatcher: Dispatcher,
        changed: Callable[[], None],
        *,
        silence: float,
    ) -> None:
        """`changed` is called when `up` has changed; `silence`: seconds, as of `Child`."""
        self.up = False
        self._order = order
        self._dispatcher = dispatcher
        self._changed = changed
        self._silence = silence
        self._models: dict[int, Model] = {}
        self._state: State | None = None
        self._life: _Life | None = None
        self._keeper: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Starts its process, and others when that is gone; returns when it answers. Raises FrontEndError."""
        life = await self._begin()
        self._keeper = asyncio.create_task(self._keep(life))

    def add(self, model: Model) -> None:
        """Tells it of a model that calls may be admitted to."""
        self._models[model.number] = model
        if self._life is not None:
            self._life.add(model)

    def remove(self, model: Model) -> None:
        """Tells it that a model is gone."""
        del self._models[model.number]
        self.send(Retired(model.number))

    def state(self, state: State) -> None:
        """Tells it how the service is."""
        self._state = state
        self.send(state)

    def send(self, message: msgspec.Struct) -> None:
        """Tells it something; while it has no process, nobody hears it."""
        if self._life is not None:
            self._life.child.send(message)

    async def stop(self, grace: float) -> None:
        """Ends it; answers that are ready have so many seconds to leave."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait([self._keeper])
        if self._life is not None:
            await self._life.child.end(grace)

    async def _begin(self) -> _Life:
        life = self._life = _Life(self._order.name, self._dispatcher, self._silence)
        try:
            await life.child.start(MODULE, FromFrontend, [self._order.http_socket])
        except OSError as error:
            self._life = None
            raise FrontEndError(f"a front end's process cannot be started: {error.strerror}") from error
        life.child.send(self._order)
        for model in self._models.values():
            life.add(model)
        if self._state is not None:
            life.child.send(self._state)
        ends: list[asyncio.Future[Any]] = [life.listening, life.child.over]
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        if not life.listening.done():
            raise FrontEndError(f"a front end ended while it started: exit code {life.child.over.result()}")
        try:
            await life.listening
        except FrontEndError:
            await life.child.end(0.0)
            raise
        self.up = True
        self._changed()
        return life

    async def _keep(self, life: _Life) -> None:
        while True:
            await asyncio.wait([life.child.over])
            self.up = False
            life.peer.gone()
            self._changed()
            log.error("a front end is gone; another is started", extra={"front_end": self._order.name})
            while True:
                try:
                    life = await self._begin()
                    break
                except FrontEndError as error:
                    log.error("a front end cannot be started", extra={"why": str(error)})
                    await asyncio.sleep(_PAUSE)


class _Life:
    """One process of a front end."""

    def __init__(self, name: str, dispatcher: Dispatcher, silence: float) -> None:
        self.child: Child[FromFrontend] = Child(name, self._told, silence)
        self.peer = Peer(dispatcher, self.child.send)
        self.listening: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def add(self, model: Model) -> None:
        told = Generation(model.number, model.model, model.slots.count, model.at_once)
        self.child.give(told, model.slots.descriptor)

    def _told(self, message: FromFrontend) -> None:
        match message:
            case Admit() | Submit() | Withdraw():
                self.peer.told(message)
            case Listening():
                self.child.begun()
                self.listening.set_result(None)
            case StartFailed():
                self.listening.set_exception(FrontEndError(message.reason))
            case Beat():
                pass  # that it spoke is all
