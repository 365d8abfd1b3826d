"""Counts of several processes, added up from their files: none is lost when a process is killed, none twice."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, Counter, Metric

from clip4str_service import metric_files
from clip4str_service.metric_files import MetricFiles, MetricFilesError, count_as

START = """
import os, signal, sys
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from clip4str_service.metric_files import count_as
count_as(sys.argv[1])
registry = CollectorRegistry()
counter = Counter("c", "text", ("of",), registry=registry)
histogram = Histogram("h", "text", buckets=(1, 2), registry=registry)
gauge = Gauge("g", "text", multiprocess_mode="sum", registry=registry)
"""

KILLED = """
import os, sys
from pathlib import Path
from clip4str_service import metric_files
metric_files._MEMORY = Path(sys.argv[1])
metric_files.MetricFiles()
os.kill(os.getpid(), 9)
"""


@pytest.fixture
def files() -> Iterator[MetricFiles]:
    files = MetricFiles()
    yield files
    files.close()


def counting(process: str, script: str) -> int:
    """The exit code of a process of that name that runs the script."""
    return subprocess.run([sys.executable, "-c", START + script, process], check=False).returncode


def samples(files: MetricFiles) -> dict[str, float]:
    """Each sample by its name and labels."""
    return {
        sample.name
        + "".join(f" {name}={value}" for name, value in sorted(sample.labels.items())): sample.value
        for family in files.collect()
        for sample in family.samples
    }


def test_nothing_is_counted_yet(files: MetricFiles) -> None:
    assert list(files.collect()) == []


def test_counts_of_several_processes_are_added(files: MetricFiles) -> None:
    script = 'counter.labels("x").inc(2); histogram.observe(1.5); gauge.set(3)'
    assert [counting(f"frontend-{number}", script) for number in range(3)] == [0] * 3
    assert samples(files) == {
        "c_total of=x": 6,
        "h_sum": 4.5,
        "h_bucket le=1.0": 0,
        "h_bucket le=2.0": 3,
        "h_bucket le=+Inf": 3,
        "h_count": 3,
        "g": 9,
    }
    families: list[Metric] = list(files.collect())
    assert sorted(family.name for family in families) == ["c", "g", "h"]


def test_process_of_the_same_name_goes_on(files: MetricFiles) -> None:
    """However the one before it ended; and with the files that there are."""
    counting("frontend-0", 'counter.labels("x").inc(2); histogram.observe(0.5); gauge.set(3)')
    names = sorted(metric_directory().iterdir())
    killed = 'counter.labels("x").inc(5); os.kill(os.getpid(), signal.SIGKILL)'
    assert counting("frontend-0", killed) == -signal.SIGKILL
    counting(
        "frontend-0",
        'counter.labels("x").inc(); counter.labels("y").inc(); histogram.observe(9); gauge.set(1)',
    )
    measured = samples(files)
    assert (measured["c_total of=x"], measured["c_total of=y"], measured["h_count"], measured["g"]) == (
        8,
        1,
        2,
        1,
    )
    assert sorted(metric_directory().iterdir()) == names


def test_scrapes_while_processes_count(files: MetricFiles) -> None:
    """Each sees all that was counted before, and what is new in the file as soon as it is there."""
    script = """
for number in range(3000):
    counter.labels(str(number % 300)).inc()
    histogram.observe(number % 3)
"""
    command = [sys.executable, "-c", START + script]
    writers = [subprocess.Popen([*command, f"frontend-{number}"]) for number in range(2)]
    total = 0.0
    while any(writer.poll() is None for writer in writers):
        seen = sum(value for name, value in samples(files).items() if name.startswith("c_total"))
        assert seen >= total
        total = seen
    assert [writer.returncode for writer in writers] == [0, 0]
    assert samples(files)["h_count"] == 6000


def test_file_that_was_just_made_is_no_matter(files: MetricFiles) -> None:
    (metric_directory() / "counter_frontend-9.db").touch()
    assert list(files.collect()) == []


def test_room_is_taken_before_it_is_counted_in(files: MetricFiles) -> None:
    counting("frontend-0", "")
    for path in metric_directory().iterdir():
        assert path.stat().st_blocks * 512 >= path.stat().st_size >= 1 << 18
    assert samples(files)["h_count"] == 0


def test_no_place_for_the_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metric_files, "_MEMORY", tmp_path / "memory")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    with pytest.raises(MetricFilesError) as caught:
        MetricFiles()
    assert str(caught.value) == (
        f"{tmp_path}/gone has no room for metrics (No such file or directory): "
        "each process needs 768 KiB there"
    )


def test_directory_goes_with_its_owner() -> None:
    files = MetricFiles()
    directory = metric_directory()
    assert directory.is_dir()
    files.close()
    assert not directory.exists()
    assert "PROMETHEUS_MULTIPROC_DIR" not in os.environ


def test_process_counts_by_itself_again_when_the_directory_is_gone() -> None:
    files = MetricFiles()
    count_as("supervisor")
    shared = Counter("a", "text", registry=CollectorRegistry())
    shared.inc()
    assert samples(files) == {"a_total": 1}
    files.close()
    shared.inc()  # late, and lost
    own = CollectorRegistry()
    Counter("b", "text", registry=own).inc()
    assert own.get_sample_value("b_total") == 1


def test_what_a_killed_service_left_is_removed_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once it is old: a directory that was just made may have an owner that is about to lock it."""
    monkeypatch.setattr(metric_files, "_MEMORY", tmp_path)
    subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False)
    (left,) = tmp_path.iterdir()
    MetricFiles().close()
    assert left.exists()
    old = time.time() - 3600
    os.utime(left, (old, old))
    living = MetricFiles()
    os.utime(metric_directory(), (old, old))
    MetricFiles().close()
    assert not left.exists()
    assert len(list(tmp_path.iterdir())) == 1  # of the one that lives
    living.close()


def metric_directory() -> Path:
    return Path(os.environ["PROMETHEUS_MULTIPROC_DIR"])
