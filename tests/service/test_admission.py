"""A call that is given up at any moment frees its places."""

import asyncio

import pytest

from clip4str_service.hub import Ticket
from clip4str_service.options import Options
from tests.service.engine_stage import said, started
from tests.service.pixel_worker import plain


async def test_call_cancelled_at_the_moment_it_is_admitted_frees_its_places(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    admit = Ticket.admit

    def admit_and_cancel(*told: object) -> None:
        admit(*told)  # type: ignore[arg-type]
        request.cancel()

    async with started() as stage:
        monkeypatch.setattr(Ticket, "admit", admit_and_cancel)
        request = asyncio.create_task(stage.engine.recognize([plain()] * 3, Options()))
        with pytest.raises(asyncio.CancelledError):
            await request
        monkeypatch.undo()
        await stage.until_queued(0)
        assert stage.generation.slots.free == stage.capacity
        assert said(await stage.engine.recognize([plain()], Options())) == ["ABCDEF"]
