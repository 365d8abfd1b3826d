"""The command line: one clear line and exit code 2 for what is wrong."""

import os
import resource
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from clip4str_service.__main__ import main
from clip4str_service.auth import load_keys
from clip4str_service.settings import Settings, flag, load_settings, variable


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith("CLIP4STR_"):
            monkeypatch.delenv(name)


def test_check_prints_every_setting(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CLIP4STR_MAX_CROPS", "7")
    monkeypatch.setenv("CLIP4STR_HTP_PORT", "8")
    assert main(["check", "--grpc-port", "9"]) == 0
    out, err = capsys.readouterr()
    printed = dict(line.split("=", 1) for line in out.splitlines())
    assert set(printed) == {variable(field) for field in Settings.model_fields}
    assert (printed["CLIP4STR_MAX_CROPS"], printed["CLIP4STR_GRPC_PORT"]) == ("7", "9")
    assert err == "clip4str-service: CLIP4STR_HTP_PORT is not a setting\n"


@pytest.mark.parametrize("command", [["check"], ["serve"], []])
def test_bad_setting(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command, "--http-port", "many"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("clip4str-service: CLIP4STR_HTTP_PORT (--http-port): ")
    assert err.count("\n") == 1


def test_checked_settings_are_those_that_would_be_used(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = {"devices": "cuda:1,cpu", "max_delay_ms": "1.5", "host": "::1", "tls_cert_file": ""}
    assert (
        main(["check", *(text for name, value in given.items() if value for text in (flag(name), value))])
        == 0
    )
    for line in capsys.readouterr().out.splitlines():
        monkeypatch.setenv(*line.split("=", 1))
    assert load_settings({}) == load_settings({name: value for name, value in given.items() if value})


@pytest.mark.parametrize("command", [["check"], ["serve"], []])
def test_file_that_a_setting_names_must_be_good(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = tmp_path / "keys.toml"
    keys.write_text('[keys.a]\nsha256 = "short"\n')
    certificate = tmp_path / "cert.pem"
    for flags, mentions in (
        (["--api-keys-file", str(keys)], "keys.a.sha256"),
        (["--api-keys-file", str(tmp_path / "none.toml")], "none.toml: No such file"),
        (["--tls-cert-file", str(certificate)], "CLIP4STR_TLS_KEY_FILE"),
        (["--tls-cert-file", str(certificate), "--tls-key-file", str(certificate)], "cert.pem"),
        (["--tls-client-ca-file", str(certificate)], "CLIP4STR_TLS_CERT_FILE"),
    ):
        assert main([*command, *flags]) == 2
        err = capsys.readouterr().err
        assert err.startswith("clip4str-service: ")
        assert err.count("\n") == 1
        assert mentions in err


def test_made_key_is_good_and_is_shown_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = ""
    made = []
    for name in ("invoices", "maps"):
        assert main(["key", name]) == 0
        out, err = capsys.readouterr()
        made.append(err.strip())
        assert err.strip() not in out
        lines += out
    path = tmp_path / "keys.toml"
    path.write_text(lines)
    keys = load_keys(path)
    assert [keys.authenticate(key).name for key in made] == ["invoices", "maps"]
    assert main(["check", "--api-keys-file", str(path)]) == 0


def test_name_that_no_key_can_have(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["key", "not a name"]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith("clip4str-service: ")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--htp-port", "1"],
        ["--http-port"],
        ["--http", "1"],
        ["serve", "--http", "1"],
        ["sing"],
        ["key"],
        ["key", "invoices", "--http-port", "1"],
        ["check", "invoices"],
        ["serve", "invoices"],
        ["samples", "--key", "secret"],
    ],
)
def test_bad_flag(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    err = capsys.readouterr().err
    assert err.startswith("clip4str-service")
    assert err.count("\n") == 1


@pytest.mark.parametrize("arguments", [["check", "--max-crops", "7"], ["--max-crops", "7", "check"]])
def test_flags_before_a_command_and_behind_it(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 0
    assert "CLIP4STR_MAX_CROPS=7\n" in capsys.readouterr().out


def test_help_names_every_flag(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    out = capsys.readouterr().out
    assert all(f"--{field.replace('_', '-')}" in out for field in Settings.model_fields)


@pytest.mark.parametrize("taken_port", ["http", "grpc", "metrics"])
def test_taken_port_ends_the_start_with_one_line(taken_port: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ports = {"http": 0, "grpc": 0, "metrics": 0, taken_port: taken.getsockname()[1]}
        flags = [text for name, port in ports.items() for text in (f"--{name}-port", str(port))]
        command = [sys.executable, "-m", "clip4str_service", *flags]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert ended.returncode == 2
    assert ended.stderr.startswith(
        f"clip4str-service: CLIP4STR_{taken_port.upper()}_PORT (--{taken_port}-port): cannot listen"
    )
    assert ended.stderr.count("\n") == 1


def test_no_room_for_metrics_ends_the_start_with_one_line() -> None:
    command = [sys.executable, "-m", "clip4str_service"]
    flags = [text for name in ("http", "grpc", "metrics") for text in (f"--{name}-port", "0")]
    ended = subprocess.run(
        [*command, *flags],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16)),
    )
    assert ended.returncode == 2
    assert "has no room for metrics (File too large): each process needs 768 KiB there" in ended.stderr
    assert ended.stderr.count("\n") == 1
