"""A training recipe: everything that decides a run, as one typed object read from a YAML file."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, PositiveInt, ValidationError


class RecipeError(ValueError):
    """A recipe file is missing, unreadable or has a wrong field; one line for the user."""


class Recipe(BaseModel):
    """One training run on synthetic words. All amounts of progress are counted in crops shown to the model."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    output: Path  # folder for the state, the log and the model file
    variant: Literal["tiny"] = "tiny"
    init: str | None = None  # a model to start from, "default" or a path; None: random
    fonts: Path | None = None  # folder of fonts, see `python -m clip4str.synth.fonts`
    seed: int = 1
    batch_size: PositiveInt = 64
    samples: PositiveInt = 1_000_000
    learning_rate: float = 1e-3
    weight_decay: float = 0.02
    warmup: int = 20_000  # of the learning rate, linear
    decay: int = 200_000  # at the end, the rate falls to 1 % linearly; between, it is constant
    gradient_clip: float = 5.0
    encoder_only: int = 100_000  # first, the column classifier alone teaches the image encoder
    column_loss_weight: float = 0.2  # of the column classifier, once the decoders learn too
    permutations: int = 6
    start_difficulty: float = 0.2  # of the synthesis
    start_length: int = 8  # longest label
    full_difficulty_at: int = 150_000
    validation: tuple[Path, ...] = ()  # sets as of `clip4str eval`
    validation_crops: PositiveInt = 300  # of each set
    validate_every: PositiveInt = 50_000
    save_every: PositiveInt = 10_000
    bf16: bool = True  # mixed precision: bfloat16 activations


def read_recipe(path: Path) -> Recipe:
    """Read a YAML recipe. Raises RecipeError naming the file and the field."""
    try:
        return Recipe.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read ({error.strerror})") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: not YAML ({' '.join(str(error).split())[:200]})") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "file"
        raise RecipeError(f"{path}: {where}: {first['msg']}") from None
