"""A model file's metadata is believed only as far as its weights agree."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from clip4str.charset import CHARACTERS
from clip4str.checkpoint import CheckpointError, load, save
from clip4str.config import VARIANTS
from clip4str.metadata import weights_sha256
from clip4str.model import CLIP4STR
from tests.model.small import SMALL, small_model


@pytest.fixture(scope="module")
def model() -> CLIP4STR:
    return small_model()


def rewrite(path: Path, model: CLIP4STR, edit: Callable[[dict[str, Any]], object]) -> None:
    """A sound file, but for what `edit` does to its configuration."""
    config = json.loads(json.dumps(SMALL.to_dict()))
    edit(config)
    save_file(model.state_dict(), path, {"clip4str": json.dumps(config)})


def set_in(part: str | None, field: str, value: object) -> Callable[[dict[str, Any]], object]:
    return lambda config: (config[part] if part else config).__setitem__(field, value)


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (set_in("vision", "layers", 10**9), "vision_layers is 1000000000, the weights have 2"),
        (set_in("text", "layers", 10**9), "text_layers is 1000000000, the weights have 2"),
        (set_in("text", "vocabulary", 10**15), "vocabulary is 1000000000000000, the weights have 49408"),
        (set_in("text", "vocabulary", 49407), "vocabulary 49407 is below the 49408 tokens of 'bpe'"),
        (
            lambda config: config["text"].update(tokenizer="character", vocabulary=96),
            "vocabulary 96 is below the 97 tokens of 'character'",
        ),
        (set_in("text", "positions", 10**9), "positions is 1000000000, the weights have 77"),
        (set_in(None, "embed_dim", 10**12), "embed_dim is 1000000000000, the weights have 64"),
        (set_in(None, "max_length", 10**9), "steps is 1000000001, the weights have 26"),
        (set_in("vision", "image_size", [128, 64]), "image_tokens is 33, the weights have 17"),
        (
            set_in("vision", "image_size", [64, 79]),  # as many patches as 64
            r"image_size \(64, 79\) is not a multiple of patch_size \(16, 16\)",
        ),
        (set_in("vision", "image_size", [10**5, 10**5]), "is more than 4194304 pixels"),
        (set_in("vision", "image_size", [64]), r"image_size is \(64,\)"),
        (set_in("vision", "image_size", 64), "image_size is 64"),
        (set_in("vision", "patch_size", [0, 16]), "a size is below 1"),
        (set_in("vision", "heads", 0), "not a multiple of its number of heads"),
        (set_in(None, "decoder_heads", 7), "not a multiple of its number of heads"),
        (set_in("text", "width", "64"), "width is '64'"),
        (set_in("text", "tokenizer", "words"), "tokenizer is 'words'"),
        (set_in("text", "context_length", 78), "context_length 78 is not between 2 and 77"),
        (set_in(None, "mean", [0.5, "0.5", 0.5]), "mean is"),
        (set_in(None, "mean", [0.5, float("nan"), 0.5]), "mean is"),
        (set_in(None, "mean", [0.5, -10.1, 0.5]), "mean is .* not from -10.0 to 10.0"),
        (set_in(None, "mean", [0.5, 1e300, 0.5]), "mean is .* not from -10.0 to 10.0"),
        (set_in(None, "std", [0.5, 0.5, 0]), "std is .* not from 0.001 to 10.0"),
        (set_in(None, "std", [0.5, 1e-30, 0.5]), "std is .* not from 0.001 to 10.0"),
        (set_in(None, "std", [10.1, 0.5, 0.5]), "std is .* not from 0.001 to 10.0"),
        (set_in(None, "variant", "x" * 10**6), "has more than 1000 characters"),
        (set_in(None, "caption_charset", None), "caption_charset is None"),
        (set_in(None, "dropout", True), "dropout is True"),
        (set_in(None, "colour", "red"), "colour"),
        (lambda config: config.pop("vision"), r"it lacks 'vision'"),
        (set_in(None, "vision", []), "configuration is not understood"),
        (set_in(None, "text", 3), "configuration is not understood"),
    ],
)
def test_a_configuration_that_cannot_be(
    edit: Callable[[dict[str, Any]], object], reason: str, model: CLIP4STR, tmp_path: Path
) -> None:
    rewrite(tmp_path / "model.safetensors", model, edit)
    begun = time.monotonic()
    with pytest.raises(CheckpointError, match=reason) as caught:
        load(str(tmp_path / "model.safetensors"))
    assert time.monotonic() - begun < 5  # nothing of the size asked for was made
    assert len(str(caught.value)) < 600
    assert "\n" not in str(caught.value)


def test_metadata_of_a_written_file(model: CLIP4STR, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save(path, model, torch.float32, source_sha256="ab" * 32)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    config = json.loads(metadata["clip4str"])
    assert config["mean"] == config["std"] == [0.5, 0.5, 0.5]
    assert config["caption_charset"] == SMALL.caption_charset
    assert metadata["clip4str_charset"] == CHARACTERS
    assert metadata["clip4str_source_sha256"] == "ab" * 32
    assert metadata["clip4str_weights_sha256"] == weights_sha256(model.state_dict())


def test_damaged_weights(model: CLIP4STR, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save(path, model)
    content = bytearray(path.read_bytes())
    content[-1000] ^= 1  # one bit
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="it is damaged"):
        load(str(path))


def test_another_charset(model: CLIP4STR, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    metadata = {"clip4str": json.dumps(SMALL.to_dict()), "clip4str_charset": "0123456789"}
    save_file(model.state_dict(), path, metadata)
    with pytest.raises(CheckpointError, match="other characters than the 94"):
        load(str(path))


def test_foreign_safetensors(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    with pytest.raises(CheckpointError, match="no 'clip4str' configuration"):
        load(str(tmp_path / "foreign.safetensors"))


@pytest.mark.parametrize("config", ["[" * 100_000, "5", "", "{}", '{"a": ' * 3])
def test_a_configuration_that_is_none(config: str, tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors", {"clip4str": config})
    with pytest.raises(CheckpointError, match="configuration is not understood"):
        load(str(tmp_path / "model.safetensors"))


def test_digest_tells_names_dtypes_shapes_and_values() -> None:
    one = {"a": torch.arange(6.0), "b": torch.tensor(1)}
    others = [
        {"c": torch.arange(6.0), "b": torch.tensor(1)},
        {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(1)},
        {"a": torch.arange(6), "b": torch.tensor(1)},
        {"a": torch.arange(6.0), "b": torch.tensor(2)},
        {"a": torch.arange(6.0).to(torch.bfloat16), "b": torch.tensor(1)},
    ]
    assert weights_sha256(one) == weights_sha256(dict(reversed(one.items())))
    assert len({weights_sha256(state) for state in [one, *others]}) == 6


def test_every_variant_fits_its_own_metadata(model: CLIP4STR, tmp_path: Path) -> None:
    """What the table of variants says passes the checks, the convolutional stem's variant included."""
    path = tmp_path / "tiny.safetensors"
    save(path, small_model(VARIANTS["tiny"]))
    assert load(str(path)).config == VARIANTS["tiny"]
    save(path, model)
    assert load(str(path)).config == SMALL
    assert load_file(path).keys() == model.state_dict().keys()
