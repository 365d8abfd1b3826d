"""The `clip4str` command without weights: what it says of bad input, and that it says it in one line."""

import sys
from pathlib import Path

import pytest
import torch

from clip4str.checkpoint import load
from clip4str.cli import main
from clip4str.registry import tables
from tests.model.small import small_model


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    for command in ("read", "batch", "eval", "synth", "train", "fetch", "convert", "export", "bench"):
        assert f"\n    {command} " in shown


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["write"],
        ["read"],
        ["read", "a.png", "--top-k", "6"],
        ["batch", "images"],
        ["batch", "images", "--output", "out", "--workers", "0"],
        ["batch", "images", "--output", "out", "--device", "cuda:1"],
        ["eval"],
        ["synth", "out"],
        ["synth", "out", "--count", "0"],
        ["synth", "out", "--count", "many"],
        ["convert", "only-one"],
        ["convert", "a.ckpt", "a.safetensors", "--dtype", "int8"],
        ["fetch"],
        ["fetch", "base16", "--list"],
        ["export"],
        ["export", "out", "--format", "tflite"],
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
        (["read", "a.png", "--device", "tpu"], "device 'tpu' is not a device name"),
        (["bench", "--device", "tpu"], "device 'tpu' is not a device name"),
        (["bench", "--precisions", "int4"], "precision 'int4' is unknown"),
        (["bench", "--models", "base99"], "no model file 'base99'"),
        (["bench", "--baseline", "missing.py"], "missing.py: no such file"),
        (["read", "a.png", "--model", "broken.safetensors"], "not a readable safetensors file"),
        (["eval", "--data", "nowhere"], "nowhere: no such folder"),
        (["eval", "--data", "empty"], "holds neither labels.tsv nor data.mdb"),
        (["eval", "--data", "words", "other/words"], "two sets are named words"),
        (["synth", "out", "--count", "1", "--fonts", "empty"], "empty"),
        (["train", "missing.yaml"], "missing.yaml"),
        (["convert", "missing.ckpt", "out.safetensors"], "missing.ckpt"),
        (["convert", "broken.safetensors", "out.safetensors"], "not a readable safetensors file"),
        (["convert", "missing.ckpt", "broken.safetensors"], "exists; --force overwrites"),
        (["convert", "missing.ckpt", "nowhere/out.safetensors"], "there is no folder 'nowhere'"),
        (["convert", "missing.ckpt", "out.pt"], "must end in .safetensors"),
        (["fetch", "base17"], "no published checkpoint is named 'base17'; there are base16-synth, "),
        (["fetch", "base32"], "no published checkpoint is named 'base32'"),
        (["fetch", "base16", "--dir", "broken.safetensors"], "File exists: 'broken.safetensors'"),
        (["read", "a.png", "--model", "base16"], "run `clip4str fetch base16-rbu`"),
        (["export", "empty"], "empty: exists; name a folder that does not"),
        (["export", "nowhere/out"], "there is no folder 'nowhere'"),
        (["export", "out", "--model", "broken.safetensors"], "not a readable safetensors file"),
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
    monkeypatch.setenv("CLIP4STR_CACHE_DIR", str(tmp_path / "cache"))
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


@pytest.mark.parametrize(
    ("arguments", "package", "importer", "extra"),
    [
        (["export", "out"], "onnxscript", "clip4str.export", "onnx"),
        (["batch", "images", "--output", "out"], "pyarrow", "clip4str.bulk.cluster", "bulk"),
        (["batch", "images", "--output", "out"], "ray", "clip4str.bulk.cluster", "bulk"),
    ],
)
def test_a_missing_extra_is_named(
    arguments: list[str],
    package: str,
    importer: str,
    extra: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, importer, raising=False)
    assert main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(f"this command needs the extra: pip install 'clip4str[{extra}]'")


def test_fetch_list_prints_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fetch", "--list"]) == 0
    assert capsys.readouterr().out == f"{tables()}\n"


def test_convert_writes_a_model_that_reads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, target = tmp_path / "model.pt", tmp_path / "model.safetensors"
    torch.save(small_model().state_dict(), source)
    assert main(["convert", str(source), str(target), "--dtype", "bf16"]) == 0
    assert capsys.readouterr().out == f"wrote {target}\n"
    assert {value.dtype for value in load(str(target)).state.values()} == {torch.bfloat16}
    assert main(["convert", str(target), str(target), "--force"]) == 0
