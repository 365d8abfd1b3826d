"""Adapter models: names, features and readings equal to the published implementation's, and how they start."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from clip4str import towers
from clip4str.checkpoint import infer_config
from clip4str.config import VARIANTS
from clip4str.tokens import allowed_classes
from clip4str.training.adapters import (
    AdapterConfig,
    AdapterModel,
    Ladder,
    decode,
    init_adapter_model,
    keep_largest,
    prune_block,
)
from tests.model.golden import (
    FEATURES,
    LOGITS,
    assert_close,
    branch_reading,
    fixtures,
    golden_weights,
    in_folder,
    read_fixture,
    text_of,
)

KINDS = ("identity", "linear", "attention", "ladder", "linear_ladder", "ladder_pruning")
each_fixture = pytest.mark.parametrize("path", fixtures("tiny_adapter.npz"), ids=in_folder)
each_kind = pytest.mark.parametrize("kind", KINDS)


@cache
def encoder_state() -> dict[str, Tensor]:
    return {key: torch.from_numpy(array) for key, array in golden_weights.weights("tinyx")}


def new(kind: Any, blocks: tuple[int, ...] = (0, 2), reduction: int = 4) -> AdapterModel:
    """An adapter model of the fixtures' size, without weights."""
    return AdapterModel(infer_config(encoder_state()), AdapterConfig(kind, blocks, reduction))


def trained(golden: dict[str, Any], kind: str) -> AdapterModel:
    """The fixture's model."""
    model = new(kind, tuple(golden["block_ids"]), golden["prune_reduction"])
    state = {key: value for key, value in encoder_state().items() if key.startswith("clip_model.")}
    for key, shape in golden["keys"].items():
        state[key] = torch.from_numpy(golden_weights.adapter_weight("tinyx", key, tuple(shape)))
    model.load_state_dict(state, strict=True)
    return model.eval()


