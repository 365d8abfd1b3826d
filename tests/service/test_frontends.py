"""A front end as the supervisor has it: started, told of models, started again, ended, with the real process."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import httpx
import pytest

from clip4str_service.auth import new_key
from clip4str_service.dispatcher import Dispatcher
from clip4str_service.frontends import FrontEnd, FrontEndError
from clip4str_service.generation import Care, Generation
from clip4str_service.limits import Limits
from clip4str_service.metric_files import MetricFiles
from clip4str_service.ports import listening_socket, reserved_port
from clip4str_service.settings import Settings
from clip4str_service.wire import Frontend, Phase, State
from tests.service.generation_stage import BOUNDS, Witness, order
from tests.service.pixel_worker import PixelWorker, plain, settings
from tests.service.processes import alive, children, nothing_left, only_child, until

LONG = 60.0


class Observer(Witness):
    """Here crops may be dropped."""

    def __init__(self) -> None:
        super().__init__()
        self.drops = 0

    def dropped(self, reason: str) -> None:  # noqa: ARG002
        self.drops += 1


class Booth:
    """A front end, its sockets, and what it is given by the supervisor."""

    def __init__(self, limits: Settings) -> None:
        self._files = MetricFiles()
        self._http, self.grpc = listening_socket(limits.host, 0), reserved_port(limits.host, 0)
        self.port = self._http.getsockname()[1]
        self.observer = Observer()
        self.dispatcher = Dispatcher(Limits())
        self.changes: list[bool] = []
        self._generations: list[Generation] = []
        ports = self._http.fileno(), limits.grpc_port or self.grpc.getsockname()[1]
        task = Frontend("frontend-0", limits.model_dump_json().encode(), *ports)
        self.front_end = FrontEnd(
            task, self.dispatcher, lambda: self.changes.append(self.front_end.up), silence=LONG
        )

    async def generation(self, number: int, worker: PixelWorker) -> Generation:
        generation = Generation(number, Care(lambda _: worker, LONG, lambda: None), BOUNDS, self.observer)
        await generation.load([order(Path("pixels"))])
        self._generations.append(generation)
        return generation

    async def close(self) -> None:
        await self.front_end.stop(LONG)
        for generation in self._generations:
            await generation.stop()
        self._http.close()
        self.grpc.close()
        self._files.close()


@asynccontextmanager
async def booth(limits: Settings) -> AsyncIterator[Booth]:
    opened = Booth(limits)
    try:
        yield opened
    finally:
        await opened.close()


@pytest.fixture(autouse=True)
async def _nothing_is_left() -> AsyncIterator[None]:
    async with nothing_left():
        yield


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, str]:
    key, lines = new_key("somebody")
    path = tmp_path / "keys.toml"
    path.write_text(lines)
    return path, key


async def test_front_end_through_two_processes(
    keys: tuple[Path, str], caplog: pytest.LogCaptureFixture
) -> None:
    path, key = keys
    good, headers = path.read_text(), {"Content-Type": "image/png", "X-API-Key": key}
    async with (
        booth(settings(api_keys_file=path)) as stand,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{stand.port}", timeout=LONG, headers=headers) as client,
    ):
        front_end, worker = stand.front_end, PixelWorker()
        model = await stand.generation(1, worker)
        await front_end.start()
        assert (front_end.up, stand.changes) == (True, [True])
        assert (await client.get("/livez")).status_code == 200
        assert (await client.get("/readyz")).status_code == 503
        front_end.add(model)
        stand.dispatcher.accept(model)
        front_end.state(State(Phase.READY, 1000))
        answer = await client.post("/v1/recognize", content=plain("ABCDEF"))
        assert answer.json()["results"][0]["text"] == "ABCDEF"

        worker.gate.clear()
        lost = asyncio.create_task(client.post("/v1/recognize", content=plain()))
        await until(lambda: model.batcher.running == 1)
        path.write_text("nonsense")
        os.kill(only_child(), signal.SIGKILL)
        with pytest.raises(httpx.TransportError):
            await lost
        await until(lambda: not front_end.up)
        worker.gate.set()
        await until(lambda: (model.batcher.items, model.slots.free) == (0, model.slots.count))
        # While another process is started, what it would be told of is told to it at its start.
        await until(lambda: bool(children()))
        other = await stand.generation(2, PixelWorker())
        front_end.add(other)
        front_end.remove(other)
        front_end.state(State(Phase.READY, 1000))
        await until(lambda: "a front end cannot be started" in caplog.messages)
        assert not front_end.up
        path.write_text(good)
        await until(lambda: front_end.up)
        assert stand.changes == [True, False, True]
        answer = await client.post("/v1/recognize", content=plain("123456"))
        assert answer.json()["results"][0]["text"] == "123456"


async def test_front_end_that_cannot_start_says_why_in_one_line(keys: tuple[Path, str]) -> None:
    path, _ = keys
    path.write_text("nonsense")
    async with AsyncExitStack() as stack:
        taken = stack.enter_context(listening_socket("127.0.0.1", 0))
        stands = [
            await stack.enter_async_context(booth(settings(api_keys_file=path))),
            await stack.enter_async_context(booth(settings(grpc_port=taken.getsockname()[1]))),
        ]
        starts = (stand.front_end.start() for stand in stands)
        errors = await asyncio.gather(*starts, return_exceptions=True)
        assert not any(stand.front_end.up for stand in stands)
    assert [type(error) for error in errors] == [FrontEndError, FrontEndError]
    assert str(path) in str(errors[0])
    assert "cannot start" in str(errors[1])
    assert all("\n" not in str(error) for error in errors)


async def test_start_can_be_given_up_at_any_moment() -> None:
    for processes in (0, 1):
        async with booth(settings()) as stand:
            starting = asyncio.create_task(stand.front_end.start())
            await asyncio.sleep(0)
            await until(lambda: len(children()) >= processes)  # noqa: B023
            starting.cancel()
            await asyncio.wait([starting])
            started = children()
        assert not any(map(alive, started))
