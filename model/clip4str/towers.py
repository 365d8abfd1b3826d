"""CLIP's two encoders as CLIP4STR uses them: every token's feature, not one pooled vector.

The only module that knows open_clip. Parameter names inside `build_clip(...)` are CLIP's own, so published
weights load without renaming. All CLIP weights run with QuickGELU and heads 64 wide, as the published
CLIP4STR does even for weights pre-trained otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

import open_clip
import regex  # type: ignore[import-untyped]  # shipped without type information
import torch
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg
from torch import Tensor, nn

from clip4str.charset import BOS, EOS, PAD, character_ids
from clip4str.config import ModelConfig, TextConfig, VisionConfig

# Words of a batch are of like length, so their statistics differ between batches: average over a hundred.
_STATISTICS_MOMENTUM = 0.01
_BPE_WORDS = 65536
_BPE_START, _BPE_END, _BPE_PAD = 49406, 49407, 0
_BPE_SPECIAL = {"<|startoftext|>": _BPE_START, "<|endoftext|>": _BPE_END}


class ConvStem(nn.Module):
    """A convolutional patch embedding: pixels [N, 3, H, W] -> token map [N, width, rows, columns].

    3x3 convolutions with batch normalisation shrink 32x128 pixels to a row of 32 tokens: by 4 in both directions,
    then by 8 in height only, so that each token stays narrow enough for one character.
    """

    def __init__(self, channels: tuple[int, ...], width: int) -> None:
        super().__init__()
        first, second, third, fourth = channels
        self.layers = nn.Sequential(
            *_conv(3, first, stride=2),  # 1/2, 1/2
            *_conv(first, second, stride=1),
            *_conv(second, third, stride=2),  # 1/4, 1/4
            ResidualBlock(third),
            *_conv(third, fourth, stride=(2, 1)),  # 1/8, 1/4
            ResidualBlock(fourth),
            ResidualBlock(fourth),
            nn.Conv2d(fourth, width, (4, 3), stride=(4, 1), padding=(0, 1), bias=False),  # 1/32, 1/4
            nn.BatchNorm2d(width, momentum=_STATISTICS_MOMENTUM),
        )

    def forward(self, pixels: Tensor) -> Tensor:
        features: Tensor = self.layers(pixels.contiguous(memory_format=torch.channels_last))
        return features


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions around an identity path; shape is unchanged."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *_conv(channels, channels, stride=1), *_conv(channels, channels, stride=1)[:2]
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.body(x))


def _conv(inputs: int, outputs: int, *, stride: int | tuple[int, int]) -> list[nn.Module]:
    return [
        nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(outputs, momentum=_STATISTICS_MOMENTUM),
        nn.ReLU(inplace=True),
    ]


def build_clip(vision: VisionConfig, text: TextConfig, embed_dim: int) -> CLIP:
    """An open_clip CLIP of the given sizes, randomly initialised; `tiny`'s patch embedding is a ConvStem."""
    clip = CLIP(
        embed_dim=embed_dim,
        vision_cfg=CLIPVisionCfg(
            layers=vision.layers,
            width=vision.width,
            head_width=vision.width // vision.heads,
            patch_size=vision.patch_size,  # a pair, as open_clip takes it
            image_size=vision.image_size,
            output_tokens=True,
        ),
        text_cfg=CLIPTextCfg(
            context_length=text.positions,
            vocab_size=text.vocabulary,
            width=text.width,
            heads=text.heads,
            layers=text.layers,
        ),
        quick_gelu=True,
    )
    if vision.stem_channels:
        clip.visual.conv1 = ConvStem(vision.stem_channels, vision.width)
    return clip


def encode_image(clip: CLIP, pixels: Tensor) -> Tensor:
    """Normalised pixels [N, 3, H, W] -> image features [N, S, D]: the class token, then the patches by row."""
    visual = clip.visual
    patches = visual.conv1(pixels).flatten(2).transpose(1, 2)  # [N, S - 1, vision width]
    class_token = visual.class_embedding.to(patches.dtype).expand(len(pixels), 1, -1)
    x = torch.cat([class_token, patches], dim=1) + visual.positional_embedding.to(patches.dtype)
    x = visual.ln_post(visual.transformer(visual.ln_pre(x)))
    # One product for all tokens: one of the class tokens alone has as many rows as the batch, and rounds by that.
    features: Tensor = x @ visual.proj
    return features


def encode_image_with_inputs(
    clip: CLIP, pixels: Tensor, blocks: Sequence[int]
) -> tuple[Tensor, list[Tensor]]:
    """As `encode_image`, and what goes into each of these vision blocks: [N, S, vision width] each."""
    inputs: dict[int, Tensor] = {}

    def keep(block: int) -> Callable[[nn.Module, tuple[Tensor]], None]:
        def hook(_: nn.Module, arguments: tuple[Tensor]) -> None:
            inputs[block] = arguments[0]

        return hook

    layers = clip.visual.transformer.resblocks
    hooks = [layers[block].register_forward_pre_hook(keep(block)) for block in blocks]
    try:
        features = encode_image(clip, pixels)
    finally:
        for hook in hooks:
            hook.remove()
    return features, [inputs[block] for block in blocks]


def encode_text(clip: CLIP, tokens: Tensor) -> Tensor:
    """Caption tokens int64 [N, L] -> text features [N, L, D] of all positions, those after the end included."""
    length = tokens.shape[1]
    x = clip.token_embedding(tokens) + clip.positional_embedding[:length]
    x = clip.transformer(x, attn_mask=clip.attn_mask[:length, :length])
    features: Tensor = clip.ln_final(x) @ clip.text_projection
    return features


@lru_cache(maxsize=1)
def _bpe() -> open_clip.SimpleTokenizer:
    """CLIP's tokenizer, with the special tokens in CLIP's own spelling: a caption may hold them literally.

    open_clip spells them otherwise; all else is the same.
    """
    tokenizer = open_clip.SimpleTokenizer()
    spelling = zip(("<start_of_text>", "<end_of_text>"), _BPE_SPECIAL.items(), strict=True)
    pattern = tokenizer.pat.pattern
    for theirs, (token, index) in spelling:
        pattern = pattern.replace(theirs, regex.escape(token))
        tokenizer.encoder[token] = index
        tokenizer.cache[token] = token
    tokenizer.pat = regex.compile(pattern, tokenizer.pat.flags)
    return tokenizer


@lru_cache(maxsize=_BPE_WORDS)  # words come again and again
def _bpe_tokens(caption: str) -> tuple[int, ...]:
    tokenizer = _bpe()
    if len(tokenizer.cache) > _BPE_WORDS:  # open_clip's own, which would keep every word it ever sees
        _bpe.cache_clear()
    return tuple(tokenizer.encode(caption))


def tokenize(captions: list[str], config: ModelConfig) -> Tensor:
    """Captions -> the text encoder's token ids, int64 [N, context_length].

    BPE as CLIP's (cut to fit, the end token kept, padded with 0), or one token a character (`tiny`).
    """
    length = config.text.context_length
    if config.text.tokenizer == "character":
        rows = [[BOS, *character_ids(caption)[: length - 2], EOS] for caption in captions]
        pad = PAD
    else:
        rows = [[_BPE_START, *_bpe_tokens(caption)[: length - 2], _BPE_END] for caption in captions]
        pad = _BPE_PAD
    return torch.tensor([row + [pad] * (length - len(row)) for row in rows]).view(len(captions), length)
