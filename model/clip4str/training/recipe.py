"""A training recipe: everything that decides a run, as one typed object read from a YAML file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveInt,
    ValidationError,
    model_validator,
)

from clip4str.config import VARIANTS
from clip4str.training.adapters import AdapterConfig
from clip4str.training.objective import ObjectiveOptions
from clip4str.training.sources import Source, SyntheticSource

Variant = Literal["tiny", "base32", "base16", "large14", "huge14"]
# See `freezing.freeze`; None: as the variant's configuration says.
Blocks = Annotated[int, Field(ge=-1)] | None
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
# What an adapter model has no use for: one branch, and an encoder that is never trained.
_NOT_WITH_ADAPTER = {
    "new_decoders",
    "cross_from_visual",
    "freeze_image_layers",
    "freeze_text_layers",
    "freeze_visual_decoder",
    "encoder_only",
    "column_loss_weight",
}


class RecipeError(ValueError):
    """A recipe file is missing, unreadable or has a wrong field; one line for the user."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class OneCycle(_Part):
    """The published schedule: cosine up to the peak, cosine down to almost nothing."""

    kind: Literal["one_cycle"] = "one_cycle"
    warmup: Annotated[float, Field(gt=0, lt=1)] = 0.075  # share of the run
    start_divisor: Positive = 25.0  # the first rate is the peak over this
    end_divisor: Positive = 1e4  # and the last is the first over this


class Flat(_Part):
    """Linear up, constant, linear down to `end`: the constant part can be continued for as long as one likes."""

    kind: Literal["flat"] = "flat"
    warmup: NonNegativeInt = 20_000  # crops
    decay: NonNegativeInt = 200_000  # crops, at the end
    end: Annotated[float, Field(ge=0, le=1)] = 0.01  # share of the peak


class Optimization(_Part):
    """AdamW's rates and their schedule; the defaults are the published ones."""

    learning_rate: Positive = 8.4e-5  # peak, for a step of `rate_batch` crops; it grows with the step
    rate_batch: PositiveInt = 512
    decoder_rate_factor: Positive = 19.0  # of all that is not CLIP's
    weight_decay: Annotated[float, Field(ge=0)] = 0.2
    decoder_decay_factor: Annotated[float, Field(ge=0)] = 1.0
    schedule: Annotated[OneCycle | Flat, Field(discriminator="kind")] = OneCycle()
    gradient_clip: Positive = 20.0  # norm


class Average(_Part):
    """A second set of weights beside the trained ones, which is what gets validated and saved as the model."""

    kind: Literal["ema", "swa"]  # exponential moving average; stochastic weight averaging: the plain mean
    decay: Annotated[float, Field(gt=0, lt=1)] = 0.999  # of "ema", per step
    start: NonNegativeInt = 0  # crops before the average begins


class Recipe(_Part):
    """One training run. Amounts of progress are counted in crops shown to the model, by all processes together."""

    output: Path  # folder for the state, the logs and the model files
    init: str = "default"  # model to start from: default, a fetched model's name, a path; or random
    variant: Variant = "tiny"  # of a model that starts at random
    clip: Path | None = None  # CLIP's own weights for the encoders of a model that starts at random otherwise
    new_decoders: bool = False  # take only the encoders of `init`
    cross_from_visual: bool = False  # the cross-modal decoder starts as a copy of the visual one
    data: Annotated[tuple[Source, ...], Field(min_length=1)] = (SyntheticSource(source="synthetic"),)
    workers: NonNegativeInt = 1  # data processes for each training process; the data depends on it
    seed: NonNegativeInt = 1
    samples: PositiveInt = 1_000_000
    batch_size: PositiveInt = 64  # crops of one process at a time
    accumulate: PositiveInt = 1  # batches of one optimiser step
    objective: ObjectiveOptions = ObjectiveOptions()
    encoder_only: NonNegativeInt = 0  # crops for which the column classifier alone teaches the image encoder
    column_loss_weight: Annotated[float, Field(ge=0)] = 0.0  # of the column classifier beside the decoders
    freeze_image_layers: Blocks = None
    freeze_text_layers: Blocks = None
    freeze_visual_decoder: bool = False  # to train the cross-modal branch on what the visual one reads
    freeze_statistics: bool = True  # of batch normalisation: it runs as it will when reading
    adapter: AdapterConfig | None = None  # train an adapter and one decoder on a frozen image encoder instead
    optimization: Optimization = Optimization()
    average: Average | None = None
    bf16: bool = True  # mixed precision: bfloat16 activations
    validation: tuple[Path, ...] = ()  # sets as of `clip4str eval`, by whose mean the best model is kept
    validation_crops: PositiveInt = 300  # of each set
    validate_every: PositiveInt = 50_000
    save_every: PositiveInt = 10_000
    log_every: PositiveInt = 1_000

    @model_validator(mode="after")
    def _says_nothing_in_vain(self) -> Recipe:
        """A field that would do nothing is a mistake, and one the run would not show."""
        given, asked = self.model_fields_set, self.objective.model_fields_set
        if self.init == "random":
            vain = given & {"new_decoders"}
            why = "there is nothing to take from init: random"
            if VARIANTS[self.variant].vision.stem_channels and self.freeze_statistics:
                raise ValueError(
                    "init: random needs freeze_statistics: false, for there are no batch statistics yet"
                )
        else:
            vain, why = given & {"variant", "clip"}, f"the model of init: {self.init} has its own"
        if self.adapter is not None and not vain:
            vain, why = given & _NOT_WITH_ADAPTER, "an adapter model has no use for it"
            vain |= {f"objective.{name}" for name in asked - {"permutations"}}
            if "rate_batch" in self.optimization.model_fields_set:
                vain.add("optimization.rate_batch")
        if not self.objective.cross_modal and not vain:
            vain = {f"objective.{name}" for name in asked - {"permutations", "cross_modal"}}
            vain |= given & {"cross_from_visual", "freeze_text_layers", "freeze_visual_decoder"}
            why = "the cross-modal branch is not trained"
        if vain:
            raise ValueError(f"{', '.join(sorted(vain))}: leave it out, {why}")
        if self.average is not None and self.average.start >= self.samples:
            raise ValueError("average.start: the run ends before it")
        return self

    @model_validator(mode="after")
    def _statistics_need_mixed_lengths(self) -> Recipe:
        """In batches of like lengths they tell how long the words are, and reading then lacks that knowledge."""
        synthetic = [source for source in self.data if isinstance(source, SyntheticSource)]
        if not self.freeze_statistics and any(source.like_lengths for source in synthetic):
            raise ValueError("freeze_statistics: false needs like_lengths: false in every synthetic source")
        return self

    def step_crops(self, world: int) -> int:
        """Crops of one optimiser step of `world` processes."""
        return self.batch_size * self.accumulate * world


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
