"""What is stepped, and how far: parameter groups, learning rates that grow with the batch, and schedules.

The groups, the rates and OneCycle are those of the published code.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from clip4str.training.recipe import Flat, OneCycle, Optimization

Named = tuple[str, nn.Parameter]

_CLIP = "clip_model."
_LADDERS = ("ladder", "ladder_pruning")  # adapters made of CLIP's blocks: they learn at CLIP's rate
_UNDECAYED = ("bn", "ln", "bias", "logit_scale", "pos_queries", "text_embed")
_BETAS, _EPS = (0.9, 0.98), 1e-6
_ADAPTER_BATCH = 256


@dataclass(frozen=True, slots=True)
class Stepper:
    """The optimiser of a run and its schedule, stepped together."""

    optimizer: AdamW
    schedule: LambdaLR

    def step(self) -> None:
        """Use the gradients, then move to the next step's rates."""
        self.optimizer.step()
        self.schedule.step()

    @property
    def rate(self) -> float:
        """The largest learning rate of the next step."""
        return max(float(group["lr"]) for group in self.optimizer.param_groups)

    def state_dict(self) -> dict[str, Any]:
        """All that a stopped run needs to go on."""
        return {"optimizer": self.optimizer.state_dict(), "schedule": self.schedule.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`, for the same recipe."""
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        # A run that was made longer goes on with the longer run's rate at once.
        rates = zip(self.schedule.base_lrs, self.schedule.lr_lambdas, strict=True)
        for group, (peak, factor) in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = peak * factor(self.schedule.last_epoch)


def peak_rate(options: Optimization, *, batch_size: int, accumulate: int, world: int, adapter: bool) -> float:
    """The learning rate a step of so many crops asks for; the published rules differ for adapter models."""
    if adapter:
        return options.learning_rate * accumulate * math.sqrt(world) * batch_size / _ADAPTER_BATCH
    return options.learning_rate * accumulate * world * batch_size / options.rate_batch


def parameter_groups(
    parameters: Iterable[Named], options: Optimization, rate: float, adapter: str | None
) -> list[dict[str, Any]]:
    """AdamW's four published groups of what is trained: {CLIP, the rest} x {not decayed, decayed}.

    `parameters` by name, the frozen ones are left out; `adapter`: the kind of an adapter model, or None.
    """
    groups: list[list[nn.Parameter]] = [[], [], [], []]
    for name, parameter in parameters:
        if parameter.requires_grad:
            first = 0 if _learns_slowly(name, adapter) else 2
            groups[first + _is_decayed(name, parameter)].append(parameter)
    rest = rate * options.decoder_rate_factor
    decays = (0.0, options.weight_decay, 0.0, options.weight_decay * options.decoder_decay_factor)
    return [
        {"params": params, "lr": lr, "weight_decay": decay}
        for params, lr, decay in zip(groups, (rate, rate, rest, rest), decays, strict=True)
    ]


def build_stepper(
    parameters: Iterable[Named],
    options: Optimization,
    *,
    rate: float,
    step_crops: int,
    samples: int,
    adapter: str | None = None,
) -> Stepper:
    """Optimiser and schedule of a run of `samples` crops, `step_crops` a step, with the peak `rate`."""
    optimizer = AdamW(
        parameter_groups(parameters, options, rate, adapter), betas=_BETAS, eps=_EPS, fused=True
    )
    steps = -(-samples // step_crops)
    factor = partial(rate_factor, options.schedule, steps=steps, step_crops=step_crops)
    return Stepper(optimizer, LambdaLR(optimizer, factor))


def rate_factor(schedule: OneCycle | Flat, step: int, steps: int, step_crops: int) -> float:
    """Share of the peak rate at a step, counted from 0, of a run of `steps` steps of `step_crops` crops."""
    if isinstance(schedule, OneCycle):
        return _one_cycle(schedule, step, steps)
    rising = (step * step_crops + 1) / max(1, schedule.warmup)
    falling = (steps - step) * step_crops / max(1, schedule.decay)
    return min(1.0, rising, max(schedule.end, falling))


def _one_cycle(schedule: OneCycle, step: int, steps: int) -> float:
    """As PyTorch's OneCycleLR where the warm-up takes more than a step; else there is none."""
    peak, last = max(0.0, schedule.warmup * steps - 1), steps - 1
    low, end = 1 / schedule.start_divisor, 1 / (schedule.start_divisor * schedule.end_divisor)
    if step < peak:
        return _cosine(low, 1.0, step / peak)
    return _cosine(1.0, end, min(1.0, (step - peak) / (last - peak)) if last > peak else 0.0)


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2


def _learns_slowly(name: str, adapter: str | None) -> bool:
    return name.startswith(_CLIP) or (adapter in _LADDERS and name.startswith("adapter."))


def _is_decayed(name: str, parameter: Tensor) -> bool:
    return parameter.ndim >= 2 and not any(part in name.removeprefix(_CLIP) for part in _UNDECAYED)
