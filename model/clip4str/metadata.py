"""What a model file says of itself, and whether its weights agree.

Our safetensors files carry, as metadata: `clip4str` (the configuration as JSON, with normalisation and caption
charset), `clip4str_charset` (the characters read), `clip4str_weights_sha256` and, of converted files,
`clip4str_source_sha256`. The weights' digest depends on names, dtypes, shapes and values alone, so it is the
same in every container.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

import torch
from torch import Tensor

from clip4str.charset import CHARACTERS, TOKENS
from clip4str.config import ModelConfig
from clip4str.containers import CheckpointError, State, explained

_CONFIG, _CHARSET = "clip4str", "clip4str_charset"
_WEIGHTS, _SOURCE = "clip4str_weights_sha256", "clip4str_source_sha256"
_MAX_PIXELS = 4 << 20  # of the input image
_MAX_TEXT = 1000  # characters
# Of pixels in [0, 1]: beyond, float16 overflows or sees no image.
_MAX_MEAN, _MIN_STD, _MAX_STD = 10.0, 1e-3, 10.0
_TOKENS = {"bpe": 49408, "character": TOKENS}  # ids that a tokenizer writes


class Sizes(NamedTuple):
    """What the shapes of a model's weights tell of its configuration."""

    vision_width: int
    vision_layers: int
    image_tokens: int  # class token included
    text_width: int
    text_layers: int
    vocabulary: int
    positions: int
    embed_dim: int
    steps: int


def measure(state: Mapping[str, Tensor]) -> Sizes:
    """Sizes by the shapes of the weights. Raises KeyError (a weight is missing), ValueError (of another rank)."""
    vision_width, _ = shape_of(state, "clip_model.visual.proj", 2)
    image_tokens, _ = shape_of(state, "clip_model.visual.positional_embedding", 2)
    (text_width,) = shape_of(state, "clip_model.ln_final.weight", 1)
    vocabulary, _ = shape_of(state, "clip_model.token_embedding.weight", 2)
    positions, _ = shape_of(state, "clip_model.positional_embedding", 2)
    _, embed_dim = shape_of(state, "clip_model.text_projection", 2)
    _, steps, _ = shape_of(state, "visual_decoder.pos_queries", 3)
    return Sizes(
        vision_width,
        _count(state, r"clip_model\.visual\.transformer\.resblocks\.(\d+)\."),
        image_tokens,
        text_width,
        _count(state, r"clip_model\.transformer\.resblocks\.(\d+)\."),
        vocabulary,
        positions,
        embed_dim,
        steps,
    )


def shape_of(state: Mapping[str, Tensor], key: str, rank: int) -> tuple[int, ...]:
    """A weight's shape. Raises KeyError, ValueError."""
    shape = tuple(state[key].shape)
    if len(shape) != rank:
        raise ValueError(f"{key} has shape {shape}, not {rank} dimensions")
    return shape


def _count(state: Mapping[str, Tensor], pattern: str) -> int:
    return len({match[1] for key in state if (match := re.match(pattern, key))})


