"""Hold `clip4str batch` to its promises on this machine: every crop has one row, whatever ends half-way.

`python bench/bulk.py [--crops 20000]` draws a thousand words, makes so many crops of them, and runs two jobs with two
workers each. In the first, a worker is killed half-way. The second is interrupted half-way and goes on, on a cluster
of two nodes. It prints what it found, and returns 1 when a crop has no row or two, a shard was done twice, or two
readings differ.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

# Of a program's own modules, Python finds only those beside it.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.serve_bare import draw
from bench.serve_tree import command_of, descendants
from samples.demo import StartError, free_ports, stop

_BIN = Path(sys.executable).parent
_DRAWN, _SEED = 1024, 2025
_SHARDS, _LEAST = 40, 2000  # fewer crops would be read before anyone could be killed
_SECONDS = 1800.0  # of a job, at most
_START_SECONDS = 120.0
_LOOK = 0.01  # seconds between two looks


class Batch:
    """A run of `clip4str batch`."""

    def __init__(self, source: Path, output: Path, *options: str, **environment: str) -> None:
        self.output = output
        command: list[str | Path] = [
            _BIN / "clip4str",
            "batch",
            source,
            "--output",
            output,
            "--json",
            *options,
        ]
        self.process = subprocess.Popen(  # noqa: S603 (our own program)
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **environment},
        )

    def wait_for(self, results: int) -> None:
        """Until there are so many files of results. Raises StartError when it ends before."""
        deadline = time.monotonic() + _SECONDS
        while len(shards_of(self.output)) < results:
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise StartError(f"there are not {results} files of results:\n{self.end()}")
            time.sleep(_LOOK)

    def kill_worker(self) -> None:
        """One of them, at once."""
        os.kill(workers()[0], signal.SIGKILL)

    def end(self) -> tuple[int, str, str]:
        """Wait for the exit code, standard output and standard error."""
        out, err = self.process.communicate(timeout=_SECONDS)
        return self.process.returncode, out, err

    def summary(self) -> dict[str, Any]:
        """What it says in the end. Raises StartError when it fails."""
        code, out, err = self.end()
        if code or err:
            raise StartError(f"clip4str batch ended with {code}:\n{err}")
        said: dict[str, Any] = json.loads(out)
        return said


def workers() -> list[int]:
    """The processes below this one that hold a model for Ray."""
    return sorted(process for process in descendants() if "_Worker" in command_of(process))


def shards_of(output: Path) -> dict[str, tuple[int, int]]:
    """Files of results, with what tells whether one was written again."""
    stats = {path.name: path.stat() for path in output.glob("part-*.parquet")}
    return {name: (stat.st_ino, stat.st_mtime_ns) for name, stat in stats.items()}


def unlike(output: Path, crops: int) -> list[str]:
    """What is wrong with the results of a job over crops whose ids count from 0."""
    ids = pq.read_table(output, columns=["id"]).column("id").to_pylist()
    wanted = {str(number) for number in range(crops)}
    found = set(ids)
    problems = {
        "crops without a row": len(wanted - found),
        "rows of no crop": len(found - wanted),
        "rows too many": len(ids) - len(found),
    }
    return [f"{output.name}: {count:,} {problem}" for problem, count in problems.items() if count]


@contextmanager
def two_nodes() -> Iterator[tuple[str, dict[str, str]]]:
    """A Ray cluster of two nodes with a processor each: its address and its key. Raises StartError."""
    key = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex()}
    (port,) = free_ports(1)
    address = f"127.0.0.1:{port}"
    common = ["start", "--block", "--num-cpus=1", "--disable-usage-stats", "--object-store-memory=100000000"]
    with ExitStack() as nodes:
        for joined in (["--head", f"--port={port}", "--include-dashboard=false"], [f"--address={address}"]):
            command: list[str | Path] = [_BIN / "ray", *common, *joined]
            process = subprocess.Popen(  # noqa: S603 (Ray's own program)
                command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, **key}
            )
            nodes.callback(stop, process)
            _await_listener(process, port)
        yield address, key


def _await_listener(process: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(_LOOK)
    raise StartError(f"there is no Ray cluster at port {port}")


def killed(source: Path, output: Path, crops: int, options: Sequence[str]) -> list[str]:
    """A job of which a worker is killed half-way. Raises StartError."""
    batch = Batch(source, output, *options, "--workers", "2")
    batch.wait_for(_SHARDS // 2)
    batch.kill_worker()
    _say(f"killed: a worker was killed at {len(shards_of(output))} of {_SHARDS} shards")
    return _done("killed", batch.summary(), output, crops)


def interrupted(source: Path, output: Path, crops: int, options: Sequence[str]) -> list[str]:
    """A job that is stopped half-way, goes on on another cluster, and has nothing left then. Raises StartError."""
    batch = Batch(source, output, *options, "--workers", "2")
    batch.wait_for(_SHARDS // 2)
    batch.process.send_signal(signal.SIGINT)
    code, _, err = batch.end()
    before = shards_of(output)
    _say(f"interrupted: ended with {code} at {len(before)} of {_SHARDS} shards, and said: {err.strip()}")
    with two_nodes() as (address, key):
        said = Batch(source, output, *options, "--workers", "2", "--address", address, **key).summary()
    off = _done("interrupted", said, output, crops)
    after = shards_of(output)
    if again := sum(after[name] != written for name, written in before.items()):
        off.append(f"interrupted: {again} shards were written twice")
    if said["shards_now"] != _SHARDS - len(before):
        off.append(f"interrupted: {said['shards_now']} shards were read after {len(before)} of {_SHARDS}")
    said = Batch(source, output, *options).summary()
    if said["shards_now"] or shards_of(output) != after:
        off.append(f"interrupted: a third run read {said['shards_now']} shards of a job that was done")
    return off


def _done(name: str, said: dict[str, Any], output: Path, crops: int) -> list[str]:
    rate = said["crops_now"] / said["seconds"]
    _say(
        f"{name}: {said['crops_now']:,} crops in {said['seconds']:.1f} s, {rate:.1f} crops/s with start and end"
    )
    _say(f"{name}: {pq.read_table(output, columns=['id']).num_rows:,} rows for {crops:,} crops")
    return unlike(output, crops)


def same_readings(one: Path, other: Path) -> list[str]:
    """Whether two jobs over the same crops have read the same, to the last digit."""
    tables = [pq.read_table(each).sort_by("id") for each in (one, other)]
    return [] if tables[0].equals(tables[1]) else ["the two jobs' readings differ"]


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return 1 when something is off, 2 after one line for bad input."""
    parser = argparse.ArgumentParser(description="Hold clip4str batch to its promises on this machine.")
    parser.add_argument("--crops", type=int, default=20_000, metavar="N", help="(default: %(default)s)")
    crops = parser.parse_args(argv).crops
    try:
        if crops < _LEAST or crops % _SHARDS:
            raise StartError(f"--crops is {crops}: expected a multiple of {_SHARDS} from {_LEAST} on")
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            drawn = pool.submit(draw, _DRAWN, _SEED).result()
        with tempfile.TemporaryDirectory() as folder:
            source, *outputs = (Path(folder) / name for name in ("crops.parquet", "killed", "interrupted"))
            images = [drawn[number % _DRAWN] for number in range(crops)]
            pq.write_table(
                pa.table({"id": range(crops), "image": images}), source, row_group_size=crops // _SHARDS
            )
            options = ("--shard-crops", str(crops // _SHARDS))
            off = killed(source, outputs[0], crops, options) + interrupted(source, outputs[1], crops, options)
            off += same_readings(*outputs)
    except KeyboardInterrupt:
        return 130
    except (StartError, OSError) as error:
        sys.stderr.write(f"bulk: {error}\n")
        return 2
    for each in off:
        sys.stderr.write(f"bulk: OFF: {each}\n")
    return 1 if off else 0


if __name__ == "__main__":
    sys.exit(main())
