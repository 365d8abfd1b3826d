"""A draft changes how a reading is found, never what is read."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from clip4str.attention import KeyValue
from clip4str.autoregression import Execution, autoregress, first_eos, speculate
from clip4str.charset import EOS
from clip4str.model import Decoder
from clip4str.tokens import allowed_classes
from tests.model.golden import build

ROWS, LENGTH = 9, 26


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    return build("tiny").cross_decoder


@pytest.fixture(scope="module")
@torch.inference_mode()
def memory(decoder: Decoder) -> KeyValue:
    features = torch.randn(ROWS, 5, decoder.head.in_features, generator=torch.Generator().manual_seed(0))
    return decoder.project_memory(features)


@pytest.fixture(scope="module")
@torch.inference_mode()
def expected(decoder: Decoder, memory: KeyValue) -> Tensor:
    return autoregress(decoder, memory, LENGTH, None, stop_at_eos=False)


def drafts(expected: Tensor) -> dict[str, Tensor]:
    right = expected.argmax(-1)
    random = torch.randint(95, right.shape, generator=torch.Generator().manual_seed(1))
    first, last, some = right.clone(), right.clone(), right.clone()
    first[:, 0] = random[:, 0]
    last[:, -1] = random[:, -1]
    some[::2] = random[::2]
    return {"right": right, "random": random, "first": first, "last": last, "some rows": some}


@pytest.mark.parametrize("draft", ["right", "random", "first", "last", "some rows"])
@pytest.mark.parametrize("constrained", [False, True])
@pytest.mark.parametrize(
    "tokens_at_once", [0, 100, 10_000]
)  # step by step at once, at first along, along to the end
@torch.inference_mode()
def test_any_draft_gives_the_same_reading(
    decoder: Decoder, memory: KeyValue, expected: Tensor, draft: str, constrained: bool, tokens_at_once: int
) -> None:
    allowed = None
    if constrained:
        kinds = [allowed_classes("digits"), allowed_classes("full")]
        allowed = torch.stack([kinds[row % 2] for row in range(ROWS)])
        expected = autoregress(decoder, memory, LENGTH, allowed, stop_at_eos=False)
    steps = torch.arange(ROWS) * 3 + 1  # 1, 4, ... 25
    execution = Execution(tokens_at_once=tokens_at_once)
    actual = speculate(decoder, memory, drafts(expected)[draft], steps, allowed, execution)
    for row, length in enumerate(steps.tolist()):
        torch.testing.assert_close(actual[row, :length], expected[row, :length], atol=1e-4, rtol=0)


@torch.inference_mode()
def test_a_right_draft_takes_one_pass(decoder: Decoder, memory: KeyValue, expected: Tensor) -> None:
    passes = []
    handle = decoder.register_forward_hook(lambda *_: passes.append(1))
    try:
        speculate(decoder, memory, expected.argmax(-1), torch.full((ROWS,), LENGTH), None)
    finally:
        handle.remove()
    assert len(passes) == 1


@pytest.mark.parametrize("every", [1, 4, 8, 100])
@torch.inference_mode()
def test_rare_checks_read_the_same(decoder: Decoder, memory: KeyValue, every: int) -> None:
    often = autoregress(decoder, memory, LENGTH, None, stop_at_eos=True)
    execution = Execution(check_every=every)
    seldom = autoregress(decoder, memory, LENGTH, None, stop_at_eos=True, execution=execution)
    assert seldom.shape[1] == min(-(-often.shape[1] // every) * every, LENGTH)
    torch.testing.assert_close(seldom[:, : often.shape[1]], often)


@torch.inference_mode()
def test_padding_is_not_waited_for(decoder: Decoder, memory: KeyValue, expected: Tensor) -> None:
    ends = first_eos(expected.argmax(-1))
    assert len(set(ends.tolist())) > 1
    slow = ends == ends.max()
    logits = autoregress(decoder, memory, LENGTH, None, stop_at_eos=True, padding=slow)
    assert logits.shape[1] == int(ends[~slow].max()) + 1


def test_first_eos() -> None:
    ids = torch.tensor([[EOS, 1, EOS], [1, 2, EOS], [1, 2, 3]])
    assert first_eos(ids).tolist() == [0, 2, 3]
    assert first_eos(torch.empty(2, 0, dtype=torch.int64)).tolist() == [0, 0]
