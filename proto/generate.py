"""Generates the Python stubs of the service from the .proto files: `python proto/generate.py [--check]`.

With --check nothing is written: exit code 1 when the committed stubs are not what the .proto files give.
"""

from __future__ import annotations

import argparse
import filecmp
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

PROTO = Path(__file__).resolve().parent
SOURCE_ROOT = PROTO.parent / "service"
PACKAGE = "clip4str_service/pb"


def generate(source_root: Path) -> None:
    """Writes the stubs of every file in clip4str/v1 into `source_root`/clip4str_service/pb."""
    scripts = Path(sysconfig.get_path("scripts"))
    # The virtual path makes the stubs import one another by their place in the service package: `clip4str`,
    # the first part of the .proto file's own path, is the model library's name in Python.
    files = [f"{PACKAGE}/{path.name}" for path in sorted((PROTO / "clip4str/v1").glob("*.proto"))]
    subprocess.run(  # noqa: S603 (our own command line)
        [
            sys.executable,
            "-m",
            "grpc_tools.protoc",
            f"--plugin={scripts / 'protoc-gen-mypy'}",
            f"--plugin={scripts / 'protoc-gen-mypy_grpc'}",
            f"--proto_path={PACKAGE}={PROTO / 'clip4str/v1'}",
            f"--proto_path={PROTO}",
            f"--python_out={source_root}",
            f"--grpc_python_out={source_root}",
            f"--mypy_out=quiet:{source_root}",
            f"--mypy_grpc_out=quiet:{source_root}",
            *files,
        ],
        check=True,
    )


def stale(committed: Path, fresh: Path) -> list[str]:
    """Names of the stubs that differ between two folders, or are in only one of them."""
    names = {path.name for folder in (committed, fresh) for path in folder.glob("*_pb2*.py*")}
    _, mismatch, errors = filecmp.cmpfiles(committed, fresh, names, shallow=False)
    return sorted(mismatch + errors)


def main() -> int:
    """Runs the command line; returns its exit code."""
    parser = argparse.ArgumentParser(description="Generate the gRPC stubs of the service.")
    parser.add_argument("--check", action="store_true", help="write nothing; fail when the stubs are stale")
    if not parser.parse_args().check:
        generate(SOURCE_ROOT)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        fresh = Path(folder)
        (fresh / PACKAGE).mkdir(parents=True)
        generate(fresh)
        names = stale(SOURCE_ROOT / PACKAGE, fresh / PACKAGE)
    if names:
        print(f"stale stubs: {', '.join(names)}: run python proto/generate.py and commit")  # noqa: T201
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
