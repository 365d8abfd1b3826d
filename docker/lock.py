"""Write the images' locks: exact versions of everything they hold, and the checksums that their files must have.

`python docker/lock.py` asks the package index (as uv is configured) what pyproject.toml resolves to today, for every
Python from 3.11 on:

- requirements.txt: all but PyTorch, which differs between the images;
- requirements-cuda.txt: PyTorch with CUDA, and its companions;
- requirements-tools.txt: what builds the images.

PyTorch for CPUs has another index and other checksums; the Dockerfile takes the version that is locked here.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

DOCKER = Path(__file__).resolve().parent
PROJECT = DOCKER.parent / "pyproject.toml"
TOOLS = DOCKER / "requirements-tools.in"

_OF_TORCH = re.compile(r"(torch|torchvision|triton|nvidia-.*|cuda-.*)==")
_HEAD = "# Written by `make lock`; do not edit.\n"


def resolve(source: Path) -> str:
    """The lock of what a file asks for, as uv writes it. Raises CalledProcessError."""
    command = [
        *(sys.executable, "-m", "uv", "pip", "compile", str(source)),
        *("--universal", "--python-version", "3.11", "--generate-hashes", "--no-header", "--quiet"),
        "--no-annotate",
    ]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout  # noqa: S603 (uv)


def parts(lock: str) -> tuple[str, str]:
    """The lock without PyTorch and its companions, and these alone."""
    entries = re.split(r"^(?=\S)", lock, flags=re.MULTILINE)
    of_torch = [entry for entry in entries if _OF_TORCH.match(entry)]
    return "".join(entry for entry in entries if entry not in of_torch), "".join(of_torch)


def main() -> int:
    """Write the three files; return the exit code."""
    try:
        common, cuda = parts(resolve(PROJECT))
        tools = resolve(TOOLS)
    except subprocess.CalledProcessError as error:
        return int(error.returncode)  # uv has said why
    for name, lock in (("", common), ("-cuda", cuda), ("-tools", tools)):
        (DOCKER / f"requirements{name}.txt").write_text(_HEAD + lock, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
