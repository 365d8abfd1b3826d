"""The service as a program: what signals do to it, its exit codes, and what is left when it is killed."""

import os
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import httpx
import pytest

from tests.service.generation_stage import PIXELS, becomes
from tests.service.pixel_process import ENDLESS, SLOW
from tests.service.pixel_worker import plain
from tests.service.processes import alive, children, mapped, module, wait_until

LONG = 60.0


class Program:
    """The program in a process group of its own, and what it wrote."""

    def __init__(self, folder: Path, descriptors: int | None, **flags: object) -> None:
        """`descriptors`: how many each of its processes may have."""
        becomes(folder / "model", "first")
        self.model = folder / "model"
        self._error = folder / "error"
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=LONG)
        given = {"model": self.model, "http-port": port, "grpc-port": 0, "metrics-port": 0, **flags}
        command = [f"--{name}={value}" for name, value in given.items()]
        with self._error.open("wb") as error:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.service.pixel_service", *command],
                stdout=subprocess.DEVNULL,
                stderr=error,
                start_new_session=True,
                preexec_fn=None
                if descriptors is None
                else partial(resource.setrlimit, resource.RLIMIT_NOFILE, (descriptors, descriptors)),
            )

    @property
    def children(self) -> list[int]:
        """The program's processes, but the first."""
        return children(self.process.pid)

    @property
    def revision(self) -> str:
        """Of the model that it has."""
        return str(self.client.get("/v1/models").json()["models"][0]["revision"])

    def ask_anew(self, path: str) -> int:
        """As `ask`, on a connection of its own."""
        try:
            return httpx.get(f"{self.client.base_url}{path}", timeout=LONG).status_code
        except httpx.TransportError:
            return 0

    @property
    def errors(self) -> str:
        """What it wrote to standard error."""
        return self._error.read_text()

    def ask(self, path: str) -> int:
        """The status of a request; 0: there was no answer."""
        try:
            return self.client.get(path).status_code
        except httpx.TransportError:
            return 0

    def read(self, number: int) -> int:
        """The status of a slow crop's request, unlike all others."""
        content, headers = plain(SLOW, (32 + number, 16)), {"Content-Type": "image/png"}
        return self.client.post("/v1/recognize", content=content, headers=headers).status_code


@contextmanager
def program(folder: Path, descriptors: int | None = None, **flags: object) -> Iterator[Program]:
    running = Program(folder, descriptors, **flags)
    try:
        yield running
    finally:
        running.process.kill()
        running.process.wait()
        running.client.close()


@pytest.mark.parametrize("everybody", [False, True])
def test_signal_to_all_of_its_processes_drains_it(tmp_path: Path, everybody: bool) -> None:
    """As Ctrl-C at a terminal, or as a service manager that ends a whole control group."""
    with program(tmp_path, **{"max-batch": 1}) as running:
        wait_until(lambda: running.ask("/readyz") == 200)
        processes = running.children
        assert len(processes) == 2
        for process in [running.process.pid, *processes]:
            assert mapped(process, "libtorch") == 0
        with ThreadPoolExecutor(8) as pool:
            answers = [pool.submit(running.read, number) for number in range(8)]
            wait_until(lambda: any(answer.done() for answer in answers))
            if everybody:
                for process in [*processes, running.process.pid]:
                    os.kill(process, signal.SIGTERM)
            else:
                os.killpg(running.process.pid, signal.SIGINT)
            # 503 for those that came later; nothing that was accepted is given up, as the exit code says.
            assert {200} <= {answer.result() for answer in answers} <= {200, 503}
        assert running.process.wait(LONG) == 0
        assert running.errors == ""
        assert not any(map(alive, processes))


def test_signal_while_it_starts_ends_it_without_a_word(tmp_path: Path) -> None:
    for count in (1, 2):  # the front end is loaded; the worker is
        with program(tmp_path) as running:
            becomes(running.model, ENDLESS)
            wait_until(lambda: len(running.children) == count)  # noqa: B023
            processes = running.children
            os.killpg(running.process.pid, signal.SIGINT)
            assert running.process.wait(LONG) == 0
            assert running.errors == ""
            assert not any(map(alive, processes))


@pytest.mark.parametrize("moment", ["start", "load"])
def test_children_of_a_killed_supervisor_end_by_themselves(tmp_path: Path, moment: str) -> None:
    with program(tmp_path) as running:
        if moment == "start":
            wait_until(lambda: len(running.children) == 1)
            processes = running.children
            running.process.kill()
        else:
            wait_until(lambda: running.ask("/readyz") == 200)
            processes = running.children
            with ThreadPoolExecutor(4) as pool:
                answers = [pool.submit(running.read, number) for number in range(4)]
                wait_until(lambda: any(answer.done() for answer in answers))
                running.process.kill()
        wait_until(lambda: not any(map(alive, processes)))


def test_taken_port_ends_the_start_with_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with program(tmp_path, **{"grpc-port": port}) as running:
            assert running.process.wait(LONG) == 2
            (line,) = running.errors.splitlines()
            assert line.startswith("clip4str-service: CLIP4STR_GRPC_PORT (--grpc-port): cannot listen on ")
            assert running.children == []


def test_model_that_was_replaced_is_loaded_when_a_worker_must_be(tmp_path: Path) -> None:
    """Nobody can read with the old one any more, whether or not somebody says that there is another."""
    with program(tmp_path) as running:
        wait_until(lambda: running.ask("/readyz") == 200)
        becomes(running.model, "second")
        assert running.revision == "first"
        for worker in [pid for pid in running.children if module(pid) == PIXELS]:
            os.kill(worker, signal.SIGKILL)
        wait_until(lambda: running.revision == "second")
        wait_until(lambda: running.ask("/readyz") == 200)
        assert running.read(0) == 200
        running.process.terminate()
        assert running.process.wait(LONG) == 0
        assert running.errors == ""


def test_connections_never_take_the_last_descriptor(tmp_path: Path) -> None:
    with program(tmp_path, 400) as running:
        wait_until(lambda: running.ask("/readyz") == 200)
        address = running.client.base_url.host, running.client.base_url.port
        with ExitStack() as opened:
            idle = [opened.enter_context(socket.create_connection(address)) for _ in range(300)]
            wait_until(lambda: running.ask_anew("/livez") == 429)
            assert running.ask("/readyz") == 200  # on the connection from before
            idle[0].sendall(b"GET /livez HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            assert idle[0].recv(12) == b"HTTP/1.1 200"
        wait_until(lambda: running.ask_anew("/readyz") == 200)
        running.process.terminate()
        assert running.process.wait(LONG) == 0
        assert running.errors == ""
