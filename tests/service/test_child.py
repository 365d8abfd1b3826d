"""A child process: heard, watched, ended, and nothing left of it whatever happens."""

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator

import pytest
from msgspec import Struct

from clip4str_service import child as child_module
from clip4str_service.child import Child, side_by_side
from tests.service.processes import alive, descriptors, nothing_left, until

MODULE = "tests.service.echo_process"
FOREVER = 60.0


class Act(Struct, frozen=True, array_like=True, tag=True):
    what: str


class Said(Struct, frozen=True, array_like=True, tag=True):
    text: str


class Echo:
    """A child and what was heard of it."""

    def __init__(self, silence: float = FOREVER) -> None:
        self.heard: list[str] = []
        self.child: Child[Said] = Child("echo", self._told, silence)

    def _told(self, message: Said) -> None:
        self.child.begun()
        self.heard.append(message.text)

    async def start(self, *acts: str) -> "Echo":
        await self.child.start(MODULE, Said)
        for act in acts:
            self.child.send(Act(act))
        return self

    async def exit_code(self) -> int:
        return await asyncio.wait_for(asyncio.shield(self.child.over), FOREVER)


@pytest.fixture(autouse=True)
async def _nothing_is_left() -> AsyncIterator[None]:
    async with nothing_left():
        yield


async def test_child_is_heard_and_ends_when_it_is_told() -> None:
    echo = await Echo().start("say")
    await until(lambda: echo.heard == ["something"])
    assert alive(echo.child.pid)
    await echo.child.end(FOREVER)
    assert await echo.exit_code() == 0
    assert not echo.child.hung


async def test_child_has_a_descriptor_of_its_own() -> None:
    echo = await Echo().start()
    descriptor = os.memfd_create("test")
    os.write(descriptor, b"content")
    echo.child.give(Act("read"), descriptor)
    os.close(descriptor)
    await until(lambda: echo.heard == ["content"])
    await echo.child.end(FOREVER)


async def test_child_inherits_what_it_is_given_and_nothing_else() -> None:
    given, other = os.memfd_create("given"), os.memfd_create("other")
    os.set_inheritable(other, True)
    echo = Echo()
    await echo.child.start(MODULE, Said, [given])
    echo.child.send(Act("say"))
    await until(lambda: bool(echo.heard))
    opened = descriptors(echo.child.pid)
    assert len(opened) == len(["in", "out", "error", "channel", "descriptors", "given"])
    assert "/memfd:given (deleted)" in opened
    await echo.child.end(FOREVER)
    os.close(given)
    os.close(other)


async def test_child_that_does_not_heed_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child_module, "_STOP_SECONDS", 0.05)
    echo = await Echo().start("deaf", "say")
    await until(lambda: bool(echo.heard))
    await echo.child.end(0.05)
    assert await echo.exit_code() == -signal.SIGKILL
    assert not echo.child.hung


async def test_signals_to_the_terminals_processes_do_not_reach_it() -> None:
    echo = await Echo().start("say")
    assert os.getpgid(echo.child.pid) != os.getpgid(0)
    await echo.child.end(FOREVER)


async def test_silent_child_is_hung_and_killed(caplog: pytest.LogCaptureFixture) -> None:
    echo = await Echo(silence=0.1).start("say")
    assert await echo.exit_code() == -signal.SIGKILL
    assert echo.child.hung
    assert "a process hangs and is killed" in caplog.text


async def test_stopped_child_is_hung_and_killed() -> None:
    echo = await Echo(silence=0.5).start("beat")
    await until(lambda: bool(echo.heard))
    os.kill(echo.child.pid, signal.SIGSTOP)
    assert await echo.exit_code() == -signal.SIGKILL
    assert echo.child.hung


async def test_child_that_beats_or_did_not_begin_is_let_be() -> None:
    beating, beginning = await Echo(silence=0.5).start("beat"), await Echo(silence=0.1).start()
    await until(lambda: bool(beating.heard))
    await asyncio.sleep(0.75)
    assert [alive(each.child.pid) for each in (beating, beginning)] == [True, True]
    await asyncio.gather(*(each.child.end(FOREVER) for each in (beating, beginning)))
    assert [each.child.hung for each in (beating, beginning)] == [False, False]


