"""The whole of bench/serve.py, quickly: a real service and the bare model, and nothing of them left behind."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

from bench.serve_tables import tables

SERVE = str(Path(__file__).parents[2] / "bench" / "serve.py")
MARK = "SERVE_BENCH_TEST"


@pytest.fixture
def mark(monkeypatch: pytest.MonkeyPatch) -> str:
    """In the environment of every process that a test starts."""
    value = uuid.uuid4().hex
    monkeypatch.setenv(MARK, value)
    return value


def marked(mark: str) -> list[str]:
    """The command lines of the processes with this mark."""
    found = []
    for process in Path("/proc").iterdir():
        try:
            if process.name.isdecimal() and mark.encode() in (process / "environ").read_bytes():
                found.append((process / "cmdline").read_text().replace("\0", " "))
        except OSError:
            continue  # it has ended, or is not ours
    return found


def test_a_quick_run(mark: str, tmp_path: Path) -> None:
    output = tmp_path / "report.json"
    command = [sys.executable, SERVE, "--quick", "--only", "rest", "--output", str(output)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert ended.returncode == 0, ended.stderr
    assert marked(mark) == []

    report = json.loads(output.read_text())
    assert ended.stdout == tables(report)
    assert report["crops"] == 64
    (result,) = report["results"]
    assert result["wrong"] == 0
    assert [point["clients"] for point in result["points"]] == [1, 2, 4]
    assert all(point["crops_per_second"] > 1 and point["not_read"] == 0 for point in result["points"])
    assert all(point["server_cpu"] > point["client_cpu"] > 0 for point in result["points"])
    assert 0.01 < result["peak"]["of_ceiling"] < 1.5
    assert result["alone"]["p50_ms"] > 1
    assert [load["load"] for load in result["loads"]] == [0.5, 0.8, 1.0, 2.0]
    assert any(load["goodput"] > 1 for load in result["loads"])
    assert result["peak_rss"] > 200e6


def test_an_interrupted_run_leaves_nothing(mark: str, tmp_path: Path) -> None:
    command = [sys.executable, SERVE, "--quick", "--only", "grpc", "--output", str(tmp_path / "report.json")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as running:
        assert running.stderr is not None
        for line in running.stderr:
            if "clients" in line:
                break
        assert len(marked(mark)) > 2  # itself, the bare model, the service
        running.send_signal(signal.SIGTERM)
        assert running.wait(60) == 130
    deadline = time.monotonic() + 20
    while marked(mark) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert marked(mark) == []
    assert list(tmp_path.iterdir()) == []
