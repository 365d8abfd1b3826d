"""The command line of docker/build.py, before an engine that only writes down what it is asked."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from tests.docker.scripts import script

_build = script("build")
main, pip_settings = _build.main, _build.pip_settings


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the only commands there are: a docker that does not answer, and a podman that does."""
    commands = tmp_path / "bin"
    commands.mkdir()
    for name, body in {"docker": "exit 1", "podman": f'echo "$@" >> {tmp_path}/asked'}.items():
        path = commands / name
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(commands))
    return commands


def test_the_first_that_answers_builds(
    engine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--target", "cuda", "--arg", "VERSION=1.2"]) == 0
    assert capsys.readouterr().out == "built clip4str:cuda\n"
    _, asked = (tmp_path / "asked").read_text().splitlines()
    assert asked.startswith("build --format docker --build-arg=REVISION=")
    assert "--build-arg=VERSION=1.2" in asked
    assert f"--file={engine}" not in asked
    assert "--target=cuda --tag=clip4str:cuda " in asked


def test_failure_is_told(engine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (engine / "podman").write_text('#!/bin/sh\n[ "$1" = info ] || exit 3\n')
    assert main([]) == 1
    assert capsys.readouterr().err == "build: podman ended with 3; above is why\n"


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        ([], "no docker, podman or buildah answers here"),
        (["--stand-in"], "apt-get install buildah mmdebstrap"),
    ],
)
def test_nothing_to_build_with(
    flags: list[str], reason: str, engine: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (engine / "podman").unlink()
    assert main(flags) == 2
    err = capsys.readouterr().err
    assert err.startswith("build: ")
    assert err.count("\n") == 1
    assert reason in err


def test_base_alone_builds_nothing(engine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    known = '[{"names": null}, {"names": ["localhost/clip4str-stand-in:bookworm"]}]'
    for name, body in {
        "buildah": f"echo \"$@\" >> {tmp_path}/asked; echo '{known}'",
        "mmdebstrap": "exit 1",
    }.items():
        path = engine / name
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    assert main(["--stand-in", "--base-only"]) == 0
    assert capsys.readouterr().out == "localhost/clip4str-stand-in:bookworm\n"
    assert (tmp_path / "asked").read_text() == "images --json\n"


def test_there_is_no_base_without_stand_in(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--base-only"])
    assert ended.value.code == 2
    assert "--base-only goes with --stand-in" in capsys.readouterr().err


def test_pip_in_the_build_is_configured_as_here() -> None:
    listed = """:env:.find-links='/wheels'
global.find-links='/elsewhere'
global.extra-index-url='file:///a https://index/b'
install.timeout='60'
"""
    assert pip_settings(listed) == {
        "find-links": "/wheels",
        "extra-index-url": "https://index/b",
        "timeout": "60",
    }
