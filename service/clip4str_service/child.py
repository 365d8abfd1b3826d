"""A child process of the supervisor: started with a channel, watched for its beat, ended."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import sys
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any, Generic, TypeVar

import msgspec

from clip4str_service.channel import Channel, open_channel, send_descriptor
from clip4str_service.wire import Stop

log = logging.getLogger(__name__)

M = TypeVar("M")
T = TypeVar("T")

_STOP_SECONDS = 2.0  # for a child that has nothing left to do
_BEGINNING_SECONDS = 180.0  # for silences while it imports and loads, on a slow disk or a busy machine
_TICKS = 8  # looks at a child in the time that it may be silent


class Child(Generic[M]):
    """One process that runs a module of the service. `over` is done, with its exit code, when it is gone.

    Once it has `begun` it must say something every `silence` seconds, or it is taken for hung and killed; before, it
    may be silent for minutes. What it is told before it is started, or when it is gone, nobody hears.
    """

    over: asyncio.Task[int]

    def __init__(self, name: str, receive: Callable[[M], None], silence: float) -> None:
        self.hung = False
        self._channel: Channel[M] | None = None
        self._name = name
        self._receive = receive
        self._silence = silence
        self._begun = False
        self._said_something = False

    async def start(self, module: str, messages: Any, inherited: Sequence[int] = ()) -> None:
        """Starts `python -m module CHANNEL DESCRIPTORS`, both numbers of descriptors that it inherits.

        `messages`: the union of the types that it may send; `inherited`: more descriptors that it has by the same
        numbers. Raises OSError.
        """
        with contextlib.ExitStack() as theirs, contextlib.ExitStack() as ours:
            channel, their_channel = socket.socketpair()
            ours.enter_context(channel)
            theirs.enter_context(their_channel)
            self._descriptors, their_descriptors = socket.socketpair()
            ours.enter_context(self._descriptors)
            theirs.enter_context(their_descriptors)
            numbers = their_channel.fileno(), their_descriptors.fileno()
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                module,
                *map(str, numbers),
                pass_fds=(*numbers, *inherited),
                process_group=0,  # what a terminal sends to all is meant for the supervisor alone
            )
            self.over = asyncio.create_task(self._process.wait())
            try:
                self._channel = await open_channel(channel, messages, self._told, lambda: None)
            except BaseException:
                self.kill()
                await asyncio.wait([self.over])
                raise
            ours.pop_all()
        self._watcher = asyncio.create_task(self._watch())
        self.over.add_done_callback(self._clean)

    @property
    def pid(self) -> int:
        """The started process's id."""
        return self._process.pid

    def send(self, message: msgspec.Struct) -> None:
        """Tells it something."""
        if self._channel is not None:
            self._channel.send(message)

    def give(self, message: msgspec.Struct, descriptor: int) -> None:
        """Tells it something that comes with a descriptor, of which it gets one of its own."""
        if self._channel is not None:
            with contextlib.suppress(OSError):  # it is gone
                send_descriptor(self._descriptors, descriptor)
            self._channel.send(message)

    def begun(self) -> None:
        """Says that its imports and its loading, in which beats may stay away for long, are over."""
        self._begun = True

    def kill(self) -> None:
        """Ends it at once, whatever it does."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()

    def kill_hung(self, why: str) -> None:
        """Ends it at once because it hangs."""
        if not self.over.done():
            log.error("a process hangs and is killed", extra={"child": self._name, "why": why})
            self.hung = True
            self.kill()

    async def end(self, grace: float) -> None:
        """Tells it to stop, with so many seconds for answers to leave; kills it when it is not gone then.

        Does nothing for one that was not started, or whose start failed. Not to be called during the start.
        """
        if self._channel is None:
            return
        self.send(Stop(grace))
        await asyncio.wait([self.over], timeout=grace + _STOP_SECONDS)
        self.kill()
        await asyncio.wait([self.over])

    def _told(self, message: M) -> None:
        self._said_something = True
        self._receive(message)

    async def _watch(self) -> None:
        """Counts only while this loop runs: if the whole service was stopped for a while, nobody hung."""
        tick = self._silence / _TICKS
        silent = 0.0
        while True:
            await asyncio.sleep(tick)
            silent = 0.0 if self._said_something else silent + tick
            self._said_something = False
            if silent >= (self._silence if self._begun else _BEGINNING_SECONDS):
                self.kill_hung(f"nothing was heard of it for {silent:.1f} s")
                return

    def _clean(self, _: asyncio.Task[int]) -> None:
        self._watcher.cancel()
        if self._channel is not None:
            self._channel.close()
        self._descriptors.close()


async def side_by_side(starts: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Runs them all. If one fails, or this is cancelled, the others are cancelled and have ended before it raises."""
    tasks = [asyncio.ensure_future(start) for start in starts]
    try:
        return await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        raise