def with_clip_weights(model: AdapterModel) -> AdapterModel:
    """Golden weights in the encoder, and all else as training starts."""
    prefix = "clip_model."
    state = encoder_state()
    model.clip_model.load_state_dict(
        {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    )
    init_adapter_model(model)
    return model


def images(seeds: list[int]) -> Tensor:
    return torch.from_numpy(golden_weights.images("tinyx", seeds))


@each_fixture
@each_kind
def test_names_are_the_published_ones(path: Path, kind: str) -> None:
    golden = read_fixture(path)[1][kind]
    names = {key: list(value.shape) for key, value in trained(golden, kind).state_dict().items()}
    encoder = {name for name in encoder_state() if name.startswith("clip_model.")}
    assert {name: shape for name, shape in names.items() if name not in encoder} == golden["keys"]
    assert encoder <= set(names)


@each_kind
def test_state_dict_loads_into_another_model(kind: str) -> None:
    torch.manual_seed(1)
    first, second = with_clip_weights(new(kind)), new(kind)
    second.load_state_dict(first.state_dict(), strict=True)
    assert torch.equal(first.decoder.pos_queries, second.decoder.pos_queries)
    assert torch.equal(first.decoder.head.weight, second.decoder.head.weight)


@each_fixture
@each_kind
def test_features_and_readings_are_the_published_ones(path: Path, kind: str) -> None:
    arrays, meta = read_fixture(path)
    golden = meta[kind]
    model, pixels = trained(golden, kind), images(golden["image_seeds"])
    with torch.inference_mode():
        assert_close(model.encode_image(pixels), arrays[f"{kind}_memory"], FEATURES, "memory")
    logits = decode(model, pixels)
    assert_close(logits, arrays[f"{kind}_logits"], LOGITS, "refined logits")
    readings = [branch_reading(row)[0] for row in logits]
    assert [reading.text for reading in readings] == golden["pred"]
    assert [reading.confidence for reading in readings] == pytest.approx(golden["confidence"], rel=1e-4)
    assert_close(decode(model, pixels[:1]), logits[:1], LOGITS, "logits of an image alone")


@each_fixture
def test_constrained_reading_has_allowed_characters_only(path: Path) -> None:
    golden = read_fixture(path)[1]["linear"]
    pixels = images(golden["image_seeds"])
    logits = decode(trained(golden, "linear"), pixels, allowed_classes("digits").expand(len(pixels), -1))
    texts = [text_of(row) for row in logits]
    assert any(texts)
    assert all(set(text) <= set("0123456789") for text in texts)


@each_fixture
def test_pruning_keeps_the_published_rows(path: Path) -> None:
    arrays, _ = read_fixture(path)
    matrix, numbers = torch.from_numpy(arrays["prune_W"]), torch.from_numpy(arrays["prune_b"])
    assert np.array_equal(keep_largest(matrix, 4), arrays["prune_W_rows_r4"])
    assert np.array_equal(keep_largest(matrix, 3), arrays["prune_W_rows_r3"])
    assert np.array_equal(keep_largest(numbers, 4), arrays["prune_b_r4"])


def test_pruned_block_keeps_the_largest_units_of_each_part() -> None:
    prefix = "clip_model.visual.transformer.resblocks.2."
    state = {k.removeprefix(prefix): v for k, v in encoder_state().items() if k.startswith(prefix)}
    width, reduction = 128, 4
    pruned = {name: value.numpy() for name, value in prune_block(state, reduction).items()}
    original = {name: value.numpy() for name, value in state.items()}

    def largest(rows: NDArray[Any]) -> NDArray[Any]:
        order = np.argsort(-np.abs(rows).reshape(len(rows), -1).sum(1))
        return rows[np.sort(order[: len(rows) // reduction])]

    for part in range(3):  # query, key, value
        wide, narrow = slice(part * width, (part + 1) * width), slice(part * 32, (part + 1) * 32)
        for name in ("attn.in_proj_weight", "attn.in_proj_bias"):
            assert np.array_equal(pruned[name][narrow], largest(original[name][wide]))
    for name in ("mlp.c_fc.weight", "mlp.c_fc.bias"):
        assert np.array_equal(pruned[name], largest(original[name]))
    for name in ("attn.out_proj.weight", "mlp.c_proj.weight"):
        assert np.array_equal(pruned[name].T, largest(original[name].T))
    copied = ("ln_1.weight", "ln_1.bias", "ln_2.weight", "ln_2.bias", "attn.out_proj.bias", "mlp.c_proj.bias")
    assert all(np.array_equal(pruned[name], original[name]) for name in copied)


def test_ladder_starts_as_a_copy_of_the_encoder() -> None:
    model = with_clip_weights(new("ladder", blocks=(0, 1, 2)))
    ladder = model.adapter
    assert isinstance(ladder, Ladder)
    with torch.inference_mode():
        features, inputs = towers.encode_image_with_inputs(model.clip_model, images([3]), (0, 1, 2))
        assert_close(ladder.resblocks[0](inputs[0]), inputs[1], FEATURES, "the first block's output")
        assert_close(ladder.resblocks[1](inputs[1]), inputs[2], FEATURES, "the second block's output")
        top = ladder.ln_post(ladder.resblocks[2](inputs[2])) @ ladder.proj
        assert_close(top, features, FEATURES, "image features")
    assert ladder.alpha.tolist() == [0.0, 0.0, 0.0]


def test_pruned_ladder_starts_from_its_own_blocks_of_the_encoder() -> None:
    model = with_clip_weights(new("ladder_pruning", blocks=(0, 2)))
    for rung, block in enumerate((0, 2)):
        prefix = f"clip_model.visual.transformer.resblocks.{block}."
        state = {k.removeprefix(prefix): v for k, v in encoder_state().items() if k.startswith(prefix)}
        started = model.state_dict()
        for name, value in prune_block(state, 4).items():
            assert torch.equal(started[f"adapter.resblocks.{rung}.{name}"], value)


@each_kind
def test_adapter_and_decoder_train_and_the_encoder_does_not(kind: str) -> None:
    torch.manual_seed(1)
    model = with_clip_weights(new(kind))
    memory = model.decoder.project_memory(model.encode_image(images([3])))
    content = model.decoder.project_content(torch.tensor([[95, 1, 2]]))
    model.decoder(content, memory).square().sum().backward()
    reached = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    trainable = {name for name, _ in model.named_parameters() if not name.startswith("clip_model.")}
    assert reached == trainable
    assert not any(parameter.requires_grad for parameter in model.clip_model.parameters())


def test_frozen_encoder_keeps_its_batch_statistics() -> None:
    config = VARIANTS["tiny"]  # its convolutional stem has batch normalisation
    model = AdapterModel(config, AdapterConfig("linear")).train()
    before = {name: value.clone() for name, value in model.clip_model.named_buffers()}
    assert any("running_mean" in name for name in before)
    model.encode_image(torch.randn(2, 3, *config.vision.image_size))
    assert all(torch.equal(before[name], value) for name, value in model.clip_model.named_buffers())
    assert model.decoder.training


@pytest.mark.parametrize(
    ("adapter", "message"),
    [
        (AdapterConfig("ladder", blocks=()), r"blocks is \(\): expected at least one index from 0 to 2"),
        (AdapterConfig("linear_ladder", blocks=(0, 3)), r"blocks is \(0, 3\): .* from 0 to 2"),
        (AdapterConfig("ladder_pruning", (0,), reduction=3), "reduction is 3: expected a divisor of .* 64"),
        (AdapterConfig("ladder_pruning", (0,), reduction=0), "reduction is 0: expected a divisor"),
    ],
)
def test_adapter_that_does_not_fit_the_encoder_is_refused(adapter: AdapterConfig, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AdapterModel(infer_config(encoder_state()), adapter)
