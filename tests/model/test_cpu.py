"""Lanes on a CPU: batches side by side, each on its own processor, whoever brings them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from clip4str import cpu
from clip4str.decoding import decode
from clip4str.image import Pixels
from clip4str.inference import optimize
from clip4str.model import CLIP4STR
from clip4str.runtime import Runtime
from clip4str.stages import unobserved
from clip4str.tokens import allowed_classes
from tests.model.golden import build

PROCESSORS = 2
CPU = torch.device("cpu")


@pytest.fixture(scope="module", autouse=True)
def processors() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(PROCESSORS)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model() -> CLIP4STR:
    return optimize(build("tinyx"), CPU, torch.float32)


@pytest.fixture(scope="module")
def runtime() -> Runtime:
    return Runtime(build("tinyx"), CPU, torch.float32)


@pytest.fixture(scope="module")
def crops() -> list[Pixels]:
    coarse = np.random.default_rng(4).integers(256, size=(70, 3, 7, 7), dtype=np.uint8)
    return list(coarse.repeat(8, axis=2).repeat(8, axis=3))


class Encodings:
    """A stage that notes on which thread, and with how many of PyTorch's, each batch was encoded."""

    def __init__(self) -> None:
        self.threads: list[int] = []
        self.counts: list[int] = []

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        if name == "encode":
            self.threads.append(threading.get_ident())
            self.counts.append(torch.get_num_threads())
        yield


def test_a_lane_for_each_processor(runtime: Runtime) -> None:
    assert runtime.batches_in_flight == runtime.processors == PROCESSORS
    assert runtime.max_batch == 32


def test_a_large_model_takes_all_processors_for_a_batch(model: CLIP4STR) -> None:
    vision = replace(model.config.vision, width=512)
    narrow = model.config
    try:
        model.config = replace(narrow, vision=vision)
        (team,) = cpu.ways(model)
    finally:
        model.config = narrow
    assert isinstance(team, cpu.Team)
    assert team.max_batch == 32 * PROCESSORS


def test_batches_of_two_callers_are_read_at_the_same_time(runtime: Runtime, crops: list[Pixels]) -> None:
    """Each waits in the middle of its batch until the other is there as well."""
    both = threading.Barrier(2, timeout=30)

    @contextmanager
    def meet(name: str) -> Iterator[None]:
        if name == "encode":
            both.wait()
        yield

    with ThreadPoolExecutor(2) as callers:
        list(callers.map(lambda crop: runtime.read([crop], None, meet, spread=False), crops[:2]))


@pytest.mark.parametrize("callers_threads", [1, PROCESSORS + 1])
def test_a_lane_computes_on_one_processor_whoever_calls(
    runtime: Runtime, crops: list[Pixels], callers_threads: int
) -> None:
    seen = Encodings()

    def call() -> int:
        torch.set_num_threads(callers_threads)
        try:
            runtime.read(crops[:8], None, seen)
            return torch.get_num_threads()
        finally:
            torch.set_num_threads(PROCESSORS)  # the number for threads yet to come is the whole process's

    with ThreadPoolExecutor(1) as caller:
        assert caller.submit(call).result() == callers_threads
    assert seen.counts == [1, 1]


def test_lanes_leave_the_number_of_threads_alone() -> None:
    Runtime(build("tinyx"), CPU, torch.float32)
    assert torch.get_num_threads() == PROCESSORS
    with ThreadPoolExecutor(1) as new:
        assert new.submit(torch.get_num_threads).result() == PROCESSORS