def weights_sha256(state: Mapping[str, Tensor]) -> str:
    """A digest of the weights, whatever file they lie in. Takes about 0.6 s per GB."""
    digest = hashlib.sha256()
    for key, value in sorted(state.items()):
        digest.update(f"{key} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def compose(config: ModelConfig, state: Mapping[str, Tensor], source_sha256: str | None) -> dict[str, str]:
    """The metadata of a file to write."""
    metadata = {
        _CONFIG: json.dumps(config.to_dict()),
        _CHARSET: CHARACTERS,
        _WEIGHTS: weights_sha256(state),
    }
    return metadata if source_sha256 is None else {**metadata, _SOURCE: source_sha256}


def parse(metadata: Mapping[str, str], state: State, path: Path) -> ModelConfig:
    """The configuration in a file's metadata, once everything there agrees with the weights.

    Raises CheckpointError where it does not, or where the weights are not those whose digest was noted.
    """
    if _CONFIG not in metadata:
        raise CheckpointError(
            f"{path}: no {_CONFIG!r} configuration in its metadata; was it written by clip4str?"
        )
    if metadata.get(_CHARSET, CHARACTERS) != CHARACTERS:
        raise CheckpointError(f"{path}: reads other characters than the {len(CHARACTERS)} of this version")
    with explained(path, "its configuration is not understood"):
        config = ModelConfig.from_dict(json.loads(metadata[_CONFIG]))
        for part in (config, config.vision, config.text):
            _check_types(part)
        check_ranges(config)
    with explained(path, "not CLIP4STR weights"):
        measured = measure(state)
    # before anything is built: a configuration may ask for a billion layers
    if (stated := _stated(config)) != measured:
        field = next(f for f in Sizes._fields if getattr(stated, f) != getattr(measured, f))
        raise CheckpointError(
            f"{path}: its configuration is not that of its weights: "
            f"{field} is {getattr(stated, field)}, the weights have {getattr(measured, field)}"
        )
    if _WEIGHTS in metadata and metadata[_WEIGHTS] != weights_sha256(state):
        raise CheckpointError(
            f"{path}: its weights are not those whose sha256 its metadata notes: it is damaged"
        )
    return config


def _stated(config: ModelConfig) -> Sizes:
    rows, columns = config.vision.grid
    return Sizes(
        config.vision.width,
        config.vision.layers,
        rows * columns + 1,
        config.text.width,
        config.text.layers,
        config.text.vocabulary,
        config.text.positions,
        config.embed_dim,
        config.steps,
    )


def _check_types(part: Any) -> None:
    hints = get_type_hints(type(part))
    for field in dataclasses.fields(part):
        value = getattr(part, field.name)
        if not _fits(value, hints[field.name]):
            raise ValueError(f"{field.name} is {repr(value)[:80]}")


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value is of an annotated type, as far as ModelConfig uses them."""
    arguments = get_args(hint)
    if get_origin(hint) is Literal:
        return value in arguments
    if get_origin(hint) is tuple:
        if not isinstance(value, tuple):
            return False
        hints = arguments[:1] * len(value) if arguments[-1] is ... else arguments
        return len(value) == len(hints) and all(map(_fits, value, hints))
    if hint is float:
        return type(value) in (int, float) and math.isfinite(value)
    return type(value) is hint


def check_ranges(config: ModelConfig) -> None:
    """What the shapes of the weights cannot tell, but reading would stumble over. Raises ValueError."""
    vision, text = config.vision, config.text
    heads = (
        (vision.width, vision.heads),
        (text.width, text.heads),
        (config.embed_dim, config.decoder_heads),
    )
    if any(count < 1 or width % count for width, count in heads):
        raise ValueError("a width is not a multiple of its number of heads")
    if min(*vision.image_size, *vision.patch_size, config.decoder_mlp_ratio) < 1:
        raise ValueError("a size is below 1")
    if math.prod(vision.image_size) > _MAX_PIXELS:
        raise ValueError(f"image_size {vision.image_size} is more than {_MAX_PIXELS} pixels")
    if any(side % patch for side, patch in zip(vision.image_size, vision.patch_size, strict=True)):
        raise ValueError(
            f"image_size {vision.image_size} is not a multiple of patch_size {vision.patch_size}"
        )
    if text.vocabulary < _TOKENS[text.tokenizer]:
        raise ValueError(
            f"vocabulary {text.vocabulary} is below the {_TOKENS[text.tokenizer]} tokens of {text.tokenizer!r}"
        )
    if not 2 <= text.context_length <= text.positions:
        raise ValueError(f"context_length {text.context_length} is not between 2 and {text.positions}")
    if max(len(config.variant), len(config.caption_charset)) > _MAX_TEXT:
        raise ValueError(f"variant or caption_charset has more than {_MAX_TEXT} characters")
    if max(map(abs, config.mean)) > _MAX_MEAN:
        raise ValueError(f"mean is {config.mean}, not from {-_MAX_MEAN} to {_MAX_MEAN}")
    if min(config.std) < _MIN_STD or max(config.std) > _MAX_STD:
        raise ValueError(f"std is {config.std}, not from {_MIN_STD} to {_MAX_STD}")
