"""The images' locks hold all that the project depends on, and no more than can be checked."""

from __future__ import annotations

import re
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.docker.scripts import DOCKER, script

parts = script("lock").parts
LOCKS = ("requirements.txt", "requirements-cuda.txt", "requirements-tools.txt")
HERE = {"python_version": "3.11", "python_full_version": "3.11.0", "sys_platform": "linux"}


def entries(name: str) -> list[str]:
    text = (DOCKER / name).read_text(encoding="utf-8")
    return [entry for entry in re.split(r"^(?=\S)", text, flags=re.MULTILINE) if entry and entry[0] != "#"]


def pinned(name: str) -> dict[str, str]:
    """Versions by name, of what is installed on Linux."""
    found = [Requirement(entry.partition("\\")[0]) for entry in entries(name)]
    return {
        canonicalize_name(each.name): str(each.specifier).removeprefix("==")
        for each in found
        if each.marker is None or each.marker.evaluate(HERE)
    }


def test_what_the_project_depends_on_is_locked() -> None:
    project = tomllib.loads((DOCKER.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    locked = pinned("requirements.txt") | pinned("requirements-cuda.txt")
    for text in project["dependencies"]:
        wanted = Requirement(text)
        assert wanted.specifier.contains(locked[canonicalize_name(wanted.name)]), f"{text}: run `make lock`"


@pytest.mark.parametrize("name", LOCKS)
def test_every_file_can_be_checked(name: str) -> None:
    for entry in entries(name):
        assert re.match(r"[a-z0-9.-]+==[^\s]+ ", entry), entry[:80]
        assert "--hash=sha256:" in entry, entry[:80]


def test_pytorch_is_apart() -> None:
    """There are two of it: the image for CPUs must not get CUDA's libraries."""
    assert not [name for name in pinned("requirements.txt") if name.startswith(("torch", "nvidia", "triton"))]
    assert {"torch", "torchvision", "triton", "nvidia-cublas"} <= pinned("requirements-cuda.txt").keys()


def test_both_images_have_the_same_pytorch() -> None:
    dockerfile = (DOCKER / "Dockerfile").read_text(encoding="utf-8")
    locked = pinned("requirements-cuda.txt")
    assert f"ARG TORCH_VERSION={locked['torch']}\n" in dockerfile
    assert f"ARG TORCHVISION_VERSION={locked['torchvision']}\n" in dockerfile


def test_a_lock_is_parted_by_what_belongs_to_pytorch() -> None:
    numpy, torch, cuda = (
        f"{name}==2 \\\n    --hash=sha256:a\n" for name in ("numpy", "torch", "nvidia-nccl")
    )
    assert parts(cuda + numpy + torch) == (numpy, cuda + torch)
