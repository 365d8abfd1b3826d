"""The training loop: synthetic words in, a model file out; stops and goes on from its saved state."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader

from clip4str import checkpoint
from clip4str.charset import encode
from clip4str.config import VARIANTS
from clip4str.datasets import open_set
from clip4str.evaluation import evaluate
from clip4str.hardware import resolve_device
from clip4str.model import CLIP4STR, init_decoder
from clip4str.recognizer import Recognizer
from clip4str.synth.stream import Curriculum, Stage, SyntheticBatch, WordStream
from clip4str.training.auxiliary import ColumnClassifier
from clip4str.training.objective import ObjectiveOptions, permutations, permuted_losses
from clip4str.training.recipe import Recipe, read_recipe

log = logging.getLogger(__name__)

_FUSED = (SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH)


class Trainer:
    """One run of a recipe. Its state file lets a stopped run go on."""

    def __init__(self, recipe: Recipe) -> None:
        torch.manual_seed(recipe.seed)
        self.recipe = recipe
        self.device = resolve_device(None)
        self.model = _initial_model(recipe).to(self.device).train()
        self.columns = ColumnClassifier(self.model.config).to(self.device)
        self.optimizer = torch.optim.AdamW(
            _groups(recipe, self.model, self.columns), betas=(0.9, 0.98), eps=1e-6
        )
        self.samples = 0
        recipe.output.mkdir(parents=True, exist_ok=True)
        if self._state_file.exists():
            self._restore()

    @property
    def _state_file(self) -> Path:
        return self.recipe.output / "run.state"

    @property
    def model_file(self) -> Path:
        """What the run makes."""
        return self.recipe.output / "model.safetensors"

    def run(self) -> None:
        """Train to the recipe's end; write `model_file` there and at each validation."""
        recipe = self.recipe
        batches = self._batches()
        while self.samples < recipe.samples:
            until = min(recipe.samples, (self.samples // recipe.save_every + 1) * recipe.save_every)
            self._record(self._train_until(until, batches))
            self._save()
            validation_due = _crossed(self.samples - recipe.save_every, self.samples, recipe.validate_every)
            if validation_due or self.samples >= recipe.samples:
                checkpoint.save(self.model_file, self.model)
                self._record({"accuracy_36": self.validate()})

    def _train_until(self, samples: int, batches: Iterator[SyntheticBatch]) -> dict[str, float]:
        """Train; returns the speed and the mean of every loss."""
        history: list[dict[str, float]] = []
        before, started = self.samples, time.perf_counter()
        while self.samples < samples:
            history.append(self.step(next(batches)))
        speed = (self.samples - before) / (time.perf_counter() - started)
        means = {name: [step[name] for step in history if name in step] for name in history[-1]}
        return {"crops_per_second": round(speed, 1)} | {
            name: round(sum(values) / len(values), 4) for name, values in means.items()
        }

    def step(self, batch: SyntheticBatch) -> dict[str, float]:
        """One optimiser step; returns its losses."""
        recipe = self.recipe
        for group in self.optimizer.param_groups:
            group["lr"] = recipe.learning_rate * self.learning_rate_factor()
        targets = encode(batch.labels).to(self.device)
        with self._precision():
            features = self.model.encode_image(self.model.normalize(batch.images))
            losses = {"columns": self.columns.loss(features, targets)}
            total = losses["columns"]
            if self.samples >= recipe.encoder_only:
                rng = np.random.default_rng((recipe.seed, self.samples))
                orders = permutations(targets.shape[1] - 2, recipe.permutations, rng)
                branches = permuted_losses(self.model, features, targets, orders, ObjectiveOptions())
                losses |= {"visual": branches.visual, "cross_modal": branches.cross_modal}
                total = branches.total + recipe.column_loss_weight * losses["columns"]
        total.backward()
        losses["gradient_norm"] = nn.utils.clip_grad_norm_(self._parameters(), recipe.gradient_clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.samples += len(batch.labels)
        return {name: float(value.detach()) for name, value in losses.items()}

    def validate(self) -> dict[str, dict[str, float]]:
        """accuracy_36 of the saved model on each validation set, in percent, by branch."""
        recognizer = Recognizer.load(str(self.model_file), device=str(self.device))
        results = {}
        for path in self.recipe.validation:
            words = open_set(path)
            accuracy = evaluate(recognizer, words, limit=self.recipe.validation_crops).accuracy_36
            results[words.name] = {"final": round(accuracy.final, 1), "visual": round(accuracy.visual, 1)}
        return results

    def _batches(self) -> Iterator[SyntheticBatch]:
        recipe = self.recipe
        full = max(1, recipe.full_difficulty_at)
        reached = min(1.0, self.samples / full)
        length = round(recipe.start_length + reached * (self.model.config.max_length - recipe.start_length))
        difficulty = recipe.start_difficulty + reached * (1 - recipe.start_difficulty)
        stages = [Stage(0, length, difficulty)]
        if reached < 1:
            stages.append(Stage(full - self.samples, self.model.config.max_length, 1.0))
        stream = WordStream(
            recipe.fonts,
            seed=recipe.seed + self.samples,  # a continued run sees new words
            batch_size=recipe.batch_size,
            curriculum=Curriculum(tuple(stages)),
        )
        loader = DataLoader(stream, batch_size=None, num_workers=1, prefetch_factor=16)
        return iter(loader)

    def learning_rate_factor(self) -> float:
        """Of the peak, now: linear warm-up, constant, linear decay to 0.01."""
        recipe = self.recipe
        warm = (self.samples + recipe.batch_size) / max(1, recipe.warmup)
        left = (recipe.samples - self.samples) / max(1, recipe.decay)
        return max(0.01, min(1.0, warm, left))

    @contextmanager
    def _precision(self) -> Iterator[None]:
        """Mixed precision if wanted; on a CPU, plain attention: words are short, its fused kernel is slower."""
        backends = [SDPBackend.MATH] if self.device.type == "cpu" else list(_FUSED)
        with (
            torch.autocast(self.device.type, torch.bfloat16, enabled=self.recipe.bf16),
            sdpa_kernel(backends),
        ):
            yield

    def _parameters(self) -> list[Tensor]:
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    def _record(self, values: Mapping[str, object]) -> None:
        line = json.dumps({"samples": self.samples, **values})
        log.info(line)
        with (self.recipe.output / "log.jsonl").open("a") as file:
            file.write(line + "\n")

    def _save(self) -> None:
        state = {
            "model": self.model.state_dict(),
            "columns": self.columns.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "samples": self.samples,
        }
        partial = self._state_file.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(self._state_file)

    def _restore(self) -> None:
        state = torch.load(self._state_file, map_location=self.device, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.columns.load_state_dict(state["columns"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.samples = state["samples"]


def train(recipe_file: Path) -> None:
    """Run a recipe file. Raises RecipeError, CheckpointError, FontError or DatasetError for what is wrong with it."""
    Trainer(read_recipe(recipe_file)).run()


def _initial_model(recipe: Recipe) -> CLIP4STR:
    if recipe.init is not None:
        return checkpoint.build(checkpoint.load(recipe.init))
    model = CLIP4STR(VARIANTS[recipe.variant])
    init_decoder(model.visual_decoder)
    init_decoder(model.cross_decoder)
    return model


def _groups(recipe: Recipe, *modules: nn.Module) -> list[dict[str, object]]:
    """Weight decay for matrices and kernels only."""
    parameters = [parameter for module in modules for parameter in module.parameters()]
    return [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": recipe.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]


def _crossed(before: int, after: int, interval: int) -> bool:
    return before // interval != after // interval
