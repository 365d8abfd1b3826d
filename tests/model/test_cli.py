"""The `clip4str` command without weights: what it says of bad input, and that it says it in one line."""

from pathlib import Path

import pytest

from clip4str.cli import main


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    for command in ("read", "eval", "synth", "train", "convert"):
        assert f"\n    {command} " in shown


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["write"],
        ["read"],
        ["read", "a.png", "--top-k", "6"],
        ["eval"],
        ["synth", "out"],
        ["synth", "out", "--count", "0"],
        ["synth", "out", "--count", "many"],
        ["convert", "only-one"],
    ],
)
def test_wrong_usage_exits_2_with_one_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("clip4str")
    assert "--help" in line


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["read", "a.png", "--model", "missing.safetensors"], "missing.safetensors"),
        (["read", "a.png", "--model", "broken.safetensors"], "not a readable safetensors file"),
        (["eval", "--data", "nowhere"], "nowhere: no such folder"),
        (["eval", "--data", "empty"], "holds neither labels.tsv nor data.mdb"),
        (["eval", "--data", "words", "other/words"], "two sets are named words"),
        (["synth", "out", "--count", "1", "--fonts", "empty"], "empty"),
        (["train", "missing.yaml"], "missing.yaml"),
        (["convert", "missing.ckpt", "out.safetensors"], "missing.ckpt"),
        (["convert", "broken.safetensors", "out.safetensors"], "not a readable safetensors file"),
    ],
)
def test_bad_input_exits_2_with_one_line(
    arguments: list[str],
    problem: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.safetensors").write_bytes(b"no weights")
    (tmp_path / "empty").mkdir()
    for folder in ("words", "other/words"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "labels.tsv").write_text("a.png\tEXIT\n")
    assert main(arguments) == 2
    shown = capsys.readouterr()
    (line,) = shown.err.splitlines()
    assert line.startswith(f"clip4str {arguments[0]}: ")
    assert problem in line
    assert shown.out == ""
