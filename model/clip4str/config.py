"""What a CLIP4STR model looks like, as data: one frozen configuration and the table of variants.

Sizes of the published variants follow CLIP4STR (Zhao et al., IEEE TIP 2024, section IV) and CLIP's own
model table. `tiny` is ours: small enough to be package data, trained on synthetic words alone.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from clip4str.charset import ALPHANUMERIC_LOWER, CHARACTERS

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
HALF = (0.5, 0.5, 0.5)


@dataclass(frozen=True, slots=True)
class VisionConfig:
    """The image encoder: a CLIP vision transformer, its patch embedding optionally a convolutional stem."""

    image_size: tuple[int, int]  # (height, width) in pixels
    patch_size: tuple[int, int]  # (height, width) in pixels of the area one token stands for
    width: int
    layers: int
    heads: int
    stem_channels: tuple[
        int, ...
    ] = ()  # hidden channels of a convolutional stem; empty: one linear patch projection

    @property
    def grid(self) -> tuple[int, int]:
        """Patch tokens as (rows, columns)."""
        return self.image_size[0] // self.patch_size[0], self.image_size[1] // self.patch_size[1]


@dataclass(frozen=True, slots=True)
class TextConfig:
    """The text encoder: a causal CLIP text transformer that sees the predicted word as a caption."""

    tokenizer: Literal["bpe", "character"]
    vocabulary: int
    positions: int  # rows of the positional embedding
    context_length: int  # tokens actually encoded, start and end tokens included
    width: int
    layers: int
    heads: int


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Everything needed to build one CLIP4STR model and to prepare its input."""

    variant: str
    vision: VisionConfig
    text: TextConfig
    embed_dim: int  # the dimension D that image features, text features and decoders share
    decoder_heads: int = 8
    decoder_mlp_ratio: int = 4
    dropout: float = 0.1  # in the decoders, while training
    max_length: int = 25  # characters; decoding runs max_length + 1 steps at most
    caption_charset: str = ALPHANUMERIC_LOWER  # captions pass through this charset before the text encoder
    mean: tuple[float, float, float] = HALF  # of the input normalisation, RGB in [0, 1]
    std: tuple[float, float, float] = HALF
    freeze_image_layers: int = -1  # training: -1 nothing; k > -1: blocks < k and the embeddings
    freeze_text_layers: int = -1

    @property
    def steps(self) -> int:
        """Decoding positions: every character and the end-of-sequence token."""
        return self.max_length + 1

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON types, for a checkpoint's metadata."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ModelConfig:
        """The inverse of `to_dict`. Raises KeyError or TypeError when fields are missing or unknown."""
        fields: dict[str, Any] = _tuples(values)
        fields["vision"] = VisionConfig(**_tuples(values["vision"]))
        fields["text"] = TextConfig(**values["text"])
        return cls(**fields)


def _tuples(values: dict[str, Any]) -> dict[str, Any]:
    """JSON has no tuples: its lists become tuples again."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}


def clip_variant(
    variant: str,
    *,
    patch: int,
    vision: tuple[int, int],
    text: tuple[int, int],
    embed_dim: int,
    image: int = 224,
) -> ModelConfig:
    """A published CLIP4STR size, as it is trained: `vision` and `text` are (width, layers); a head is 64 wide."""
    return ModelConfig(
        variant=variant,
        vision=VisionConfig((image, image), (patch, patch), vision[0], vision[1], vision[0] // 64),
        text=TextConfig("bpe", 49408, 77, 16, text[0], text[1], text[0] // 64),
        embed_dim=embed_dim,
        mean=CLIP_MEAN,
        std=CLIP_STD,
        freeze_text_layers=6,
    )


VARIANTS: dict[str, ModelConfig] = {
    "tiny": ModelConfig(
        variant="tiny",
        vision=VisionConfig(
            (32, 128), (32, 4), width=256, layers=3, heads=4, stem_channels=(32, 48, 96, 144)
        ),
        text=TextConfig("character", 97, 27, 27, width=192, layers=2, heads=3),
        embed_dim=256,
        decoder_heads=4,
        dropout=0.0,  # trained on an endless stream of synthetic words: nothing to overfit
        caption_charset=CHARACTERS,
    ),
    "base32": clip_variant("base32", patch=32, vision=(768, 12), text=(512, 12), embed_dim=512),
    "base16": clip_variant("base16", patch=16, vision=(768, 12), text=(512, 12), embed_dim=512),
    "large14": clip_variant("large14", patch=14, vision=(1024, 24), text=(768, 12), embed_dim=768),
    "huge14": clip_variant("huge14", patch=14, vision=(1280, 32), text=(1024, 24), embed_dim=1024),
}
