"""One service with two front ends and two workers, to which everything happens; it goes on as if nothing had."""

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator

import grpc
import httpx
import pytest
import pytest_asyncio

from clip4str_service import generation as generation_module
from clip4str_service.pb import recognition_pb2 as pb
from clip4str_service.pb.recognition_pb2_grpc import RecognitionServiceStub
from clip4str_service.wire import Phase
from tests.service.generation_stage import becomes, content_of
from tests.service.pixel_process import DYING, POISON, SLOW
from tests.service.pixel_worker import plain
from tests.service.processes import alive, descriptors, mapped, until
from tests.service.supervised import LONG, PNG, Service, requests, supervised

pytestmark = pytest.mark.asyncio(loop_scope="module")

COLOURS = ["ABCDEF", "123456", SLOW, "FEDCBA"]
ARENA = "clip4str-crops"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def service(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Service]:
    folder = tmp_path_factory.mktemp("service")
    async with supervised(
        folder, frontends=2, devices="cpu,cuda:0", max_batch=2, hang_timeout_ms=60_000
    ) as running:
        await running.until_probed(200, 200, 200, 200, 200, 200)
        yield running
        assert await running.stop()


@pytest_asyncio.fixture(autouse=True, loop_scope="module")
async def whole(service: Service) -> None:
    """What the test before did to it is over: each test begins with both workers up."""
    await until(lambda: service.supervisor.workers == len(service.workers) == 2)


class Load:
    """Clients that ask for one crop after another, each time on a new connection."""

    def __init__(self, service: Service) -> None:
        self.answers: list[httpx.Response] = []
        self.revisions: list[tuple[float, str]] = []  # when was asked, and what answered
        self.wrong: list[httpx.Response] = []  # of them, those that are not the crop's text
        self.lost = 0  # requests whose connection was cut
        self._client = httpx.AsyncClient(
            base_url=service.http.base_url, timeout=LONG, limits=httpx.Limits(max_keepalive_connections=0)
        )
        self._over = False
        self._clients: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> "Load":
        self._clients = [asyncio.create_task(self._ask(colour)) for colour in COLOURS]
        await self.more()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._over = True
        await asyncio.gather(*self._clients)
        await self._client.aclose()

    async def more(self) -> None:
        """Returns when many more are answered, all those among them that were asked before."""
        target = len(self.answers) + 5 * len(COLOURS)
        await until(lambda: len(self.answers) >= target)

    async def _ask(self, colour: str) -> None:
        content = plain(colour)
        while not self._over:
            asked = time.monotonic()
            try:
                answer = await self._client.post("/v1/recognize", content=content, headers=PNG)
            except httpx.TransportError:
                self.lost += 1
                continue
            self.answers.append(answer)
            if answer.status_code != 200 or answer.json()["results"][0]["text"] != colour:
                self.wrong.append(answer)
            else:
                self.revisions.append((asked, answer.json()["model"]["revision"]))


async def call_alone(service: Service) -> str:
    """The text of a crop, by gRPC on a connection of its own."""
    address = f"127.0.0.1:{service.supervisor.ports.grpc}"
    async with grpc.aio.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        stub = RecognitionServiceStub(channel)
        answer = await stub.Recognize(pb.RecognizeRequest(crops=[pb.Crop(content=plain("ABCDEF"))]))
        return str(answer.results[0].recognition.text)


async def test_each_front_end_answers_on_both_ports(service: Service) -> None:
    for stopped in service.front_ends:
        os.kill(stopped, signal.SIGSTOP)
        try:
            calls = [asyncio.create_task(call_alone(service)) for _ in range(12)]
            async with httpx.AsyncClient(base_url=service.http.base_url, timeout=LONG) as client:
                assert (await client.get("/readyz")).status_code == 200
            await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
        finally:
            os.kill(stopped, signal.SIGCONT)
        assert await asyncio.gather(*calls) == ["ABCDEF"] * 12  # those too that waited for the stopped one


async def test_killed_front_end_costs_its_own_calls_only(service: Service) -> None:
    killed, other = service.front_ends
    async with Load(service) as load:
        os.kill(killed, signal.SIGKILL)
        await load.more()
        await until(lambda: len(service.front_ends) == 2 and killed not in service.front_ends)
        await service.until_probed(200, 200, 200, 200, 200, 200)
        await load.more()
    assert other in service.front_ends
    assert load.wrong == []
    assert load.lost <= len(COLOURS)
    assert (service.supervisor.queued, service.supervisor.running) == (0, 0)


async def test_killed_worker_costs_no_request(service: Service) -> None:
    before = (await service.metrics())['clip4str_worker_restarts_total{reason="exit"}']
    workers = service.workers
    async with Load(service) as load:
        for worker in workers:
            os.kill(worker, signal.SIGKILL)
            await until(lambda: not alive(worker))  # noqa: B023
            await until(lambda: [mapped(pid, ARENA) for pid in service.workers] == [1, 1])  # both are up
            await load.more()
    assert (load.wrong, load.lost) == ([], 0)
    assert not set(workers) & set(service.workers)
    await service.until_counted('clip4str_worker_restarts_total{reason="exit"}', before + 2)


async def test_poison_fails_alone(service: Service) -> None:
    async with Load(service) as load:
        answer = await service.post(POISON)
        assert (answer.status_code, answer.json()["code"]) == (500, "internal")
        await load.more()
    assert load.lost == 0
    # It may have taken both workers with it, one after the other; until one is back nothing is accepted.
    assert {answer.json()["code"] for answer in load.wrong} <= {"not_ready"}


