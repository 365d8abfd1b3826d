"""Freezing: which parameters train, as in the published implementation."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from clip4str.config import VARIANTS, ModelConfig
from clip4str.model import CLIP4STR
from clip4str.training.freezing import freeze
from tests.model.golden import build, fixtures, in_folder, read_fixture


def on_meta(config: ModelConfig) -> CLIP4STR:
    """A model of this size without memory for its weights."""
    with torch.device("meta"):
        return CLIP4STR(config)


def frozen(model: CLIP4STR) -> set[str]:
    return {name for name, parameter in model.named_parameters() if not parameter.requires_grad}


@pytest.mark.parametrize("path", fixtures("tiny_train.npz"), ids=in_folder)
def test_frozen_parameters_are_the_published_ones(path: Path) -> None:
    _, meta = read_fixture(path)
    model = build("tiny")
    freeze(model, -1, meta["train"]["text_freeze_nlayer"])
    trainable = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    assert trainable == meta["requires_grad"]


# millions of parameters, trainable and frozen, as the published training prints them
@pytest.mark.parametrize(
    ("variant", "trainable", "rest"),
    [("base16", "114.0", "44.3"), ("large14", "366", "80.5"), ("huge14", "894", "126")],
)
def test_default_of_a_variant_trains_as_many_parameters_as_published(
    variant: str, trainable: str, rest: str
) -> None:
    config = VARIANTS[variant]
    model = on_meta(config)
    freeze(model, config.freeze_image_layers, config.freeze_text_layers)
    counts = {True: 0, False: 0}
    for parameter in model.parameters():
        counts[parameter.requires_grad] += parameter.numel()

    def in_millions(count: int, like: str) -> str:
        return f"{count / 1e6:.{len(like.partition('.')[2])}f}"

    assert (in_millions(counts[True], trainable), in_millions(counts[False], rest)) == (trainable, rest)


@pytest.fixture(scope="module")
def base32() -> CLIP4STR:
    return on_meta(VARIANTS["base32"])


def test_image_layers_freeze_the_embeddings_and_the_blocks_below(base32: CLIP4STR) -> None:
    freeze(base32, 2, -1)
    visual = "clip_model.visual."
    blocks = [f"{visual}transformer.resblocks.{block}." for block in (0, 1)]
    expected = {n for n, _ in base32.named_parameters() if n.startswith(tuple(blocks))}
    assert len(expected) == 24
    assert frozen(base32) == expected | {visual + "class_embedding", visual + "positional_embedding"}


def test_no_layer_freezes_the_embeddings_alone(base32: CLIP4STR) -> None:
    freeze(base32, -1, 0)
    names = ("token_embedding.weight", "positional_embedding", "logit_scale")
    assert frozen(base32) == {f"clip_model.{name}" for name in names}


def test_twelve_layers_are_the_whole_tower_of_any_depth() -> None:
    model = on_meta(VARIANTS["huge14"])
    freeze(model, 12, 12)
    assert frozen(model) == {n for n, _ in model.named_parameters() if n.startswith("clip_model.")}
    freeze(model, 12, 11)
    assert "clip_model.ln_final.weight" not in frozen(model)
    assert "clip_model.visual.proj" in frozen(model)


def test_minus_one_trains_everything_again(base32: CLIP4STR) -> None:
    freeze(base32, 12, 12)
    freeze(base32, -1, -1)
    assert frozen(base32) == set()


@pytest.mark.parametrize(("image_layers", "text_layers", "name"), [(-2, 0, "image"), (0, -2, "text")])
def test_fewer_layers_than_minus_one_are_refused(
    base32: CLIP4STR, image_layers: int, text_layers: int, name: str
) -> None:
    with pytest.raises(ValueError, match=f"{name}_layers is -2: expected -1"):
        freeze(base32, image_layers, text_layers)
