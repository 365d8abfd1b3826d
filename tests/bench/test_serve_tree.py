"""What is told of processes, against processes that are known."""

from __future__ import annotations

import signal
import time

import pytest

from bench.serve_tree import Tree, command_of, machine_cpu_seconds, memory, orphans_adopted
from tests.bench.processes import READY, running

MIB = 1 << 20
BUSY = "import time\nblock = b'x' * (64 << 20)\nwhile time.process_time() < 0.3: pass"
STUBBORN = f"import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN){READY}"
PARENT = "import subprocess, sys, time\nsubprocess.Popen([sys.executable, '-c', sys.argv[1]])\n"


def test_time_and_memory_of_a_server_and_its_children() -> None:
    before = machine_cpu_seconds()
    with running("import time" + READY):
        tree = Tree()  # what runs already is none of it
        assert tree.processes() == set()
        with running(PARENT + BUSY + READY, BUSY + READY) as process:
            deadline = time.monotonic() + 20
            while tree.cpu_seconds() < 0.5 and time.monotonic() < deadline:
                time.sleep(0.02)
            assert len(tree.processes()) == 2
            assert tree.rss() > 2 * 64 * MIB
            assert process.pid in tree.processes()
            assert 0.5 <= tree.cpu_seconds() < 3
            assert machine_cpu_seconds() - before >= 0.5
            assert tree.peak_rss() >= tree.rss()
            assert memory(process.pid, "VmHWM") > 64 * MIB
            assert command_of(process.pid)
            tree.end()
        assert tree.processes() == set()
        assert tree.rss() == 0


def test_orphans_are_kept_in_sight_and_ended_by_force(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.serve_tree._STOP_SECONDS", 0.3)
    with orphans_adopted():
        tree = Tree()
        with running(PARENT, STUBBORN) as process:
            process.wait()
            (orphan,) = tree.processes()
            assert orphan != process.pid
            tree.end()
        assert tree.processes() == set()


def test_paused_processes_do_nothing() -> None:
    tree = Tree()
    with running("import time\nprint(flush=True)\nwhile True: pass"):
        with tree.paused():
            time.sleep(0.1)
            before = tree.cpu_seconds()
            time.sleep(0.3)
            assert tree.cpu_seconds() == before
        deadline = time.monotonic() + 20
        while tree.cpu_seconds() <= before and time.monotonic() < deadline:
            time.sleep(0.02)
        assert tree.cpu_seconds() > before


def test_what_starts_later_is_none_of_a_settled_server() -> None:
    tree = Tree()
    with running("import time" + READY) as process:
        tree.settle()
        with running("import time" + READY):
            assert tree.processes() == {process.pid}
    assert tree.processes() == set()


def test_a_process_that_ended_costs_nothing() -> None:
    with running(READY.replace("time.sleep(60)", "")) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert memory(process.pid, "VmRSS") == 0
        assert command_of(process.pid) == ""