async def test_reload_under_load_loses_nothing_and_leaves_nothing(service: Service) -> None:
    arenas = sum(ARENA in name for name in descriptors())
    async with Load(service) as load:
        for revision in ("second", "third"):
            before = service.workers
            becomes(service.model, revision)
            await service.supervisor.reload()
            changed = time.monotonic()
            await load.more()
            await until(lambda: not set(before) & set(service.workers))  # noqa: B023
            assert {told for asked, told in load.revisions if asked > changed} == {revision}
    assert (load.wrong, load.lost) == ([], 0)
    await until(lambda: sum(ARENA in name for name in descriptors()) <= arenas)
    for process in [*service.front_ends, *service.workers]:
        await until(lambda: mapped(process, ARENA) == 1)  # noqa: B023


async def test_crops_of_a_model_that_is_gone_are_asked_for_again(service: Service) -> None:
    """Its file is another one, and it has no worker any more, nor ever will."""
    before = service.workers
    for worker in before:
        os.kill(worker, signal.SIGSTOP)
    waiting = [asyncio.create_task(service.post("ABCDEF", 32 + number)) for number in range(8)]
    await until(lambda: service.supervisor.queued + service.supervisor.running == len(waiting))
    becomes(service.model, "fourth")
    await service.supervisor.reload()
    for worker in before:
        os.kill(worker, signal.SIGKILL)
    answers = await asyncio.gather(*waiting)
    assert {(answer.status_code, answer.json()["code"]) for answer in answers} == {(503, "draining")}
    assert all("Retry-After" in answer.headers for answer in answers)
    assert await service.read("ABCDEF") == "ABCDEF"


async def test_reload_of_a_bad_file_keeps_the_model(
    service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    workers, good = service.workers, content_of(service.model)
    for content in (DYING, None):
        async with Load(service) as load:
            becomes(service.model, content)
            await service.supervisor.reload()
            await load.more()
        assert (load.wrong, load.lost) == ([], 0)
    assert caplog.messages.count("the model stays as it is") == 2
    assert service.workers == workers
    becomes(service.model, good)


async def test_service_whose_workers_cannot_start_again_says_so(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generation_module, "_FIRST_PAUSE", 0.02)
    monkeypatch.setattr(generation_module, "_LAST_PAUSE", 0.1)
    with monkeypatch.context() as broken:
        broken.setattr(sys, "executable", "/nowhere/python")
        for worker in service.workers:
            os.kill(worker, signal.SIGKILL)
        waiting = asyncio.create_task(service.post("ABCDEF"))
        await service.until_probed(503, 503, 200, 503, 503, 200)
        assert service.supervisor.phase is Phase.FAILED
        refused = await service.post("ABCDEF")
        assert (refused.status_code, refused.json()["code"]) == (503, "not_ready")
        assert "Retry-After" in refused.headers
    await service.until_probed(200, 200, 200, 200, 200, 200)
    if (await waiting).status_code == 200:  # it was accepted before the workers' end was known
        assert waiting.result().json()["results"][0]["text"] == "ABCDEF"


async def test_client_that_leaves_frees_its_places_and_is_counted(service: Service) -> None:
    gone, dropped = (
        requests("rest", "/v1/recognize", "cancelled"),
        'clip4str_dropped_total{reason="cancelled"}',
    )
    before = await service.metrics()
    for worker in service.workers:
        os.kill(worker, signal.SIGSTOP)
    staying: list[asyncio.Task[httpx.Response]] = []
    for _ in service.workers:  # each is busy with a crop, so that what comes next is queued
        staying.append(asyncio.create_task(service.post("ABCDEF", 32 + len(staying))))
        await until(lambda: service.supervisor.running == len(staying))
    staying.extend(asyncio.create_task(service.post("ABCDEF", 40 + number)) for number in range(6))
    await until(lambda: service.supervisor.queued + service.supervisor.running == len(staying))
    assert service.supervisor.running == len(service.workers)
    leaving = asyncio.create_task(service.post("123456"))
    await until(lambda: service.supervisor.queued + service.supervisor.running == len(staying) + 1)
    leaving.cancel()
    await until(lambda: service.supervisor.queued + service.supervisor.running == len(staying))
    await service.until_counted(gone, before.get(gone, 0) + 1)
    for worker in service.workers:
        os.kill(worker, signal.SIGCONT)
    assert [answer.status_code for answer in await asyncio.gather(*staying)] == [200] * len(staying)
    await service.until_counted(dropped, before.get(dropped, 0) + 1)


async def test_bad_body_is_counted_once(service: Service) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", service.supervisor.ports.http)
    writer.write(b"POST /v1/recognize HTTP/1.1\r\nHost: a\r\nContent-Type: image/png\r\n")
    writer.write(b"Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\nnonsense\r\n")
    assert (await reader.read()).startswith(b"HTTP/1.1 400 ")
    writer.close()
    before = {name: value for name, value in (await service.metrics()).items() if "_requests_total" in name}
    await service.until_counted(requests("rest", "/v1/recognize", "invalid_request"), 1)
    after = {name: value for name, value in (await service.metrics()).items() if "_requests_total" in name}
    assert sum(after.values()) <= sum(before.values()) + 1
    assert requests("rest", "other", "invalid_request") not in after


async def test_client_that_leaves_while_it_sends_harms_nobody(service: Service) -> None:
    name = requests("rest", "/v1/recognize", "cancelled")
    before = (await service.metrics()).get(name, 0.0)
    _, writer = await asyncio.open_connection("127.0.0.1", service.supervisor.ports.http)
    writer.write(b"POST /v1/recognize HTTP/1.1\r\nHost: a\r\nContent-Length: 99\r\n")
    writer.write(b"Content-Type: image/png\r\n\r\nx")
    await writer.drain()
    writer.close()
    await service.until_counted(name, before + 1)
    assert await service.read("ABCDEF") == "ABCDEF"
