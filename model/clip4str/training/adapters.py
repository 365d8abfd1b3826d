"""Adapter models: CLIP's image encoder stays frozen, a small adapter and one decoder are trained.

The adapter turns the image features into the decoder's memory, either from those features alone
(CLIP-Adapter, Gao et al., IJCV 2024) or along a ladder beside the encoder that takes in what goes into some of
its blocks (Ladder Side-Tuning, Sung et al., NeurIPS 2022). There is no text branch: the decoder reads once and
refines once.

N batch, S image tokens, W width of the image encoder, D dimension of its features, J blocks of a ladder.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from clip4str import towers
from clip4str.autoregression import autoregress
from clip4str.config import ModelConfig
from clip4str.containers import explained, read_safetensors, written
from clip4str.decoding import refine
from clip4str.model import Decoder, init_decoder, normalize

State = dict[str, Tensor]
_MLP_RATIO = 4  # of CLIP's blocks
_MODEL, _ADAPTER = "clip4str", "clip4str_adapter"  # metadata of a file: the two configurations, JSON
_TEMPERATURE = 0.1  # of a ladder's mixing weights
_BESIDE_DECODER = ("pos_queries", "head.", "text_embed.")  # parts of the decoder not published under its name


@dataclass(frozen=True, slots=True)
class AdapterConfig:
    """Which adapter. A ladder has one block beside each of `blocks` of the image encoder, by their index."""

    kind: Literal["identity", "linear", "attention", "ladder", "linear_ladder", "ladder_pruning"] = "linear"
    blocks: tuple[int, ...] = (0, 4, 8, 11)
    reduction: int = 4  # of "ladder_pruning": a block is narrower than the encoder's by this factor inside


class LinearAdapter(nn.Module):
    """A two-layer perceptron mixed with its input; shape is unchanged."""

    def __init__(self, width: int, reduction: int, ratio: float) -> None:
        super().__init__()
        self.ratio = ratio  # the perceptron's share
        self.fc = nn.Sequential(
            nn.Linear(width, width // reduction, bias=False),
            nn.ReLU(),
            nn.Linear(width // reduction, width, bias=False),
            nn.ReLU(),
        )

    def forward(self, x: Tensor) -> Tensor:
        mixed: Tensor = self.ratio * self.fc(x) + (1 - self.ratio) * x
        return mixed


class AttentionAdapter(nn.Module):
    """The mean of the image features and what one more CLIP block makes of them."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attn = Block(width, heads)

    def forward(self, memory: Tensor) -> Tensor:
        mixed: Tensor = 0.5 * self.attn(memory) + 0.5 * memory
        return mixed


class SelfAttention(nn.Module):
    """Multi-head self-attention of x [N, S, W] with queries, keys and values `inner` wide in all."""

    def __init__(self, width: int, inner: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * inner, width))  # rows: query, key, value
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * inner))
        self.out_proj = nn.Linear(inner, width)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, x: Tensor) -> Tensor:
        projected = F.linear(x, self.in_proj_weight, self.in_proj_bias).chunk(3, dim=-1)
        query, key, value = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in projected)
        attended = F.scaled_dot_product_attention(query, key, value)  # [N, heads, S, inner / heads]
        merged: Tensor = self.out_proj(attended.transpose(1, 2).flatten(2))
        return merged