def test_a_team_shares_few_crops_operation_by_operation(model: CLIP4STR, crops: list[Pixels]) -> None:
    team, few, many = cpu.Team(model, PROCESSORS), Encodings(), Encodings()
    expected = cpu.Lane(model).read(crops[:5], None, unobserved)
    alone = team.read(crops[:1], None, few)
    together = team.read(crops[:5], None, many)
    assert few.counts == [PROCESSORS]
    assert many.counts == [1, 1]
    assert len(set(many.threads)) == PROCESSORS
    for one, all_of_them, branch in zip(alone, together, expected, strict=True):
        torch.testing.assert_close(one, branch[:1], atol=1e-4, rtol=0)
        torch.testing.assert_close(all_of_them, branch, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("count", "spread", "batches"),
    [(1, True, 1), (7, True, 1), (8, True, 2), (9, True, 2), (9, False, 1), (33, False, 2), (70, True, 3)],
)
def test_crops_are_spread_when_asked_and_where_they_must(
    runtime: Runtime, crops: list[Pixels], count: int, spread: bool, batches: int
) -> None:
    seen = Encodings()
    visual, cross_modal = runtime.read(crops[:count], None, seen, spread=spread)
    assert len(visual) == len(cross_modal) == count
    assert len(seen.threads) == batches


@pytest.mark.parametrize("count", [1, 7, 8, 9, 17, 32, 33, 1000, 1025])
def test_rounding_adds_a_quarter_at_most(count: int) -> None:
    assert count <= cpu.rounded(count) <= 1.25 * count
    assert cpu.rounded(cpu.rounded(count)) == cpu.rounded(count)


def test_batches_of_all_sizes_have_few_shapes(
    model: CLIP4STR, crops: list[Pixels], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each shape costs memory for good; what is added to a batch is not in its answer, and changes nothing there."""
    shapes = set()

    def noted(model: CLIP4STR, pixels: torch.Tensor, *rest: Any, **more: Any) -> object:
        shapes.add(len(pixels))
        return decode(model, pixels, *rest, **more)

    digits = allowed_classes("digits").expand(32, -1)
    lane = cpu.Lane(model)
    expected = lane.read(crops[:32], digits, unobserved)
    monkeypatch.setattr("clip4str.cpu.decode", noted)
    for count in range(1, 33):
        for part, whole in zip(lane.read(crops[:count], digits[:count], unobserved), expected, strict=True):
            torch.testing.assert_close(part.softmax(-1), whole[:count].softmax(-1), atol=1e-4, rtol=0)
    assert shapes == {1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28, 32}


def test_crops_are_not_spread_to_processors_that_are_busy(runtime: Runtime, crops: list[Pixels]) -> None:
    begun, done = threading.Event(), threading.Event()

    @contextmanager
    def hold(name: str) -> Iterator[None]:
        if name == "encode":
            begun.set()
            assert done.wait(30)
        yield

    seen = Encodings()
    with ThreadPoolExecutor(1) as caller:
        held = caller.submit(runtime.read, crops[:1], None, hold)
        try:
            assert begun.wait(30)
            runtime.read(crops[:9], None, seen)
        finally:
            done.set()
        held.result()
    assert len(seen.threads) == 1


def test_a_batch_that_fails_leaves_its_lane_in_order(runtime: Runtime, crops: list[Pixels]) -> None:
    @contextmanager
    def fail(name: str) -> Iterator[None]:
        if name == "caption":
            raise ArithmeticError
        yield

    for _ in range(PROCESSORS + 1):
        with pytest.raises(ArithmeticError):
            runtime.read(crops[:9], None, fail)
    assert len(runtime.read(crops[:9])[0]) == 9


def test_warming_up_reads_on_every_lane(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many crops as will come, but never more than a batch holds."""
    runtime = Runtime(build("tinyx"), CPU, torch.float32)
    read: list[tuple[int, int]] = []

    def noted(model: CLIP4STR, pixels: torch.Tensor, *rest: Any, **more: Any) -> object:
        read.append((threading.get_ident(), len(pixels)))
        return decode(model, pixels, *rest, **more)

    monkeypatch.setattr("clip4str.cpu.decode", noted)
    runtime.warm_up(3)
    runtime.warm_up(1000)
    assert len({lane for lane, _ in read}) == PROCESSORS
    assert sorted(size for _, size in read) == [1, 1, 1, 1, 3, 3, 32, 32]
