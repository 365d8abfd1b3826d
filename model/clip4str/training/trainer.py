"""The training loop: batches in, a model file out; killed at any moment, it goes on as if nothing had been.

One process on a CPU or a GPU, or several under `torchrun`, by Lightning Fabric. Everything random in a step is a
function of (seed, step), and losses are means over the whole step: how many processes share words from files, and in
how many batches, changes no loss but by rounding. (Synthetic words, dropout and trained batch statistics are each
process' own.)
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, get_swa_multi_avg_fn

from clip4str.charset import PAD
from clip4str.containers import explained, written
from clip4str.memory import keep_freed_memory
from clip4str.runtime import keep_precise
from clip4str.synth.stream import WordBatch
from clip4str.tokens import encode
from clip4str.training.means import Means
from clip4str.training.network import Model, Network
from clip4str.training.objective import permutations, target_count
from clip4str.training.optimization import build_stepper, peak_rate
from clip4str.training.processes import launch, on_first_process, over_processes, synchronized
from clip4str.training.recipe import Average, Flat, Recipe, RecipeError, read_recipe
from clip4str.training.run_log import RunLog
from clip4str.training.sources import Mixture, batches
from clip4str.training.validation import check_sets, save, validate

log = logging.getLogger(__name__)

_FUSED = (SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH)
_ORDERS, _DROPOUT = range(2)  # independent streams of random numbers under one seed
# What may change between two parts of a run: it decides neither the weights nor the data.
_CHANGEABLE = {"output", "validation", "validation_crops", "validate_every", "save_every", "log_every"}


class TrainingError(RuntimeError):
    """A run cannot go on; one line for the user."""


def train(recipe_file: Path) -> None:
    """Run a recipe file. Raises RecipeError, CheckpointError, FontError, DatasetError or TrainingError."""
    recipe = read_recipe(recipe_file)
    try:
        Trainer(recipe, launch(recipe)).run()
    except torch.OutOfMemoryError:
        raise TrainingError("the GPU's memory is too small: lower batch_size and raise accumulate") from None


class Trainer:
    """One run of a recipe. What it saves in the recipe's `output` lets a stopped run go on.

    Raises RecipeError where the recipe does not fit the saved run or the processes, DatasetError for validation sets
    that cannot be measured, CheckpointError for files that cannot be read or written.
    """

    def __init__(self, recipe: Recipe, fabric: Fabric) -> None:
        self.recipe, self.fabric = recipe, fabric
        check_sets(recipe.validation)
        keep_freed_memory()
        # As validation will set it, from the start.
        keep_precise(torch.bfloat16 if recipe.bf16 else torch.float32)
        torch.manual_seed(recipe.seed)
        network: nn.Module = Network(recipe)
        if not recipe.freeze_statistics:
            network = synchronized(network, fabric)
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
        columns = () if self._bare.columns is None else self._bare.columns.named_parameters("columns")
        self.stepper = build_stepper(
            [*self.model.named_parameters(), *columns],
            recipe.optimization,
            rate=rate,
            step_crops=self.step_crops,
            samples=recipe.samples,
            adapter=recipe.adapter.kind if recipe.adapter else None,
        )
        self.average = _averaged(self.model, recipe.average)
        self.steps = 0
        self.best = -1.0  # mean accuracy of the best validation
        self._means = Means(fabric)
        try:
            recipe.output.mkdir(parents=True, exist_ok=True)
        except FileExistsError:
            raise RecipeError(f"output: {recipe.output} is a file, not a folder") from None
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
        if self.samples >= recipe.samples:
            log.info("%s: all %d crops were shown; raise samples to go on", recipe.output, self.samples)
            return
        if not self.fabric.is_global_zero:
            self._train(self.batches(), None)
            return
        with RunLog(recipe.output, self.samples, recipe.samples) as run_log:
            self._train(self.batches(), run_log)

    def batches(self) -> Iterator[WordBatch]:
        """This process' batches of the steps that are left, and on. Raises DatasetError or FontError."""
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
        return batches(mixture, recipe.workers)

    def _train(self, stream: Iterator[WordBatch], run_log: RunLog | None) -> None:
        """All steps that are left; `run_log` on the first process only."""
        recipe, started, counted = self.recipe, time.perf_counter(), self.samples
        while self.samples < recipe.samples:
            before = self.samples
            self.step([next(stream) for _ in range(recipe.accumulate)])
            if run_log is not None:
                run_log.progress(self.step_crops)
            logs, saves, validates = (
                self.samples >= recipe.samples or before // every != self.samples // every
                for every in (recipe.log_every, recipe.save_every, recipe.validate_every)
            )
            if logs:
                losses = self.mean_losses()
                speed = (self.samples - counted) / (time.perf_counter() - started)
                if run_log is not None:
                    run_log.record(self.samples, {"crops_per_second": round(speed, 1), **losses})
            if saves or validates:
                self._gather()
                on_first_process(self.fabric, self.save)
            if validates:
                on_first_process(self.fabric, lambda: self._validate(run_log))
                on_first_process(self.fabric, self.save)  # which model is the best
            if logs:  # what was written and measured takes no part in the speed
                started, counted = time.perf_counter(), self.samples

    def step(self, parts: list[WordBatch]) -> None:
        """One optimiser step over this process' batches of it."""
        recipe, world = self.recipe, self.fabric.world_size
        targets = [encode(part.labels) for part in parts]
        orders = None
        shares = [0.0] * len(parts)
        if self.samples >= recipe.encoder_only:
            width = over_processes(self.fabric, max(target.shape[1] for target in targets), max)
            targets = [F.pad(target, (0, width - target.shape[1]), value=PAD) for target in targets]
            rng = np.random.default_rng((recipe.seed, _ORDERS, self.steps))
            orders = permutations(width - 2, recipe.objective.permutations, rng)
            counts = [target_count(target, len(orders)) for target in targets]
            total = over_processes(self.fabric, sum(counts), sum)
            shares = [count * world / total for count in counts]  # gradients are averaged over processes
        self._seed_dropout()
        for number, (part, target, share) in enumerate(zip(parts, targets, shares, strict=True), start=1):
            with self.fabric.no_backward_sync(self.network, enabled=number < len(parts)), _attention():
                images, target = self.fabric.to_device((part.images, target))
                losses = self.network(images, target, orders)
                self.fabric.backward(self._total(losses, share, len(parts)))
            for name, loss in losses.items():
                mean = loss.detach() * (1 / len(parts) if name == "columns" else share)
                self._means.add(name, mean, len(parts))
        clip = recipe.optimization.gradient_clip
        self._means.add("gradient_norm", nn.utils.clip_grad_norm_(self.network.parameters(), clip))
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
        """Means over the steps since the last call, and the learning rate. Raises TrainingError as `_gather`."""
        self._gather()
        return self._means.take() | {"rate": self.stepper.rate}

    def _gather(self) -> None:
        """Before anything is told or saved. Raises TrainingError if a loss was not finite."""
        if not self._means.gather():
            raise TrainingError(
                f"a loss was not finite after {self.samples} crops: lower optimization.learning_rate "
                f"(the run's last good state is in {self.recipe.output})"
            )

    def _validate(self, run_log: RunLog | None) -> None:
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
        if accuracy and run_log is not None:
            run_log.record(self.samples, {"accuracy_36": accuracy})
        mean = float(np.mean([next(iter(branches.values())) for branches in accuracy.values()] or [0.0]))
        if mean >= self.best or not accuracy:
            self.best = mean
            with written(self.model_file) as unfinished:
                shutil.copyfile(self.last_file, unfinished)

    def _seed_dropout(self) -> None:
        words = np.random.SeedSequence((self.recipe.seed, _DROPOUT, self.steps, self.fabric.global_rank))
        torch.manual_seed(int(words.generate_state(1, np.uint64)[0] >> 1))

    def save(self) -> None:
        """Write what a stopped run needs to go on; on the first process. Raises CheckpointError if it cannot."""
        state: dict[str, Any] = {
            "recipe": self.recipe.model_dump_json(exclude_unset=True),
            "steps": self.steps,
            "world": self.fabric.world_size,
            "best": self.best,
            "measured": self._measured,
            "means": self._means.state_dict(),
            "network": self._bare.state_dict(),
            "stepper": self.stepper.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
        }
        with written(self._state_file) as unfinished:
            torch.save(state, unfinished)

    def _restore(self) -> None:
        with explained(
            self._state_file, "is no state to go on from; take another output folder, or remove it"
        ):
            state = torch.load(self._state_file, map_location=self.fabric.device, weights_only=True)
            before = Recipe.model_validate_json(state["recipe"]).model_dump(mode="json")
        now = self.recipe.model_dump(mode="json")
        prolongable = isinstance(self.recipe.optimization.schedule, Flat)
        changeable = _CHANGEABLE | ({"samples"} if prolongable else set())
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
        self.steps = state["steps"]
        if state["measured"] == self._measured:  # else: accuracies of other words are no measure of the best
            self.best = state["best"]
        self._means.load_state_dict(state["means"])

    @property
    def _measured(self) -> list[str]:
        """What accuracies are of."""
        sets = [str(path.resolve()) for path in self.recipe.validation]
        return [*sets, str(self.recipe.validation_crops)]


def _averaged(model: Model, average: Average | None) -> AveragedModel | None:
    if average is None:
        return None
    rule = get_ema_multi_avg_fn(average.decay) if average.kind == "ema" else get_swa_multi_avg_fn()
    return AveragedModel(model, multi_avg_fn=rule)  # batch statistics are not averaged: the last ones hold


def _attention() -> AbstractContextManager[None]:
    """On a CPU, plain attention: words are short, and its fused kernel is slower there."""
    return sdpa_kernel(list(_FUSED) if torch.cuda.is_available() else [SDPBackend.MATH])
