"""Parameter groups, rates and schedules equal to the published implementation's."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn

from clip4str.training.adapters import AdapterConfig, AdapterModel
from clip4str.training.freezing import freeze
from clip4str.training.optimization import build_stepper, parameter_groups, peak_rate, rate_factor
from clip4str.training.recipe import Flat, OneCycle, Optimization
from tests.model.golden import build, fixtures, in_folder, read_fixture

each_step = pytest.mark.parametrize("path", fixtures("tiny_train.npz"), ids=in_folder)
each_adapter = pytest.mark.parametrize("path", fixtures("tiny_adapter.npz"), ids=in_folder)


def names_of(groups: Iterable[dict[str, Any]], module: nn.Module) -> list[list[str]]:
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    return [sorted(names[id(parameter)] for parameter in group["params"]) for group in groups]


@each_step
def test_groups_rates_and_schedule_are_the_published_ones(path: Path) -> None:
    arrays, meta = read_fixture(path)
    golden = meta["optimizer"]
    model = build("tiny")
    freeze(model, -1, meta["train"]["text_freeze_nlayer"])
    batch, parts, devices = (golden[k] for k in ("batch_size", "accumulate_grad_batches", "num_devices"))
    rate = peak_rate(Optimization(), batch_size=batch, accumulate=parts, world=devices, adapter=False)
    step = batch * parts * devices
    steps = golden["total_steps"]
    stepper = build_stepper(
        model.named_parameters(), Optimization(), rate=rate, step_crops=step, samples=steps * step
    )
    groups = stepper.optimizer.param_groups
    assert names_of(groups, model) == [sorted(group["names"]) for group in golden["groups"]]
    for group, expected in zip(groups, golden["groups"], strict=True):
        assert group["initial_lr"] / 25 == pytest.approx(expected["initial_lr"])
        assert group["weight_decay"] == expected["weight_decay"]
        assert list(group["betas"]) == expected["betas"]
        assert group["eps"] == expected["eps"]
    rates = []
    for _ in range(steps):
        rates.append([group["lr"] for group in groups])
        stepper.step()
    np.testing.assert_allclose(rates, arrays["lr_schedule"], rtol=1e-6)


@each_adapter
@pytest.mark.parametrize("kind", ["linear", "attention", "ladder", "linear_ladder", "ladder_pruning"])
def test_adapters_groups_and_rates_are_the_published_ones(path: Path, kind: Any) -> None:
    golden = read_fixture(path)[1][kind]
    config = AdapterConfig(kind, tuple(golden["block_ids"]), golden["prune_reduction"])
    model = AdapterModel(build("tinyx").config, config)
    options = Optimization(decoder_rate_factor=1.0)
    rate = peak_rate(options, batch_size=384, accumulate=1, world=4, adapter=True)
    groups = parameter_groups(model.named_parameters(), options, rate, kind)
    for ours, expected in zip(names_of(groups, model), golden["optimizer"], strict=True):
        assert len(ours) == len(expected["names"])
    own = {name for names in names_of(groups, model) for name in names if name.startswith("adapter.")}
    assert own == {
        name for group in golden["optimizer"] for name in group["names"] if name.startswith("adapter.")
    }
    assert [group["lr"] for group in groups] == pytest.approx([g["max_lr"] for g in golden["optimizer"]])
    assert [group["weight_decay"] for group in groups] == [g["weight_decay"] for g in golden["optimizer"]]


def test_flat_schedule_rises_stays_and_falls() -> None:
    schedule = Flat(warmup=100, decay=200)
    factors = [rate_factor(schedule, step, 1000, 1) for step in (0, 49, 99, 500, 900, 1000)]
    assert factors == pytest.approx([0.01, 0.5, 1.0, 1.0, 0.5, 0.01])


def test_state_goes_on_where_it_was() -> None:
    module = nn.Linear(2, 2)
    options = Optimization(learning_rate=0.1, rate_batch=1)

    def fresh() -> Any:
        return build_stepper(module.named_parameters(), options, rate=0.1, step_crops=1, samples=50)

    first, second = fresh(), fresh()
    for _ in range(20):
        first.optimizer.zero_grad()
        module(module.weight).sum().backward()
        first.step()
    second.load_state_dict(first.state_dict())
    assert second.rate == first.rate
    for _ in range(5):
        first.step()
        second.step()
        assert second.rate == first.rate


@pytest.mark.parametrize(("warmup", "steps"), [(0.1, 10), (0.5, 2), (0.9, 1), (0.01, 3), (0.075, 400)])
def test_a_cycle_of_any_length_rises_and_falls(warmup: float, steps: int) -> None:
    """A warm-up of less than a step, or of just one, is no warm-up."""
    factors = [rate_factor(OneCycle(warmup=warmup), step, steps, 64) for step in range(steps + 1)]
    peak = factors.index(max(factors))
    assert factors[: peak + 1] == sorted(factors[: peak + 1])
    assert factors[peak:] == sorted(factors[peak:], reverse=True)
    assert max(factors) > 0.9
    assert factors[steps] == factors[steps - 1] or steps == 1


def test_a_longer_run_goes_on_with_its_own_rate() -> None:
    module = nn.Linear(2, 2)
    options = Optimization(schedule=Flat(warmup=0, decay=10))

    def run(samples: int) -> Any:
        return build_stepper(module.named_parameters(), options, rate=1.0, step_crops=1, samples=samples)

    short, long = run(10), run(100)
    for _ in range(9):
        short.step()
    long.load_state_dict(short.state_dict())
    assert short.rate == pytest.approx(0.1 * options.decoder_rate_factor)
    assert long.rate == pytest.approx(1.0 * options.decoder_rate_factor)
