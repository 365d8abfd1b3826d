"""The training loop: batches in, a model file out; killed at any moment, it goes on as if nothing had been.

One process on a CPU or a GPU, or several under `torchrun`, by Lightning Fabric. Everything random in a step is a
function of (seed, step), and losses are means over the whole step: how many processes share it, and in how many
batches, changes no loss but by rounding (batch statistics aside, where they are trained).
"""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from lightning_fabric.strategies.ddp import DDPStrategy
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, get_swa_multi_avg_fn

from clip4str.charset import PAD, encode
from clip4str.hardware import keep_freed_memory
from clip4str.synth.stream import WordBatch
from clip4str.training.network import Model, Network
from clip4str.training.objective import permutations, target_count
from clip4str.training.optimization import build_stepper, peak_rate
from clip4str.training.recipe import Average, Flat, Recipe, RecipeError, read_recipe
from clip4str.training.run_log import RunLog
from clip4str.training.sources import Mixture, batches
from clip4str.training.validation import save, validate

_FUSED = (SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH)
_ORDERS, _DROPOUT = range(2)  # independent streams of random numbers under one seed
# What may change between two parts of a run: it decides neither the weights nor the data.
_CHANGEABLE = {"output", "validation", "validation_crops", "validate_every", "save_every", "log_every"}


class TrainingError(RuntimeError):
    """A run cannot go on; one line for the user."""


def train(recipe_file: Path) -> None:
    """Run a recipe file. Raises RecipeError, CheckpointError, FontError, DatasetError or TrainingError."""
    recipe = read_recipe(recipe_file)
    trainer = Trainer(recipe, launch(recipe))
    trainer.run()


def launch(recipe: Recipe) -> Fabric:
    """One process, or this one of those that `torchrun` started: on its GPU if there are any, else on the CPU."""
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


