"""The runtime: any number of crops, each row's own answer, the same in every form and format."""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from clip4str import ModelInfo, ReadOptions, Recognizer
from clip4str.benchmark.workload import made_up
from clip4str.charset import CHARACTERS
from clip4str.config import VARIANTS
from clip4str.decoding import Decoded, decode
from clip4str.image import Pixels
from clip4str.model import CLIP4STR
from clip4str.runtime import Runtime
from clip4str.stages import STAGES
from clip4str.tokens import allowed_classes
from tests.model.golden import DEVICES, build

SIZE = (56, 56)
KINDS = [(device, dtype) for device in DEVICES for dtype in (torch.float32, torch.bfloat16)]


@pytest.fixture(scope="module")
def model() -> CLIP4STR:
    return build("tinyx")


@pytest.fixture(scope="module")
def crops() -> list[Pixels]:
    """More than a few processors take in one batch."""
    generator = torch.Generator().manual_seed(1)
    coarse = torch.randint(256, (150, 3, 7, 7), generator=generator, dtype=torch.uint8)
    return list(torch.nn.functional.interpolate(coarse, SIZE).numpy())


@pytest.fixture(scope="module", params=KINDS, ids=lambda kind: f"{kind[0]}-{kind[1]}")
def runtime(model: CLIP4STR, request: pytest.FixtureRequest) -> Runtime:
    return Runtime(copy.deepcopy(model), *request.param)


def decided(decoded: Decoded) -> Tensor:
    """Rows, bool [N], without a character that rounding alone could turn into another."""
    clear = torch.ones(len(decoded.steps), dtype=torch.bool)
    for branch in (decoded.visual, decoded.cross_modal):
        first, second = branch.autoregressive.topk(2).values.unbind(-1)  # [N, T]
        read = torch.arange(first.shape[1]) < decoded.steps[:, None]
        clear &= ((first - second > 1e-3) | ~read).all(1)
    return clear


@pytest.mark.parametrize("device", DEVICES, ids=str)
def test_reads_what_the_trained_form_reads(
    model: CLIP4STR, crops: list[Pixels], device: torch.device
) -> None:
    expected = decode(model, torch.from_numpy(np.stack(crops)))
    rows = decided(expected)
    assert rows.sum() > 0.9 * len(crops)
    visual, cross_modal = Runtime(copy.deepcopy(model), device, torch.float32).read(crops)
    torch.testing.assert_close(visual[rows], expected.visual.refined[rows], atol=5e-4, rtol=0)
    torch.testing.assert_close(cross_modal[rows], expected.cross_modal.refined[rows], atol=5e-4, rtol=0)


def test_batches_of_every_size_agree(runtime: Runtime, crops: list[Pixels]) -> None:
    """Neighbours, order and number change no answer, in bf16 as in fp32."""
    together = runtime.read(crops)
    generator = torch.Generator().manual_seed(2)
    for size in (1, 2, 3, 7, 16, 33, 64, len(crops)):
        rows = torch.randperm(len(crops), generator=generator)[:size]
        for some, all_of_them in zip(runtime.read([crops[row] for row in rows]), together, strict=True):
            expected = all_of_them[rows].softmax(-1)
            torch.testing.assert_close(some.softmax(-1), expected, atol=1e-4, rtol=0)
            assert torch.equal(some.argmax(-1), expected.argmax(-1))


def test_constraints_follow_their_rows(runtime: Runtime, crops: list[Pixels]) -> None:
    digits, everything = allowed_classes("digits"), allowed_classes("full")
    allowed = torch.stack([digits if row % 2 else everything for row in range(len(crops))])
    _, cross_modal = runtime.read(crops, allowed)
    assert bool((cross_modal[1::2][:, :, ~digits] == float("-inf")).all())
    assert bool(cross_modal[::2].isfinite().all())


def recognizer_of(runtime: Runtime) -> Recognizer:
    return Recognizer(runtime, ModelInfo("none", "", "tiny", "", "cpu", CHARACTERS, 25, SIZE, 0))


def test_every_stage_is_entered_and_no_other(runtime: Runtime, crops: list[Pixels]) -> None:
    entered: dict[str, int] = {}

    @contextmanager
    def count(name: str) -> Iterator[None]:
        entered[name] = entered.get(name, 0) + 1
        yield

    recognizer_of(runtime).read_prepared(crops[:1], [ReadOptions()], count)
    assert entered == dict.fromkeys(STAGES, 1) | {"refine": 2}


def test_scheduling_figures_are_the_runtimes(runtime: Runtime) -> None:
    recognizer = recognizer_of(runtime)
    assert recognizer.batches_in_flight == runtime.batches_in_flight
    assert recognizer.processors == runtime.processors
    assert recognizer.max_batch == runtime.max_batch


def test_each_crop_needs_options(runtime: Runtime, crops: list[Pixels]) -> None:
    recognizer = recognizer_of(runtime)
    with pytest.raises(ValueError, match="2 crops, but 1 options"):
        recognizer.read_prepared(crops[:2], [ReadOptions()])
    wrongs: list[Any] = [crops[0].astype(np.float32), crops[0][:1], crops[0][:, 1:]]
    for wrong in wrongs:
        with pytest.raises(ValueError, match=r"crop 1 is .*, not uint8 \(3, 56, 56\)"):
            recognizer.read_prepared([crops[0], wrong], [ReadOptions()] * 2)
    assert recognizer.read_prepared([], []) == []


def test_large_models_agree_too() -> None:
    """A width at which few crops take another way through the processors than many."""
    config = VARIANTS["base32"]
    model = CLIP4STR(config)
    model.load_state_dict(made_up(config))
    runtime = Runtime(model, torch.device("cpu"), torch.bfloat16)
    coarse = torch.randint(256, (9, 3, 8, 8), generator=torch.Generator().manual_seed(3), dtype=torch.uint8)
    many = list(torch.nn.functional.interpolate(coarse, config.vision.image_size).numpy())
    together = runtime.read(many)
    for row, crop in enumerate(many):
        for alone, expected in zip(runtime.read([crop]), together, strict=True):
            assert torch.equal(alone[0].argmax(-1), expected[row].argmax(-1))
            torch.testing.assert_close(alone[0].softmax(-1), expected[row].softmax(-1), atol=1e-3, rtol=0)


def test_a_forked_process_is_told_to_load_its_own(model: CLIP4STR, crops: list[Pixels]) -> None:
    """The threads that read stay behind in the parent."""
    runtime = Runtime(copy.deepcopy(model), torch.device("cpu"), torch.float32)
    received, sent = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", DeprecationWarning
        )  # of forking beside threads: the point of this test
        child = os.fork()
    if child == 0:
        try:
            runtime.read(crops[:2])
        except RuntimeError as error:
            os.write(sent, str(error).encode())
        os._exit(0)
    os.waitpid(child, 0)
    os.close(sent)
    assert "forked after the model was loaded" in os.read(received, 1000).decode()
    os.close(received)
