"""What bench/rolling.py makes of requests, and what it refuses; fetching its proxies."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from bench import proxies, rolling
from bench.rolling_clients import Asked
from clip4str_service.settings import Settings

EXAMPLES = Path(__file__).resolve().parents[2] / "docs" / "examples"


def test_a_request_counts_where_its_first_try_ended() -> None:
    cut_off = Asked(begun=9.9, first_ended=10.1, ended=11.0, first="UNAVAILABLE", last="")
    lost = Asked(begun=12.0, first_ended=12.1, ended=42.0, first="draining", last="draining")
    good = [Asked(begun=t, first_ended=t + 0.1, ended=t + 0.1, first="", last="") for t in (1.0, 2.0, 11.0)]
    shown = rolling.table({"gRPC": [*good, cut_off, lost]}, [("both serve", 0.0), ("one dies", 10.0)])
    assert shown.splitlines()[2:] == [
        "| both serve | gRPC | 2 | 0 | 0 | 100 | 100 |",
        "| one dies | gRPC | 3 | 2 (1 UNAVAILABLE, 1 draining) | 1 | 1100 | 29422 |",
    ]


def test_a_phase_without_requests() -> None:
    assert rolling.table({"REST": []}, [("both serve", 0.0)]).endswith(
        "| both serve | REST | 0 | 0 | 0 | | |\n"
    )


@pytest.mark.parametrize("rate", ["0", "-1", "2000", "nan"])
def test_bad_rate(rate: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert rolling.main(["--rate", rate]) == 2
    err = capsys.readouterr().err
    assert err.startswith("rolling: --rate is ")
    assert err.count("\n") == 1


def test_the_examples_fit_the_replicas_and_the_limits() -> None:
    nginx, envoy = ((EXAMPLES / name).read_text(encoding="utf-8") for name in ("nginx.conf", "envoy.yaml"))
    for replica in (rolling.Replica(1), rolling.Replica(2)):
        assert f"server 127.0.0.1:{replica.ports['HTTP']} " in nginx
        assert f"port_value: {replica.ports['GRPC']} " in envoy
    assert f"listen {rolling.REST.removeprefix('http://')};" in nginx
    assert f"port_value: {rolling.GRPC.rpartition(':')[2]} " in envoy
    assert rolling._ENVOY_TRIES[0] in envoy
    largest = Settings.model_fields["max_request_bytes"].default
    assert f"client_max_body_size {largest >> 20}m;" in nginx
    assert f"per_connection_buffer_limit_bytes: {largest + (4 << 20)} " in envoy


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the only commands there are, and another for what is fetched."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    for name in ("nginx", "envoy"):
        monkeypatch.setattr(proxies, name.upper(), tmp_path / "tools" / name)
    monkeypatch.setattr(proxies, "TOOLS", tmp_path / "tools")
    return folder


def test_what_is_there_is_not_fetched(commands: Path) -> None:
    proxies.TOOLS.mkdir()
    for program in (proxies.NGINX, proxies.ENVOY):
        program.write_bytes(b"mine")
    assert not list(commands.iterdir())
    assert proxies.main() == 0
    assert proxies.NGINX.read_bytes() == b"mine"


def test_without_apt_one_may_bring_ones_own(commands: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert proxies.main() == 2
    assert capsys.readouterr().err == (
        f"proxies: nginx comes from Debian's packages here; put another one at {proxies.NGINX}\n"
    )
    assert not list(commands.iterdir())


def test_a_failure_is_told_in_one_line(commands: Path, capsys: pytest.CaptureFixture[str]) -> None:
    apt = commands / "apt-get"
    apt.write_text("#!/bin/sh\necho first >&2\necho no such package >&2\nexit 100\n")
    apt.chmod(apt.stat().st_mode | stat.S_IXUSR)
    assert proxies.main() == 2
    assert capsys.readouterr().err == (
        "proxies: nginx: apt-get download --quiet=2 ended with 100: no such package\n"
    )
    assert not list(proxies.TOOLS.iterdir())
