"""The permuted objective: its orders and masks, and a training step equal to the published implementation's.

The generator of random orders differs from the published one, so of random orders only the structure is
equal; the step runs on the fixture's own orders.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from clip4str.charset import ALPHANUMERIC_LOWER, PAD, adapt, decode_caption
from clip4str.model import CLIP4STR
from clip4str.tokens import encode
from clip4str.training.freezing import freeze
from clip4str.training.objective import (
    Losses,
    ObjectiveOptions,
    permutations,
    permute,
    permuted_losses,
    query_mask,
    target_count,
)
from tests.model.golden import (
    LOGITS,
    assert_close,
    build,
    fixtures,
    golden_weights,
    in_folder,
    read_fixture,
)

# Half of all orders of four characters, as indices into the sorted list of all: no one is another's reversal.
POOL_OF_FOUR = (0, 3, 4, 6, 9, 10, 12, 16, 17, 18, 19, 21)
RELATIVE = 1e-4  # of losses and gradients
OPTIONS = {
    "default": ObjectiveOptions(),
    "no_image_detach": ObjectiveOptions(detach_image=False),
    "cross_pred_context": ObjectiveOptions(cross_context_is_truth=False),
    "cross_cloze": ObjectiveOptions(cross_cloze=True),
    "cross_loss_w_0.5": ObjectiveOptions(cross_loss_weight=0.5),
}
each_fixture = pytest.mark.parametrize("path", fixtures("tiny_train.npz"), ids=in_folder)
each_step = pytest.mark.parametrize("step", OPTIONS)

Orders = list[list[int]]


def draw(length: int, count: int = 6, seed: int = 0) -> Orders:
    orders: Orders = permutations(length, count, np.random.default_rng(seed)).tolist()
    return orders


def assert_structure(orders: Orders, length: int) -> None:
    """What all orders of one batch have in common, however they were drawn."""
    everything = list(range(length + 2))
    assert orders[0] == everything
    assert all(sorted(order) == everything for order in orders)
    assert orders[1:2] == ([[0, length + 1, *range(length, 0, -1)]] if length > 1 else [])
    for forward, backward in zip(orders[2::2], orders[3::2], strict=True):
        assert (forward[0], forward[-1]) == (backward[0], backward[-1]) == (0, length + 1)
        assert backward[1:-1] == forward[-2:0:-1]


@each_fixture
def test_orders_have_the_published_structure(path: Path) -> None:
    _, meta = read_fixture(path)
    for name, published in meta["gen_tgt_perms"]["perms"].items():
        length = int(name)
        for seed, expected in enumerate(published):
            drawn = draw(length, seed=seed)
            assert len(drawn) == len(expected)
            assert_structure(expected, length)
            assert_structure(drawn, length)
            if length <= 3:
                assert sorted(drawn) == sorted(expected)


@each_fixture
@pytest.mark.parametrize("count", [2, 6, 12, 24])
def test_number_of_orders_is_the_published_one(path: Path, count: int) -> None:
    _, meta = read_fixture(path)
    for name, expected in meta["gen_tgt_perms_options"][f"forward=True,mirrored=True,num={count}"].items():
        drawn = draw(int(name), count)
        assert len(drawn) == len(expected)
        assert_structure(drawn, int(name))
        if int(name) <= 4:  # drawn without replacement
            assert len({tuple(order) for order in drawn}) == len(drawn)


@pytest.mark.parametrize("count", [2, 4, 6])
def test_targets_counted_are_those_the_losses_are_means_over(count: int) -> None:
    targets = encode(["a", "word", "of[E]many"])
    orders = permutations(targets.shape[1] - 2, count, np.random.default_rng(1))
    assert target_count(targets, len(orders)) == int((permute(targets, orders).labels != PAD).sum())


@each_fixture
def test_orders_of_four_characters_come_from_half_of_all(path: Path) -> None:
    _, meta = read_fixture(path)
    everything = list(itertools.permutations(range(1, 5)))
    pool = {everything[index] for index in POOL_OF_FOUR}
    for published in meta["gen_tgt_perms"]["perms"]["4"]:
        assert {tuple(order[1:-1]) for order in published[::2]} <= pool
    assert {tuple(order[1:-1]) for seed in range(60) for order in draw(4, seed=seed)[::2]} == pool


def test_generator_decides_the_random_orders() -> None:
    assert draw(25, seed=1) == draw(25, seed=1)
    assert draw(25, seed=1)[2:] != draw(25, seed=2)[2:]


@each_fixture
def test_masks_are_the_published_ones(path: Path) -> None:
    _, meta = read_fixture(path)
    for order, masks in meta["masks"]["masks"].items():
        sees = query_mask(torch.tensor([[int(position) for position in order.split(",")]]))
        assert sees[0].int().tolist() == masks["query"]


def cross_entropy_of_cross_modal(losses: Losses) -> float:
    assert losses.cross_modal is not None
    return losses.cross_modal.item()


@dataclass(frozen=True)
class Step:
    """What one training step left: its losses, and the gradient of every parameter by name."""

    losses: Losses
    gradients: dict[str, Tensor | None]


def losses_of(model: CLIP4STR, path: Path, orders: list[int], options: ObjectiveOptions) -> Losses:
    """The fixture's batch through the objective, with these of its orders."""
    arrays, meta = read_fixture(path)
    targets = encode(meta["train"]["labels"])
    assert np.array_equal(targets, arrays["tgt"])
    images = golden_weights.images("tiny", golden_weights.IMAGE_SEEDS["tiny"][: len(targets)])
    features = model.encode_image(torch.from_numpy(images))
    return permuted_losses(
        model, features, targets, torch.from_numpy(arrays["perms"][orders]).long(), options
    )


