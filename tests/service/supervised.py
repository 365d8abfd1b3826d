"""A supervisor in this process, with real front ends, and workers that read pixels."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import httpx

from clip4str_service.frontends import MODULE as FRONT_END
from clip4str_service.pb import recognition_pb2 as pb
from clip4str_service.pb.recognition_pb2_grpc import RecognitionServiceStub
from clip4str_service.supervisor import Supervisor
from tests.service.generation_stage import PIXELS, becomes
from tests.service.pixel_worker import plain, settings
from tests.service.processes import children, module

PNG = {"Content-Type": "image/png"}
LONG = 60.0


class Service:
    """The supervisor, the file that its workers load, and a client for each port."""

    def __init__(self, supervisor: Supervisor, model: Path) -> None:
        self.supervisor = supervisor
        self.model = model
        self.http = httpx.AsyncClient(base_url=f"http://127.0.0.1:{supervisor.ports.http}", timeout=LONG)
        self.status = httpx.AsyncClient(base_url=f"http://127.0.0.1:{supervisor.ports.metrics}", timeout=LONG)
        self.channel = grpc.aio.insecure_channel(f"127.0.0.1:{supervisor.ports.grpc}")
        self.rpc = RecognitionServiceStub(self.channel)
        self.stopped = False

    @property
    def front_ends(self) -> list[int]:
        """Their processes."""
        return [pid for pid in children() if module(pid) == FRONT_END]

    @property
    def workers(self) -> list[int]:
        """Their processes."""
        return [pid for pid in children() if module(pid) == PIXELS]

    async def post(self, colour: str, width: int = 32) -> httpx.Response:
        """One crop of that colour, by REST; of another width it is another crop."""
        return await self.http.post("/v1/recognize", content=plain(colour, (width, 16)), headers=PNG)

    async def read(self, colour: str) -> str:
        """Its text, by REST."""
        return str((await self.post(colour)).raise_for_status().json()["results"][0]["text"])

    async def call(self, *colours: str) -> pb.RecognizeResponse:
        """Crops of those colours, by gRPC."""
        crops = [pb.Crop(content=plain(colour)) for colour in colours]
        return await self.rpc.Recognize(pb.RecognizeRequest(crops=crops), timeout=LONG)

    async def healths(self) -> list[int]:
        """What the probes are answered: /livez, /readyz, /startupz of REST, and then of the metrics port."""
        paths = "/livez", "/readyz", "/startupz"
        return [(await client.get(path)).status_code for client in (self.http, self.status) for path in paths]

    async def metrics(self) -> dict[str, float]:
        """Every sample by its name and labels, as it is written."""
        text = (await self.status.get("/metrics")).text
        lines = [line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#")]
        return {name: float(value) for name, value in lines}

    async def until_probed(self, *statuses: int) -> None:
        """Returns when the probes are answered so."""
        async with asyncio.timeout(LONG):
            while await self.healths() != list(statuses):  # noqa: ASYNC110 (the service raises no event)
                await asyncio.sleep(0.01)

    async def until_counted(self, name: str, value: float) -> None:
        """Returns when a metric, of this name and labels, has a value."""
        async with asyncio.timeout(LONG):
            while (await self.metrics()).get(name, 0.0) != value:  # noqa: ASYNC110
                await asyncio.sleep(0.01)

    async def stop(self) -> bool:
        """Stops the service, which may be done once."""
        self.stopped = True
        return await self.supervisor.stop()

    async def close(self) -> None:
        """Closes the clients."""
        await asyncio.gather(self.http.aclose(), self.status.aclose(), self.channel.close())


def requests(protocol: str, method: str, code: str) -> str:
    """The name of their count, as it is written."""
    return f'clip4str_requests_total{{code="{code}",method="{method}",protocol="{protocol}"}}'


@asynccontextmanager
async def supervised(folder: Path, *, load: bool = True, **changes: Any) -> AsyncIterator[Service]:
    """A service on free ports, stopped at the end if it was not before."""
    model = folder / "model"
    becomes(model, "first")
    supervisor = Supervisor(settings(model=str(model), **changes), PIXELS)
    try:
        await supervisor.start()
    except BaseException:
        await supervisor.stop()
        raise
    service = Service(supervisor, model)
    try:
        if load:
            await supervisor.load()
        yield service
    finally:
        if not service.stopped:
            await service.stop()
        await service.close()
