"""Files that are no checkpoints, or mean harm: each gets one clear line, and runs nothing."""

from __future__ import annotations

import os
import pickle
import re
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from clip4str.checkpoint import CheckpointError, build, load, load_clip_weights
from clip4str.containers import read_torchscript
from tests.model.small import small_model

State = dict[str, Tensor]
# of a zip archive with parts on two disks
FORGED_END = bytes(99) + struct.pack("<4sLQL", b"PK\x06\x07", 0, 0, 2) + b"PK\x05\x06" + bytes(18)


@pytest.fixture(scope="module")
def weights() -> State:
    return small_model().state_dict()


class Hostile:
    """Runs `code` when it is unpickled without care."""

    def __init__(self, code: Any, *arguments: Any) -> None:
        self.reduced = code, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.reduced


def said_of(path: Path) -> str:
    """The error that loading this file ends in."""
    with pytest.raises(CheckpointError) as caught:
        build(load(str(path)))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("suffix", [".pt", ".ckpt", ".safetensors"])
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:15f9c480\n", "Git LFS pointer"),
        (b"\n<!DOCTYPE html><html><body>Not Found</body></html>", "is a web page"),
        (b"<html lang=en>", "is a web page"),
        (b"root:x:0:0:root:/root:/bin/bash\n", "not a readable"),
        (b"PK\x03\x04" + bytes(3000), "not a readable"),
        (b"\x80\x02" + bytes(3000), "not a readable"),
        (FORGED_END, "not a readable"),
    ],
)
def test_other_kinds_of_files(content: bytes, reason: str, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"model{suffix}"
    path.write_bytes(content)
    assert reason in said_of(path)


def test_a_folder_with_a_checkpoint_name(tmp_path: Path) -> None:
    (tmp_path / "model.pt").mkdir()
    assert "expected one .safetensors, .ckpt or .pt file in this directory, found none" in said_of(
        tmp_path / "model.pt"
    )


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_file(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(b"x")
    path.chmod(0)
    assert "Permission denied" in said_of(path)


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_truncated(kept: float, suffix: str, weights: State, tmp_path: Path) -> None:
    path = tmp_path / f"model{suffix}"
    if suffix == ".pt":
        torch.save(weights, path)
    else:
        save_file(weights, path)
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
    assert "not a readable" in said_of(path)


def test_a_damaged_list_of_entries(weights: State, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save(weights, path)
    path.write_bytes(path.read_bytes().replace(b"PK\x01\x02", b"PK\x01\x00"))  # each entry's mark
    assert "not a readable zip archive" in said_of(path)
    with pytest.raises(CheckpointError, match=r"not a readable zip archive \(Bad magic number"):
        load_clip_weights(small_model(), path)


@pytest.mark.parametrize(
    ("code", "named"),
    [
        (os.mkdir, "posix.mkdir"),
        (os.system, "posix.system"),
        (eval, "eval"),
        (getattr(pickle, "loads"), "pickle.loads"),  # noqa: B009 (S301 would take it for a call)
        (zipfile.ZipFile, "zipfile.ZipFile"),
    ],
)
@pytest.mark.parametrize("archive", [True, False])
def test_hostile_pickle(
    code: Callable[..., Any], named: str, archive: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "model.pt"
    content = {"state_dict": {}, "callbacks": Hostile(code, "pwned")}
    torch.save(content, path, _use_new_zipfile_serialization=archive)
    assert re.search(f"names code to run, not only weights: (builtins.)?{named}$", said_of(path))
    assert not (tmp_path / "pwned").exists()


def test_what_training_left_beside_the_weights_is_not_run(weights: State, tmp_path: Path) -> None:
    """Names of frameworks are tolerated in a checkpoint, but what they name is not called."""
    path = tmp_path / "model.ckpt"
    save = Hostile(torch.save, {}, str(tmp_path / "pwned"))
    torch.save({"state_dict": weights, "hyper_parameters": {}, "callbacks": save}, path)
    build(load(str(path)))
    assert not (tmp_path / "pwned").exists()


def repack(path: Path, compression: int, extra: int = 0) -> None:
    """The same archive with other compression, and `extra` bytes of zeros."""
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
        if extra:
            archive.writestr("model/padding", bytes(extra))


def test_zip_bomb(weights: State, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save(weights, path)
    repack(path, zipfile.ZIP_DEFLATED, extra=100 << 20)
    assert "not written by torch.save" in said_of(path)


def test_compressed_tensors(weights: State, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save(weights, path)
    repack(path, zipfile.ZIP_DEFLATED)
    assert "tensors are compressed" in said_of(path)


def test_tensors_of_more_bytes_than_the_file(weights: State, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    huge = torch.zeros(1).expand(1 << 20, 1 << 20)
    torch.save({**weights, "clip_model.text_projection": huge}, path)
    assert "its tensors claim" in said_of(path)


@pytest.mark.parametrize(
    "tensor", [torch.zeros(4, 4).to_sparse(), torch.zeros(4, 4, device="meta")], ids=["sparse", "meta"]
)
def test_tensors_without_plain_memory(tensor: Tensor, weights: State, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save({**weights, "clip_model.text_projection": tensor}, path)
    assert "not a plain tensor" in said_of(path)


@pytest.mark.parametrize("content", [[1, 2], {}, {"a": 1}, {1: torch.zeros(1)}, {"state_dict": [1]}, 7, None])
def test_no_state_dict(content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "model.pt")
    assert "holds no state dict of tensors" in said_of(tmp_path / "model.pt")


def test_clip_weights_are_not_enough(weights: State, tmp_path: Path) -> None:
    prefix = "clip_model."
    clip = {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
    torch.save(clip, tmp_path / "clip.pt")
    assert "holds CLIP's own weights" in said_of(tmp_path / "clip.pt")


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
def test_a_torchscript_archive_is_no_checkpoint(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "ViT-B-16.pt")
    assert "is a TorchScript archive" in said_of(tmp_path / "ViT-B-16.pt")


class Scripted(torch.nn.Module):
    """Computes something when its archive is loaded."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.zeros(2)

    @torch.jit.export
    def __getstate__(self) -> tuple[Tensor, bool]:
        return self.weight, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[Tensor, bool]) -> None:
        self.weight = state[0] + 1
        self.training = state[1]


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
def test_a_torchscript_archive_that_runs_when_loaded(tmp_path: Path) -> None:
    path = tmp_path / "clip.pt"
    torch.jit.save(torch.jit.script(Scripted()), path)
    assert torch.jit.load(path).weight.sum() == 2  # it did
    with pytest.raises(CheckpointError, match="runs code while it is loaded"):
        read_torchscript(path)


def test_adapter_models_are_not_supported(weights: State, tmp_path: Path) -> None:
    clip = {key: value for key, value in weights.items() if key.startswith("clip_model.")}
    torch.save({**clip, "adapter.fc.0.weight": torch.zeros(2, 2)}, tmp_path / "adapter.ckpt")
    assert "is a CLIP adapter" in said_of(tmp_path / "adapter.ckpt")


def changed(weights: State, kind: str) -> State:
    projection = "clip_model.text_projection"
    match kind:
        case "missing":
            return {key: value for key, value in weights.items() if "norm" not in key}
        case "unexpected":
            return {**weights, "extra.weight": torch.zeros(1)}
        case "shape":
            return {**weights, "clip_model.visual.ln_post.bias": torch.zeros(65)}
        case "kind of number":
            return {**weights, projection: weights[projection].to(torch.int64)}
        case "not finite":
            spoilt = weights[projection].clone()
            spoilt[3, 5] = float("nan")
            return {**weights, projection: spoilt}
        case "few tokens":
            return {**weights, "clip_model.token_embedding.weight": torch.zeros(512, 64)}
        case "not a CLIP4STR":
            return {key: value for key, value in weights.items() if "ln_final" not in key}
        case _:
            return {**weights, "clip_model.ln_final.weight": torch.tensor(1.0)}


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("missing", "missing: cross_decoder.layers.0.norm1.bias, .*norm1.weight, .*norm2.bias and 17 more"),
        ("unexpected", "unexpected: extra.weight"),
        ("shape", "of another shape: clip_model.visual.ln_post.bias"),
        ("kind of number", "of another kind of number: clip_model.text_projection"),
        ("not finite", "clip_model.text_projection holds numbers that are not finite"),
        ("few tokens", "vocabulary 512 is below the 49408 tokens of 'bpe'"),
        ("not a CLIP4STR", r"not a CLIP4STR checkpoint \(it lacks 'clip_model.ln_final.weight'\)"),
        ("scalar", r"clip_model.ln_final.weight has shape \(\), not 1 dimensions"),
    ],
)
def test_wrong_weights(kind: str, reason: str, weights: State, tmp_path: Path) -> None:
    torch.save(changed(weights, kind), tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match=reason):
        build(load(str(tmp_path / "model.pt")))


@pytest.mark.parametrize(
    ("hyper", "reason"),
    [
        ("none", "hyper_parameters are no dictionary"),
        ([1], "hyper_parameters are no dictionary"),
        ({"context_length": "sixteen"}, "context_length is 'sixteen', not a whole number from 2 to 77"),
        ({"context_length": 10**12}, "context_length is 1000000000000, not"),
        ({"context_length": True}, "context_length is True, not"),
        ({"text_freeze_nlayer": None}, "text_freeze_nlayer is None, not"),
        ({"charset_test": 36}, "charset_test is 36, not text"),
    ],
)
def test_wrong_hyper_parameters(hyper: Any, reason: str, weights: State, tmp_path: Path) -> None:
    torch.save({"state_dict": weights, "hyper_parameters": hyper}, tmp_path / "model.ckpt")
    assert reason in said_of(tmp_path / "model.ckpt")


def test_a_pickle_of_before_archives_loads(weights: State, tmp_path: Path) -> None:
    torch.save(weights, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    model = build(load(str(tmp_path / "old.pt")))
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())