@cache
def train_step(path: Path, name: str) -> Step:
    """One of the fixture's steps: forward through the objective and back."""
    arrays, meta = read_fixture(path)
    model = build("tiny")
    freeze(model, -1, meta["train"]["text_freeze_nlayer"])
    losses = losses_of(model, path, list(range(len(arrays["perms"]))), OPTIONS[name])
    losses.total.backward()
    return Step(losses, {key: parameter.grad for key, parameter in model.named_parameters()})


def golden_losses(path: Path, name: str, orders: list[int]) -> tuple[float, float]:
    """Visual and cross-modal loss over these orders: each counts by its targets, EOS in the first two only."""
    _, meta = read_fixture(path)
    train, step = meta["train"], meta[f"step_{name}"]
    targets = [train["n_with_eos"] if order < 2 else train["n_without_eos"] for order in orders]
    visual, cross = (
        np.average(np.array(step[key])[orders], weights=targets) for key in ("visual_ce", "cross_ce")
    )
    return float(visual), float(cross)


@each_fixture
@each_step
def test_losses_are_the_published_ones(path: Path, step: str) -> None:
    arrays, meta = read_fixture(path)
    visual, cross = golden_losses(path, step, list(range(len(arrays["perms"]))))
    losses = train_step(path, step).losses
    assert losses.visual.item() == pytest.approx(visual, rel=RELATIVE)
    assert cross_entropy_of_cross_modal(losses) == pytest.approx(cross, rel=RELATIVE)
    assert losses.total.item() == pytest.approx(meta[f"step_{step}"]["loss"], rel=RELATIVE)


@each_fixture
@pytest.mark.parametrize("orders", [[0], [1], [0, 1, 2], [0, 1, 3], [0, 1, 4], [0, 1, 5]], ids=str)
def test_each_order_has_its_published_loss(path: Path, orders: list[int]) -> None:
    with torch.no_grad():
        losses = losses_of(build("tiny"), path, orders, ObjectiveOptions())
    visual, cross = golden_losses(path, "default", orders)
    assert losses.visual.item() == pytest.approx(visual, rel=RELATIVE)
    assert cross_entropy_of_cross_modal(losses) == pytest.approx(cross, rel=RELATIVE)


@each_fixture
def test_logits_of_each_order_are_the_published_ones(path: Path) -> None:
    arrays, _ = read_fixture(path)
    losses = train_step(path, "default").losses
    assert losses.cross_modal_logits is not None
    for order in range(len(arrays["perms"])):
        visual = losses.visual_logits[:, order].detach()
        cross = losses.cross_modal_logits[:, order].detach()
        assert_close(visual, arrays[f"visual_logits_{order}"], LOGITS, f"visual logits, order {order}")
        assert_close(cross, arrays[f"cross_logits_{order}"], LOGITS, f"cross-modal logits, order {order}")


@each_fixture
@each_step
def test_visual_branch_reads_the_published_captions(path: Path, step: str) -> None:
    _, meta = read_fixture(path)
    read = train_step(path, step).losses.visual_logits.argmax(-1).transpose(0, 1).tolist()  # [K, N, n + 1]
    captions = [[adapt(decode_caption(row), ALPHANUMERIC_LOWER) for row in order] for order in read]
    assert captions == meta[f"step_{step}"]["captions"]


@each_fixture
@each_step
def test_gradient_norms_are_the_published_ones(path: Path, step: str) -> None:
    _, meta = read_fixture(path)
    golden = meta[f"step_{step}"]["grad_norms"]
    gradients = train_step(path, step).gradients
    assert {name for name in golden if gradients[name] is None} == {
        name for name, norm in golden.items() if norm is None
    }
    norms = {name: g.norm().item() for name in golden if (g := gradients[name]) is not None}
    expected = {name: norm for name, norm in golden.items() if norm is not None}
    assert norms == pytest.approx(expected, rel=RELATIVE, abs=1e-6)


@each_fixture
def test_gradients_are_the_published_ones(path: Path) -> None:
    arrays, _ = read_fixture(path)
    gradients = train_step(path, "default").gradients
    compared = {name: array for name, array in arrays.items() if name.startswith("grad/")}
    assert compared
    for name, array in compared.items():
        gradient = gradients[name.removeprefix("grad/")]
        assert_close(gradient, array, RELATIVE * float(np.abs(array).max()), name)


def test_words_read_by_caption_alone_show_no_image() -> None:
    """Dropped images: the cross-modal branch reads the same whatever they show, and teaches their encoder nothing."""
    torch.manual_seed(1)
    model = build("tiny").train()
    targets = encode(["one", "other"])
    orders = permutations(targets.shape[1] - 2, 2, np.random.default_rng(1))
    options = ObjectiveOptions(detach_image=False, cross_image_dropout=0.999)
    features = torch.randn(2, 17, 64, requires_grad=True)
    losses = permuted_losses(model, features, targets, orders, options)
    assert losses.cross_modal is not None
    losses.cross_modal.backward()
    assert features.grad is not None
    assert not features.grad.any()
    model.eval()
    reading = permuted_losses(model, features, targets, orders, options)
    assert reading.cross_modal is not None
    reading.cross_modal.backward()
    assert features.grad.any()