class QuickGELU(nn.Module):
    """CLIP's approximation of the GELU."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class Block(nn.Module):
    """A CLIP block of width W, its attention and its MLP narrower inside by the factor `reduction`."""

    def __init__(self, width: int, heads: int, reduction: int = 1) -> None:
        super().__init__()
        hidden = _MLP_RATIO * width // reduction
        self.ln_1 = nn.LayerNorm(width)
        self.attn = SelfAttention(width, width // reduction, heads)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            OrderedDict(c_fc=nn.Linear(width, hidden), gelu=QuickGELU(), c_proj=nn.Linear(hidden, width))
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        out: Tensor = x + self.mlp(self.ln_2(x))
        return out


class Ladder(nn.Module):
    """A trained side network that climbs beside the frozen encoder and joins its features at the top."""

    def __init__(self, blocks: Sequence[nn.Module], width: int, dim: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.zeros(len(blocks)))  # first: the encoder's share of the result
        self.proj = nn.Parameter(torch.empty(width, dim))
        self.resblocks = nn.ModuleList(blocks)
        self.ln_post = nn.LayerNorm(width)

    def forward(self, memory: Tensor, inputs: Sequence[Tensor]) -> Tensor:
        """Image features [N, S, D] and the J inputs [N, S, W] of the encoder's blocks -> [N, S, D]."""
        top, *shares = torch.sigmoid(self.alpha / _TEMPERATURE)
        first, *rest = self.resblocks
        x = first(inputs[0])
        for share, block, hidden in zip(shares, rest, inputs[1:], strict=True):
            x = block(share * hidden + (1 - share) * x)
        side = self.ln_post(x) @ self.proj
        mixed: Tensor = top * memory + (1 - top) * side
        return mixed


class AdapterModel(nn.Module):
    """Frozen image encoder, adapter and decoder, uninitialised.

    Load a state dict, or CLIP's weights and then call `init_adapter_model`. The state dict has the published
    names, which put some of the decoder's parts beside it. Raises ValueError when the adapter does not fit the
    encoder.
    """

    def __init__(self, config: ModelConfig, adapter: AdapterConfig) -> None:
        super().__init__()
        self.config = config
        self.adapter_config = adapter
        self.clip_model = towers.build_clip(config.vision, config.text, config.embed_dim)
        self.clip_model.requires_grad_(False)
        self.adapter = _build_adapter(config, adapter)
        self.decoder = Decoder(config)
        self.register_state_dict_post_hook(_publish)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_pre_hook(_unpublish)  # type: ignore[no-untyped-call]

    def encode_image(self, pixels: Tensor) -> Tensor:
        """Normalised pixels [N, 3, H, W] -> the decoder's memory [N, S, D]."""
        if isinstance(self.adapter, Ladder):
            blocks = self.adapter_config.blocks
            memory: Tensor = self.adapter(*towers.encode_image_with_inputs(self.clip_model, pixels, blocks))
        else:
            memory = self.adapter(towers.encode_image(self.clip_model, pixels))
        return memory

    def normalize(self, pixels: Tensor) -> Tensor:
        """uint8 [N, 3, H, W] -> the encoder's input."""
        return normalize(pixels, self.config, self.clip_model.visual.proj)

    def train(self, mode: bool = True) -> AdapterModel:
        """As of any module, but the encoder stays in evaluation mode: it is frozen, batch statistics too."""
        super().train(mode)
        self.clip_model.eval()
        return self


@torch.inference_mode()
def decode(model: AdapterModel, pixels: Tensor, allowed: Tensor | None = None) -> Tensor:
    """Read normalised pixels [N, 3, H, W]; returns refined logits, float32 [N, 26, 95].

    `allowed`: constraint mask bool [N, 95], or None. No row depends on its neighbours.
    """
    limit = model.config.steps
    memory = model.decoder.project_memory(model.encode_image(pixels))
    logits = autoregress(model.decoder, memory, limit, allowed, stop_at_eos=True)
    context = torch.full((len(pixels),), limit, device=logits.device)  # what was read ends by itself
    return refine(model.decoder, memory, logits, context, limit, allowed)


@torch.no_grad()
def init_adapter_model(model: AdapterModel) -> None:
    """Initialise all that is trained. The encoder's weights must be there: a ladder starts as their copy."""
    init_decoder(model.decoder)
    if not isinstance(model.adapter, Ladder):
        return
    encoder: State = model.clip_model.visual.state_dict()
    model.adapter.proj.copy_(encoder["proj"])
    model.adapter.ln_post.load_state_dict(_under(encoder, "ln_post."))
    for index, block in zip(model.adapter_config.blocks, model.adapter.resblocks, strict=True):
        if isinstance(block, Block):
            reduction = len(encoder["proj"]) // block.attn.out_proj.in_features
            state = _under(encoder, f"transformer.resblocks.{index}.")
            block.load_state_dict(prune_block(state, reduction))


