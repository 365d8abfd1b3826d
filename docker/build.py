"""Build an image of the service with whatever builds images here.

`python docker/build.py [--target cpu]` takes the first of docker, podman and buildah that answers.

`--stand-in` is for machines that reach Debian's and Python's packages, but no registry of images. buildah needs no
engine, a base is made from Debian's packages, and pip is configured in the build as it is here (the files for that
are mounted, and stay out of the image). Such an image is as good as any to test, and not meant to be published.
"""

from __future__ import annotations

import argparse
import ast
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DOCKERFILE = ROOT / "docker" / "Dockerfile"
TARGETS = ("cpu", "cuda", "cpu-bill", "cuda-bill")

# Docker's format is the one that has health checks.
BUILDERS = (
    ("docker", "build"),
    ("podman", "build", "--format", "docker"),
    ("buildah", "build", "--format", "docker"),
)

_STAND_IN = "localhost/clip4str-stand-in:bookworm"
_STAND_IN_NEEDS = ("buildah", "mmdebstrap")
_STAND_IN_PACKAGES = "ca-certificates,python3,python3-pip,python3-venv"
_CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")


class BuildError(Exception):
    """Nothing can be built; the message is one line that says what to do."""


def builder() -> list[str]:
    """The command that builds images here. Raises BuildError."""
    for command, *arguments in BUILDERS:
        if shutil.which(command) and _answers(command):
            return [command, *arguments]
    raise BuildError(
        "no docker, podman or buildah answers here: start one, or install buildah and use --stand-in"
    )


def _answers(command: str) -> bool:
    asked = [command, "info"]
    return subprocess.run(asked, capture_output=True, check=False).returncode == 0  # noqa: S603 (one of three)


def make_base() -> None:
    """Make the stand-in's base, unless it is there. Raises BuildError, CalledProcessError."""
    if missing := [command for command in _STAND_IN_NEEDS if not shutil.which(command)]:
        raise BuildError(f"--stand-in needs {' and '.join(missing)}: apt-get install {' '.join(missing)}")
    images = json.loads(_output("buildah", "images", "--json"))
    if any(_STAND_IN in (image["names"] or ()) for image in images):
        return
    with tempfile.TemporaryDirectory() as folder:
        archive = Path(folder) / "base.tar"
        _run("mmdebstrap", "--variant=minbase", f"--include={_STAND_IN_PACKAGES}", "bookworm", str(archive))
        container = _output("buildah", "from", "scratch").strip()
        _run("buildah", "add", "--quiet", container, str(archive), "/")
        _run("buildah", "commit", "--quiet", "--rm", container, _STAND_IN)


@contextmanager
def stand_in() -> Iterator[list[str]]:
    """The command that builds on the base, which is made if it must be. Raises BuildError, CalledProcessError."""
    make_base()
    with tempfile.TemporaryDirectory() as folder:
        config, mounted = Path(folder) / "pip.conf", [_CERTIFICATES]
        settings = pip_settings(_output(sys.executable, "-m", "pip", "config", "list"))
        config.write_text("[global]\n" + "".join(f"{name} = {value}\n" for name, value in settings.items()))
        mounted += [Path(place) for place in settings.get("find-links", "").split() if Path(place).is_dir()]
        volumes = [f"--volume={path}:{path}:ro" for path in mounted]
        yield [
            *("buildah", "build", "--format", "docker", "--layers", "--isolation", "chroot", "--pull=never"),
            *(f"--build-arg=PYTHON_IMAGE={_STAND_IN}", *volumes, f"--volume={config}:/etc/pip.conf:ro"),
        ]


def pip_settings(listed: str) -> dict[str, str]:
    """What `pip config list` prints, by name, but for indexes on this disk; the environment's settings win."""
    pairs = [line.partition("=") for line in listed.splitlines()]
    found = [(*name.rpartition(".")[::2], str(ast.literal_eval(value))) for name, _, value in pairs]
    found.sort(key=lambda each: each[0] == ":env:")
    kept = {
        name: [each for each in value.split() if not each.startswith("file:")] for _, name, value in found
    }
    return {name: " ".join(values) for name, values in kept.items() if values}


def _run(*command: str) -> None:
    subprocess.run(command, check=True)  # noqa: S603 (the commands of this file)


def _output(*command: str) -> str:
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout  # noqa: S603 (likewise)


def _revision() -> str:
    """The commit that is built, with a mark if the tree has changes; unknown outside of a repository."""
    if not shutil.which("git"):
        return "unknown"
    described = ["git", "-C", str(ROOT), "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
    answer = subprocess.run(described, capture_output=True, text=True, check=False)  # noqa: S603 (git)
    return answer.stdout.strip() or "unknown"


def build(command: Sequence[str], target: str, tag: str, arguments: Sequence[str]) -> None:
    """Build the target under this name; `arguments` are the Dockerfile's, NAME=VALUE. Raises CalledProcessError."""
    named = [f"--build-arg={argument}" for argument in (f"REVISION={_revision()}", *arguments)]
    _run(*command, *named, f"--file={DOCKERFILE}", f"--target={target}", f"--tag={tag}", str(ROOT))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return 1 when the build fails, 2 after one line when there can be none."""
    parser = argparse.ArgumentParser(description="Build an image of the service.")
    parser.add_argument("--target", choices=TARGETS, default="cpu", help="(default: %(default)s)")
    parser.add_argument("--tag", help="name of the image (default: clip4str:TARGET)")
    parser.add_argument(
        "--arg", action="append", default=[], metavar="NAME=VALUE", help="an argument of the Dockerfile"
    )
    parser.add_argument(
        "--stand-in", action="store_true", help="without engine and registry: buildah, on a base made here"
    )
    parser.add_argument(
        "--base-only",
        action="store_true",
        help="with --stand-in: make that base, print its name, build nothing",
    )
    given = parser.parse_args(argv)
    if given.base_only and not given.stand_in:
        parser.error("--base-only goes with --stand-in")
    tag = given.tag or f"clip4str:{given.target}"
    try:
        if given.base_only:
            make_base()
            sys.stdout.write(f"{_STAND_IN}\n")
            return 0
        if given.stand_in:
            with stand_in() as command:
                build(command, given.target, tag, given.arg)
        else:
            build(builder(), given.target, tag, given.arg)
    except BuildError as error:
        sys.stderr.write(f"build: {error}\n")
        return 2
    except subprocess.CalledProcessError as error:
        sys.stderr.write(f"build: {error.cmd[0]} ended with {error.returncode}; above is why\n")
        return 1
    sys.stdout.write(f"built {tag}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
