"""The processes that share a run: one, or those that `torchrun` started."""

from __future__ import annotations

import os
from collections.abc import Callable

import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies.ddp import DDPStrategy
from torch import nn

from clip4str.training.recipe import Recipe, RecipeError


def launch(recipe: Recipe) -> Fabric:
    """This process' part: on its GPU if there are any, else on the CPU."""
    world, local = (int(os.environ.get(name, 1)) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))
    fabric = Fabric(
        accelerator="cuda" if torch.cuda.is_available() else "cpu",
        devices=local,
        num_nodes=world // local,
        strategy=DDPStrategy(find_unused_parameters=True) if world > 1 else "auto",
        precision="bf16-mixed" if recipe.bf16 else "32-true",
    )
    fabric.launch()
    return fabric


def synchronized(network: nn.Module, fabric: Fabric) -> nn.Module:
    """With batch statistics over all processes. Raises RecipeError where there is no way to."""
    if fabric.world_size == 1:
        return network
    if not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in network.modules()):
        return network
    if fabric.device.type == "cpu":
        raise RecipeError(
            "freeze_statistics: false needs one process or GPUs, for batch statistics over several CPUs"
        )
    synchronous: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(network)
    return synchronous


def over_processes(fabric: Fabric, value: int, reduce: Callable[[list[int]], int]) -> int:
    """One number of all processes' numbers."""
    if fabric.world_size == 1:
        return value
    gathered = fabric.all_gather(torch.tensor(value, device=fabric.device))
    return reduce(torch.as_tensor(gathered).tolist())


def on_first_process(fabric: Fabric, do: Callable[[], None]) -> None:
    """The others wait."""
    if fabric.is_global_zero:
        do()
    fabric.barrier()
