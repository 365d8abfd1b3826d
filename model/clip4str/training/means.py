"""Mean losses over steps and processes, kept on the device until someone asks."""

from __future__ import annotations

import torch
from lightning_fabric import Fabric
from torch import Tensor


class Means:
    """Sums of losses since they were told last, and of how many steps had each."""

    def __init__(self, fabric: Fabric) -> None:
        self._fabric = fabric
        self._sums: dict[str, Tensor] = {}  # [sum, steps] each

    def add(self, name: str, value: Tensor, parts: int = 1) -> None:
        """Count a scalar of one of the `parts` of this process' step: its share of the step's mean."""
        counted = torch.stack([value, torch.full_like(value, 1 / parts)]) / self._fabric.world_size
        self._sums[name] = self._sums.get(name, torch.zeros_like(counted)) + counted

    def gather(self) -> bool:
        """Bring all processes' sums to the first one; returns whether all are finite. All processes call it."""
        if not self._sums:
            return True
        sums = torch.as_tensor(
            self._fabric.all_reduce(torch.stack(list(self._sums.values())), reduce_op="sum")
        )
        mine = sums if self._fabric.is_global_zero else torch.zeros_like(sums)
        self._sums = dict(zip(self._sums, mine.unbind(), strict=True))
        return bool(sums.isfinite().all())

    def take(self) -> dict[str, float]:
        """The means, on the first process, after `gather`; counting starts again."""
        means = {name: round(float(total / steps), 6) for name, (total, steps) in self._sums.items()}
        self._sums = {}
        return means

    def state_dict(self) -> dict[str, Tensor]:
        """What the first process has after `gather`."""
        return dict(self._sums)

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """The inverse: the first process gets the sums, the others nothing."""
        share = float(self._fabric.is_global_zero)
        self._sums = {name: value * share for name, value in state.items()}
