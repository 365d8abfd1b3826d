"""Every container loads to the same model; every bad file gets one clear line."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pickle
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from safetensors.torch import save_file

from clip4str import CheckpointError, checkpoint
from clip4str.checkpoint import build, convert, load, load_clip_weights, save
from clip4str.config import VARIANTS, ModelConfig, TextConfig, VisionConfig
from clip4str.model import CLIP4STR

SMALL = ModelConfig(
    variant="custom",
    vision=VisionConfig((64, 64), (16, 16), 64, 2, 1),
    text=TextConfig("bpe", 512, 77, 16, 64, 2, 1),
    embed_dim=64,
    freeze_text_layers=6,
)


@pytest.fixture(scope="module")
def model() -> CLIP4STR:
    torch.manual_seed(0)
    model = CLIP4STR(SMALL)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    return model.eval()


def assert_same(one: CLIP4STR, other: CLIP4STR, tolerance: float = 0.0) -> None:
    expected = one.state_dict()
    for key, value in other.state_dict().items():
        torch.testing.assert_close(value, expected[key], atol=tolerance, rtol=0)


def test_lightning_checkpoint(model: CLIP4STR, tmp_path: Path) -> None:
    """The published .ckpt: a Lightning dictionary with hyper-parameters."""
    path = tmp_path / "published.ckpt"
    hyper = {"charset_test": "0123456789", "context_length": 20, "embed_dim": 512, "patch_size": [16, 16]}
    torch.save({"state_dict": model.state_dict(), "hyper_parameters": hyper, "epoch": 3, "loops": {}}, path)
    loaded = load(str(path))
    assert loaded.name == "published"
    assert loaded.config.caption_charset == "0123456789"
    assert loaded.config.text.context_length == 20
    assert loaded.config.vision == SMALL.vision
    assert loaded.config.embed_dim == 64
    assert_same(model, build(loaded))


def test_bare_state_dict(model: CLIP4STR, tmp_path: Path) -> None:
    """The published .pt: weights alone; the rest is the published default."""
    path = tmp_path / "weights.pt"
    torch.save(model.state_dict(), path)
    loaded = load(str(tmp_path))
    assert loaded.config == SMALL
    assert_same(model, build(loaded))


def test_missing_hyper_parameters_fall_back_as_published(model: CLIP4STR, tmp_path: Path) -> None:
    """A Lightning file that lacks a value is read with the published code's default, not the YAML's."""
    torch.save({"state_dict": model.state_dict(), "hyper_parameters": {}}, tmp_path / "old.ckpt")
    config = load(str(tmp_path / "old.ckpt")).config
    assert (config.text.context_length, config.freeze_text_layers) == (20, -1)


def test_own_format_keeps_config_and_digest(model: CLIP4STR, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save(path, model)
    loaded = load(str(path))
    assert loaded.config == SMALL
    assert loaded.revision == f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"
    assert_same(model, build(loaded), tolerance=1e-3)


def test_convert(model: CLIP4STR, tmp_path: Path) -> None:
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    convert(tmp_path / "weights.pt", tmp_path / "out.safetensors")
    assert_same(model, build(load(str(tmp_path / "out.safetensors"))))


def test_published_names_are_complete() -> None:
    """A variant's state dict has exactly the published checkpoints' keys."""
    with torch.device("meta"):
        keys = set(CLIP4STR(VARIANTS["base16"]).state_dict())
    assert "clip_model.visual.transformer.resblocks.11.mlp.c_proj.weight" in keys
    assert "cross_decoder.layers.0.cross_attn.in_proj_weight" in keys
    assert not [
        key for key in keys if not key.startswith(("clip_model.", "visual_decoder.", "cross_decoder."))
    ]


class Hostile:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("pwned",)


def bad_files(folder: Path, model: CLIP4STR) -> dict[str, tuple[Path, str]]:
    state = model.state_dict()
    torch.save(
        {"state_dict": {k: v for k, v in state.items() if "ln_final" not in k}}, folder / "lacking.ckpt"
    )
    torch.save({"state_dict": [1, 2]}, folder / "list.ckpt")
    torch.save({**state, "extra.weight": torch.zeros(1)}, folder / "extra.pt")
    (folder / "hostile.pt").write_bytes(pickle.dumps(Hostile()))
    (folder / "empty.pt").write_bytes(b"")
    whole = folder / "whole.pt"
    torch.save(state, whole)
    (folder / "truncated.pt").write_bytes(whole.read_bytes()[:5000])
    (folder / "text.safetensors").write_text("not weights")
    (folder / "passwords.pt").write_text("root:x:0:0:root:/root:/bin/bash\n")
    torch.save({"state_dict": state, "hyper_parameters": "none"}, folder / "hyper.ckpt")
    torch.save({**state, "clip_model.ln_final.weight": torch.tensor(1.0)}, folder / "scalar.pt")
    for name, config in (("nested", "[" * 100_000), ("number", "5"), ("headless", _headless())):
        save_file({"a": torch.zeros(1)}, folder / f"{name}.safetensors", {"clip4str": config})
    return {
        "lacking": (folder / "lacking.ckpt", "clip_model.ln_final.weight"),
        "list": (folder / "list.ckpt", "no state dict"),
        "extra": (folder / "extra.pt", "extra.weight"),
        "hostile": (folder / "hostile.pt", "not a readable checkpoint"),
        "empty": (folder / "empty.pt", "is empty"),
        "truncated": (folder / "truncated.pt", "not a readable checkpoint"),
        "text": (folder / "text.safetensors", "not a readable safetensors"),
        "missing": (folder / "nothing.pt", "no model file"),
        "passwords": (folder / "passwords.pt", "not a readable checkpoint"),
        "hyper": (folder / "hyper.ckpt", "hyper_parameters are no dictionary"),
        "scalar": (folder / "scalar.pt", "not a CLIP4STR checkpoint"),
        "nested": (folder / "nested.safetensors", "configuration is not understood"),
        "number": (folder / "number.safetensors", "configuration is not understood"),
        "headless": (folder / "headless.safetensors", "multiple of its number of heads"),
    }


def _headless() -> str:
    values = SMALL.to_dict()
    values["vision"]["heads"] = 0
    return json.dumps(values)


KINDS = ["lacking", "list", "extra", "hostile", "empty", "truncated", "text", "missing", "passwords", "hyper"]


@pytest.mark.parametrize("kind", [*KINDS, "scalar", "nested", "number", "headless"])
def test_bad_file(kind: str, model: CLIP4STR, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path, message = bad_files(tmp_path, model)[kind]
    with pytest.raises(CheckpointError, match=message) as caught:
        build(load(str(path)))
    assert "\n" not in str(caught.value)
    assert not Path("pwned").exists()


def test_foreign_safetensors(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    with pytest.raises(CheckpointError, match="no 'clip4str' configuration"):
        load(str(tmp_path / "foreign.safetensors"))


def test_directory_must_hold_one_model(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="found none"):
        checkpoint.resolve(str(tmp_path))


@pytest.fixture(scope="module")
def clip() -> open_clip.CLIP:
    torch.manual_seed(1)
    return open_clip.CLIP(
        embed_dim=64,
        vision_cfg={"layers": 2, "width": 64, "head_width": 64, "patch_size": 16, "image_size": 64},
        text_cfg={"context_length": 77, "vocab_size": 512, "width": 64, "heads": 1, "layers": 2},
        quick_gelu=True,
    )


def test_clip_state_dict_starts_the_encoders(clip: open_clip.CLIP, tmp_path: Path) -> None:
    path = tmp_path / "open_clip_pytorch_model.bin"
    torch.save(clip.state_dict(), path)
    started = CLIP4STR(SMALL)
    load_clip_weights(started, path)
    weight = started.clip_model.visual.conv1.weight
    assert torch.equal(weight, clip.visual.conv1.weight.half().float())
    assert torch.equal(started.clip_model.token_embedding.weight, clip.token_embedding.weight)


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
def test_clip_torchscript_archive_starts_the_encoders(clip: open_clip.CLIP, tmp_path: Path) -> None:
    """OpenAI's files are TorchScript archives; three integers stand among their weights."""
    path = tmp_path / "ViT-S-16.pt"
    root = torch.nn.Module()
    for key, value in {**clip.state_dict(), "input_resolution": torch.tensor(64)}.items():
        *parents, leaf = key.split(".")
        holder = root
        for parent in parents:
            if not hasattr(holder, parent):
                holder.add_module(parent, torch.nn.Module())
            holder = getattr(holder, parent)
        holder.register_buffer(leaf, value)
    torch.jit.save(torch.jit.script(root), path)
    started = CLIP4STR(SMALL)
    load_clip_weights(started, path)
    assert torch.equal(started.clip_model.positional_embedding, clip.positional_embedding)


def test_clip_of_another_size(clip: open_clip.CLIP, tmp_path: Path) -> None:
    torch.save(clip.state_dict(), tmp_path / "clip.bin")
    base = CLIP4STR(dataclasses.replace(SMALL, embed_dim=32))
    with pytest.raises(CheckpointError, match="do not fit custom"):
        load_clip_weights(base, tmp_path / "clip.bin")