async def test_child_that_spoke_may_be_silent_until_it_has_begun() -> None:
    heard: list[Said] = []
    child: Child[Said] = Child("echo", heard.append, 0.1)
    await child.start(MODULE, Said)
    child.send(Act("say"))
    await until(lambda: bool(heard))
    await asyncio.sleep(0.5)
    assert alive(child.pid)
    child.begun()
    await asyncio.wait_for(asyncio.shield(child.over), FOREVER)
    assert child.hung


async def test_child_that_never_begins_is_hung_and_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child_module, "_BEGINNING_SECONDS", 0.2)
    echo = await Echo(silence=0.1).start()
    assert await echo.exit_code() == -signal.SIGKILL
    assert echo.child.hung


async def test_silence_is_not_counted_while_nobody_listens() -> None:
    echo = await Echo(silence=0.5).start("beat")
    await until(lambda: bool(echo.heard))
    time.sleep(1.0)  # noqa: ASYNC251 (as if this process had been stopped)
    await asyncio.sleep(0.1)
    assert alive(echo.child.pid)
    await echo.child.end(FOREVER)
    assert not echo.child.hung


async def test_what_is_told_before_the_start_and_after_the_end_harms_nobody() -> None:
    echo = Echo()
    descriptor = os.memfd_create("test")
    echo.child.send(Act("say"))
    echo.child.give(Act("read"), descriptor)
    await echo.child.end(FOREVER)
    await echo.start()
    echo.child.kill()
    await echo.exit_code()
    await asyncio.sleep(0)
    echo.child.kill()
    echo.child.kill_hung("it is dead already")
    echo.child.send(Act("say"))
    echo.child.give(Act("read"), descriptor)
    await echo.child.end(FOREVER)
    os.close(descriptor)
    assert echo.heard == []
    assert not echo.child.hung


async def test_process_that_cannot_be_started_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    echo = Echo()
    with pytest.raises(FileNotFoundError):
        await echo.child.start(MODULE, Said)
    await echo.child.end(FOREVER)


async def test_start_that_is_cancelled_at_any_moment_leaves_nothing() -> None:
    for turns in range(12):
        echo = Echo()
        starting = asyncio.create_task(echo.start())
        for _ in range(turns):
            await asyncio.sleep(0)
        starting.cancel()
        await asyncio.wait([starting])
        if not starting.cancelled():
            await echo.child.end(FOREVER)


async def test_nothing_is_left_of_many_children() -> None:
    async def live(number: int) -> None:
        echo = await Echo().start("say")
        await until(lambda: bool(echo.heard))
        if number % 2:
            echo.child.kill()
            await echo.exit_code()
        await echo.child.end(FOREVER)

    opened = descriptors()
    for number in range(0, 20, 2):
        await asyncio.gather(live(number), live(number + 1))
    assert descriptors() == opened


async def test_others_have_ended_when_one_of_several_starts_fails() -> None:
    ended: list[str] = []

    async def begin(name: str, seconds: float) -> str:
        try:
            await asyncio.sleep(seconds)
        except asyncio.CancelledError:
            await asyncio.sleep(0.01)
            ended.append(name)
            raise
        if seconds:
            raise OSError(name)
        return name

    assert await side_by_side([begin("a", 0), begin("b", 0)]) == ["a", "b"]
    with pytest.raises(OSError, match="bad"):
        await side_by_side([begin("slow", FOREVER), begin("bad", 0.01), begin("good", 0)])
    assert ended == ["slow"]
    every = asyncio.create_task(side_by_side([begin("one", FOREVER), begin("two", FOREVER)]))
    await asyncio.sleep(0.01)
    every.cancel()
    with pytest.raises(asyncio.CancelledError):
        await every
    assert ended == ["slow", "one", "two"]