def save_adapter_model(model: AdapterModel, path: Path) -> None:
    """Write the whole model, its frozen encoder too, as safetensors that `load_adapter_model` reads.

    Raises CheckpointError when the file cannot be written.
    """
    notes = {_MODEL: json.dumps(model.config.to_dict()), _ADAPTER: json.dumps(asdict(model.adapter_config))}
    with written(path) as unfinished:
        save_file({name: value.contiguous() for name, value in model.state_dict().items()}, unfinished, notes)


def load_adapter_model(path: Path) -> AdapterModel:
    """Read a file of `save_adapter_model`, in evaluation mode. Raises CheckpointError."""
    state, notes = read_safetensors(path)
    with explained(path, "is no adapter model"):
        config = ModelConfig.from_dict(json.loads(notes[_MODEL]))
        adapter = json.loads(notes[_ADAPTER])
        model = AdapterModel(config, AdapterConfig(**adapter | {"blocks": tuple(adapter["blocks"])}))
        model.load_state_dict(state)
    return model.eval()


def prune_block(state: Mapping[str, Tensor], reduction: int) -> State:
    """A CLIP block's weights -> those of `Block(..., reduction)`: inside, only the largest units are kept.

    Query, key, value and the MLP are pruned each for itself, weights and biases, too.
    """
    pruned = dict(state)
    for leaf in ("weight", "bias"):
        parts = state[f"attn.in_proj_{leaf}"].chunk(3)
        pruned[f"attn.in_proj_{leaf}"] = torch.cat([keep_largest(part, reduction) for part in parts])
        pruned[f"mlp.c_fc.{leaf}"] = keep_largest(state[f"mlp.c_fc.{leaf}"], reduction)
    for name in ("attn.out_proj.weight", "mlp.c_proj.weight"):
        pruned[name] = keep_largest(state[name].T, reduction).T
    return pruned


def keep_largest(rows: Tensor, reduction: int) -> Tensor:
    """Of n rows, or n numbers, the n // reduction with the largest sum of magnitudes, in their order."""
    magnitudes = rows.reshape(len(rows), -1).abs().sum(1)
    kept = magnitudes.topk(len(rows) // reduction).indices.sort().values
    return rows[kept]


def _build_adapter(config: ModelConfig, adapter: AdapterConfig) -> nn.Module:
    width, heads, dim = config.vision.width, config.vision.heads, config.embed_dim
    match adapter.kind:
        case "identity":
            return nn.Identity()
        case "linear":
            return LinearAdapter(dim, reduction=2, ratio=0.2)
        case "attention":
            return AttentionAdapter(dim, heads=8)
    ordered = tuple(sorted(set(adapter.blocks))) == tuple(adapter.blocks)
    if (
        not adapter.blocks
        or not ordered
        or not 0 <= adapter.blocks[0] <= adapter.blocks[-1] < config.vision.layers
    ):
        raise ValueError(
            f"blocks is {adapter.blocks}: expected at least one index from 0 to {config.vision.layers - 1}, in order"
        )
    if adapter.kind == "linear_ladder":
        rungs: list[nn.Module] = [LinearAdapter(width, reduction=4, ratio=0.5) for _ in adapter.blocks]
        return Ladder(rungs, width, dim)
    reduction = adapter.reduction if adapter.kind == "ladder_pruning" else 1
    if reduction < 1 or width % (reduction * heads):
        raise ValueError(f"reduction is {reduction}: expected a divisor of a head's width, {width // heads}")
    return Ladder([Block(width, heads, reduction) for _ in adapter.blocks], width, dim)


def _under(state: Mapping[str, Tensor], prefix: str) -> State:
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def _publish(_model: nn.Module, state: dict[str, Any], prefix: str, *_: object) -> None:
    _move(state, f"{prefix}decoder.", prefix)


def _unpublish(_model: nn.Module, state: dict[str, Any], prefix: str, *_: object) -> None:
    _move(state, prefix, f"{prefix}decoder.")


def _move(state: dict[str, Any], source: str, target: str) -> None:
    """Rename the decoder's parts in place, between its own names and the published ones."""
    for key in list(state):
        if key.startswith(source) and key.removeprefix(source).startswith(_BESIDE_DECODER):
            state[target + key.removeprefix(source)] = state.pop(key)