class Trainer:
    """One run of a recipe. What it saves in the recipe's `output` lets a stopped run go on.

    Raises RecipeError where the recipe does not fit the saved run, or the processes.
    """

    def __init__(self, recipe: Recipe, fabric: Fabric) -> None:
        self.recipe, self.fabric = recipe, fabric
        keep_freed_memory()
        torch.manual_seed(recipe.seed)
        network = self._synchronized(Network(recipe))
        rate = peak_rate(
            recipe.optimization,
            batch_size=recipe.batch_size,
            accumulate=recipe.accumulate,
            world=fabric.world_size,
            adapter=recipe.adapter is not None,
        )
        self.step_crops = recipe.step_crops(fabric.world_size)
        self.network = fabric.setup_module(network)
        self.network.train()
        self.stepper = build_stepper(
            self._bare.named_parameters(),
            recipe.optimization,
            rate=rate,
            step_crops=self.step_crops,
            samples=recipe.samples,
            adapter=recipe.adapter.kind if recipe.adapter else None,
        )
        self.average = _averaged(self.model, recipe.average)
        self.steps = 0
        self.best = -1.0  # mean accuracy of the best validation
        self._sums: dict[str, Tensor] = {}
        recipe.output.mkdir(parents=True, exist_ok=True)
        if self._state_file.exists():
            self._restore()

    @property
    def samples(self) -> int:
        """Crops shown so far."""
        return self.steps * self.step_crops

    @property
    def model(self) -> Model:
        """What is trained."""
        return self._bare.model

    @property
    def model_file(self) -> Path:
        """What the run makes: the best model by validation or, without validation, the last."""
        return self.recipe.output / "model.safetensors"

    @property
    def last_file(self) -> Path:
        """The model of the last validation, or of the end."""
        return self.recipe.output / "last" / "model.safetensors"

    @property
    def _bare(self) -> Network:
        return cast(Network, self.network.module)

    @property
    def _state_file(self) -> Path:
        return self.recipe.output / "run.state"

    def run(self) -> None:
        """Train to the recipe's end."""
        recipe = self.recipe
        mixture = Mixture(
            recipe.data,
            size=self.model.config.vision.image_size,
            seed=recipe.seed,
            batch_size=recipe.batch_size,
            start=self.steps * recipe.accumulate,
            rank=self.fabric.global_rank,
            world=self.fabric.world_size,
        )
        stream = batches(mixture, recipe.workers)
        if not self.fabric.is_global_zero:
            self._train(stream, None)
            return
        with RunLog(recipe.output, self.samples, recipe.samples) as log:
            self._train(stream, log)

    def _train(self, stream: Iterator[WordBatch], log: RunLog | None) -> None:
        """All steps that are left; `log` on the first process only."""
        recipe, started, counted = self.recipe, time.perf_counter(), self.samples
        while self.samples < recipe.samples:
            before = self.samples
            self.step([next(stream) for _ in range(recipe.accumulate)])
            if log is not None:
                log.progress(self.step_crops)
            over = self.samples >= recipe.samples

            def due(every: int, before: int = before, over: bool = over) -> bool:
                return over or before // every != self.samples // every

            if due(recipe.log_every):
                losses = self.mean_losses()
                speed = (self.samples - counted) / (time.perf_counter() - started)
                if log is not None:
                    log.record(self.samples, {"crops_per_second": round(speed, 1), **losses})
            if due(recipe.validate_every):
                self._on_first_process(lambda: self._validate(log))
            if due(recipe.save_every):
                self._on_first_process(self._save)
            if due(recipe.log_every):  # what was written and measured takes no part in the speed
                started, counted = time.perf_counter(), self.samples

    def step(self, parts: list[WordBatch]) -> None:
        """One optimiser step over this process' batches of it."""
        recipe, world = self.recipe, self.fabric.world_size
        targets = [encode(part.labels) for part in parts]
        orders = None
        shares = [0.0] * len(parts)
        if self.samples >= recipe.encoder_only:
            width = self._over_processes(max(target.shape[1] for target in targets), max)
            targets = [F.pad(target, (0, width - target.shape[1]), value=PAD) for target in targets]
            rng = np.random.default_rng((recipe.seed, _ORDERS, self.steps))
            orders = permutations(width - 2, recipe.objective.permutations, rng)
            counts = [target_count(target, len(orders)) for target in targets]
            total = self._over_processes(sum(counts), sum)
            shares = [count * world / total for count in counts]  # gradients are averaged over processes
        self._seed_dropout()
        for number, (part, target, share) in enumerate(zip(parts, targets, shares, strict=True), start=1):
            with self.fabric.no_backward_sync(self.network, enabled=number < len(parts)), _attention():
                images, target = self.fabric.to_device((part.images, target))
                losses = self.network(images, target, orders)
                self.fabric.backward(self._total(losses, share, len(parts)))
            for name, loss in losses.items():
                part_share = (1 / len(parts) if name == "columns" else share) / world
                self._sums[name] = self._sums.get(name, 0) + loss.detach() * part_share
        clip = recipe.optimization.gradient_clip
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), clip)
        self._sums["gradient_norm"] = self._sums.get("gradient_norm", 0) + norm / world
        self._sums["steps"] = self._sums.get("steps", torch.zeros((), device=norm.device)) + 1 / world
        self.stepper.step()
        self.network.zero_grad()
        self.steps += 1
        if self.average is not None and recipe.average and self.samples >= recipe.average.start:
            self.average.update_parameters(self.model)

    def _total(self, losses: dict[str, Tensor], share: float, parts: int) -> Tensor:
        """What is minimised. While the column classifier alone teaches the encoder, its loss counts whole."""
        if "reading" not in losses:
            return losses["columns"] / parts
        total = losses["reading"] * share
        if "columns" in losses:
            total = total + self.recipe.column_loss_weight * losses["columns"] / parts
        return total

    def mean_losses(self) -> dict[str, float]:
        """Means over the steps since the last call, and the learning rate."""
        names = list(self._sums)
        sums = self.fabric.all_reduce(torch.stack([self._sums[name] for name in names]), reduce_op="sum")
        values = dict(zip(names, torch.as_tensor(sums).tolist(), strict=True))
        self._sums = {}
        steps = values.pop("steps")
        means = {name: value / steps for name, value in values.items()}
        if not all(math.isfinite(value) for value in means.values()):
            raise TrainingError(
                f"a loss was not finite after {self.samples} crops: lower optimization.learning_rate "
                f"(the run's last good state is in {self.recipe.output})"
            )
        return {name: round(value, 6) for name, value in means.items()} | {"rate": self.stepper.rate}

    def _validate(self, log: RunLog | None) -> None:
        """Write the model, measure it, and keep it if it is the best."""
        recipe = self.recipe
        model = self.model
        if self.average is not None and self.average.n_averaged:
            model = cast(Model, self.average.module)
        self.last_file.parent.mkdir(exist_ok=True)
        save(model, self.last_file)
        accuracy = validate(
            model,
            self.last_file,
            recipe.validation,
            recipe.validation_crops,
            cross_modal=recipe.objective.cross_modal,
        )
        if accuracy and log is not None:
            log.record(self.samples, {"accuracy_36": accuracy})
        mean = float(np.mean([next(iter(branches.values())) for branches in accuracy.values()] or [0.0]))
        if mean >= self.best or not accuracy:
            self.best = mean
            shutil.copyfile(self.last_file, self.model_file)

    def _seed_dropout(self) -> None:
        words = np.random.SeedSequence((self.recipe.seed, _DROPOUT, self.steps, self.fabric.global_rank))
        torch.manual_seed(int(words.generate_state(1, np.uint64)[0] >> 1))

    def _over_processes(self, value: int, reduce: Callable[[list[int]], int]) -> int:
        if self.fabric.world_size == 1:
            return value
        gathered = self.fabric.all_gather(torch.tensor(value, device=self.fabric.device))
        return reduce(torch.as_tensor(gathered).tolist())

    def _on_first_process(self, do: Callable[[], None]) -> None:
        """The others wait."""
        if self.fabric.is_global_zero:
            do()
        self.fabric.barrier()

    def _synchronized(self, network: Network) -> nn.Module:
        """Batch statistics over all processes, where they are trained."""
        if self.recipe.freeze_statistics or self.fabric.world_size == 1:
            return network
        if not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in network.modules()):
            return network
        if self.fabric.device.type == "cpu":
            raise RecipeError(
                "freeze_statistics: false needs one process or GPUs, for batch statistics over several CPUs"
            )
        synchronized: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(network)
        return synchronized

    def _save(self) -> None:
        state: dict[str, Any] = {
            "recipe": self.recipe.model_dump_json(),
            "steps": self.steps,
            "world": self.fabric.world_size,
            "best": self.best,
            "network": self._bare.state_dict(),
            "stepper": self.stepper.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
        }
        partial = self._state_file.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(self._state_file)

    def _restore(self) -> None:
        state = torch.load(self._state_file, map_location=self.fabric.device, weights_only=True)
        before, now = json.loads(state["recipe"]), json.loads(self.recipe.model_dump_json())
        changeable = _CHANGEABLE | ({"samples"} if isinstance(self._schedule, Flat) else set())
        changed = sorted(key for key in now if before.get(key) != now[key] and key not in changeable)
        if state["world"] != self.fabric.world_size:
            changed.append(f"the number of processes (was {state['world']})")
        if changed:
            raise RecipeError(
                f"{self.recipe.output} holds a run that began otherwise: {', '.join(changed)}; "
                "take another output folder, or init from its model"
            )
        self._bare.load_state_dict(state["network"])
        self.stepper.load_state_dict(state["stepper"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.steps, self.best = state["steps"], state["best"]

    @property
    def _schedule(self) -> object:
        return self.recipe.optimization.schedule


def _averaged(model: Model, average: Average | None) -> AveragedModel | None:
    if average is None:
        return None
    rule = get_ema_multi_avg_fn(average.decay) if average.kind == "ema" else get_swa_multi_avg_fn()
    return AveragedModel(model, multi_avg_fn=rule)  # batch statistics are not averaged: the last ones hold


@contextmanager
def _attention() -> Iterator[None]:
    """On a CPU, plain attention: words are short, and its fused kernel is slower there."""
    with sdpa_kernel(list(_FUSED) if torch.cuda.is_available() else [SDPBackend.MATH]):
        yield
