"""The command line: one clear line and exit code 2 for what is wrong."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from clip4str_service.__main__ import end_threads, main
from clip4str_service.settings import Settings, variable


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith("CLIP4STR_"):
            monkeypatch.delenv(name)


def test_check_prints_every_setting(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CLIP4STR_MAX_CROPS", "7")
    monkeypatch.setenv("CLIP4STR_HTP_PORT", "8")
    assert main(["check", "--grpc-port", "9"]) == 0
    out, err = capsys.readouterr()
    printed = dict(line.split("=", 1) for line in out.splitlines())
    assert set(printed) == {variable(field) for field in Settings.model_fields}
    assert (printed["CLIP4STR_MAX_CROPS"], printed["CLIP4STR_GRPC_PORT"]) == ("7", "9")
    assert err == "clip4str-service: CLIP4STR_HTP_PORT is not a setting\n"


@pytest.mark.parametrize("command", [["check"], ["serve"], []])
def test_bad_setting(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command, "--http-port", "many"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("clip4str-service: CLIP4STR_HTTP_PORT (--http-port): ")
    assert err.count("\n") == 1


def test_wish_for_authentication(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("CLIP4STR_API_KEYS_FILE", "/keys")
    assert main([]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert "authenticating proxy" in err


@pytest.mark.parametrize("arguments", [["--htp-port", "1"], ["--http-port"], ["sing"], ["--http", "1"]])
def test_bad_flag(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    err = capsys.readouterr().err
    assert err.startswith("clip4str-service: ")
    assert err.count("\n") == 1


def test_help_names_every_flag(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    out = capsys.readouterr().out
    assert all(f"--{field.replace('_', '-')}" in out for field in Settings.model_fields)


@pytest.mark.parametrize("taken_port", ["http", "grpc"])
def test_taken_port_ends_the_start_with_one_line(taken_port: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ports = {"http": 0, "grpc": 0, "metrics": 0, taken_port: taken.getsockname()[1]}
        flags = [text for name, port in ports.items() for text in (f"--{name}-port", str(port))]
        command = [sys.executable, "-m", "clip4str_service", *flags]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert ended.returncode == 2
    assert ended.stderr.startswith(
        f"clip4str-service: CLIP4STR_{taken_port.upper()}_PORT (--{taken_port}-port): cannot listen"
    )
    assert ended.stderr.count("\n") == 1


SCRIPT = """
import asyncio, sys
from clip4str_service import server
from tests.service.pixel_worker import PixelWorker, settings

class Announcing(server.Server):
    async def load(self):
        await super().load()
        print("ready", flush=True)

server.Server = Announcing
server.ThreadWorker = lambda *_, **__: PixelWorker()
sys.exit(0 if asyncio.run(server.serve(settings())) else 1)
"""


def test_interrupt_ends_the_service_with_exit_code_0() -> None:
    with subprocess.Popen([sys.executable, "-c", SCRIPT], stdout=subprocess.PIPE, text=True) as service:
        assert service.stdout is not None
        assert service.stdout.readline() == "ready\n"
        service.send_signal(signal.SIGINT)
        assert service.wait(60) == 0


DYING = """
import sys
from clip4str_service import server
from clip4str_service.__main__ import main
from tests.service.pixel_worker import PixelWorker

async def die(_):
    raise OSError("the sockets are lost")

server._HttpServer.main_loop = die
server.ThreadWorker = lambda *_, **__: PixelWorker()
sys.exit(main(["--http-port", "0", "--grpc-port", "0", "--metrics-port", "0"]))
"""


def test_death_of_rest_ends_the_service_with_one_line() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", DYING], capture_output=True, text=True, timeout=240, check=False
    )
    assert ended.returncode == 1
    assert ended.stderr == "clip4str-service: REST ended by itself: the sockets are lost\n"


BUSY = """
import logging, sys, threading
from clip4str_service import __main__

logging.basicConfig(stream=sys.stdout)
__main__._THREADS_SECONDS = 0.1
threading.Thread(target=threading.Event().wait, name="stuck").start()
__main__.end_threads(3)
"""


def test_stuck_thread_does_not_hold_up_the_end() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", BUSY], capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == 3
    assert "threads still busy" in ended.stdout


def test_idle_threads_end_by_themselves() -> None:
    thread = threading.Thread(target=time.sleep, args=(0.05,))
    thread.start()
    end_threads(3)
    assert not thread.is_alive()
