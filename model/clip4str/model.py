"""CLIP4STR: two encoder-decoder branches on CLIP (paper, section III).

The visual branch decodes characters from image features. The cross-modal branch decodes them from image
features *and* the text encoder's features of what the visual branch read. Both decoders are the same
two-stream transformer layer: position queries attend to the characters read so far (content), then to the
memory. This file says what is computed; `decoding.py` in what order at inference, `training/objective.py`
at training. N batch, S image tokens, L text tokens, D shared dimension, C context length, Q queries.
"""

from __future__ import annotations

import math
from functools import cache
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clip4str import towers
from clip4str.attention import Attention, KeyValue
from clip4str.charset import CLASSES, TOKENS
from clip4str.config import ModelConfig

Channels = tuple[float, float, float]


class DecoderLayer(nn.Module):
    """Pre-norm two-stream layer: queries attend to the content, then to the memory, then an MLP."""

    def __init__(self, dim: int, heads: int, mlp_ratio: int, dropout: float) -> None:
        super().__init__()
        self.self_attn = Attention(dim, heads, dropout)
        self.cross_attn = Attention(dim, heads, dropout)
        self.linear1 = nn.Linear(dim, mlp_ratio * dim)
        self.linear2 = nn.Linear(mlp_ratio * dim, dim)
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.norm_q = nn.LayerNorm(dim)
        self.norm_c = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, query: Tensor, content: KeyValue, memory: KeyValue, mask: Tensor | None) -> Tensor:
        """Queries [N, Q, D] -> [N, Q, D]; `mask` as in `Attention`, over the content."""
        query = query + self.dropout(self.self_attn(self.norm_q(query), content, mask))
        query = query + self.dropout(self.cross_attn(self.norm1(query), memory))
        hidden = self.dropout(F.gelu(self.linear1(self.norm2(query))))
        out: Tensor = query + self.dropout(self.linear2(hidden))
        return out


class TokenEmbedding(nn.Module):
    """Token ids -> vectors, scaled by sqrt(D)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(TOKENS, dim)

    def forward(self, ids: Tensor) -> Tensor:
        vectors: Tensor = math.sqrt(self.embedding.embedding_dim) * self.embedding(ids)
        return vectors


class Decoder(nn.Module):
    """One branch's decoder: a single layer, so content and memory never change and are projected once."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        dim = config.embed_dim
        self.pos_queries = nn.Parameter(torch.empty(1, config.steps, dim))
        self.layers = nn.ModuleList(
            [DecoderLayer(dim, config.decoder_heads, config.decoder_mlp_ratio, config.dropout)]
        )
        self.text_embed = TokenEmbedding(dim)
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, CLASSES)
        self.dropout = nn.Dropout(config.dropout)

    @property
    def layer(self) -> DecoderLayer:
        """The one layer; `layers` is a list for the published parameter names' sake."""
        return cast("DecoderLayer", self.layers[0])

    def project_memory(self, memory: Tensor) -> KeyValue:
        """Keys and values of the encoders' features [N, tokens, D]; the memory itself is not normalised."""
        return self.layer.cross_attn.project(memory).contiguous()

    def project_content(self, ids: Tensor, start: int = 0) -> KeyValue:
        """Keys and values of context ids int64 [N, C], which stand at context positions start, start + 1, ...

        Context position 0 is BOS and carries no position; position k > 0 carries the query of character k - 1.
        """
        content = self.text_embed(ids)  # [N, C, D]
        end = start + ids.shape[1]
        if start == 0:
            content = torch.cat([content[:, :1], content[:, 1:] + self.pos_queries[:, : end - 1]], dim=1)
        else:
            content = content + self.pos_queries[:, start - 1 : end - 1]
        return self.layer.self_attn.project(self.layer.norm_c(self.dropout(content)))

    def forward(
        self,
        content: KeyValue,
        memory: KeyValue,
        positions: slice | Tensor = slice(None),
        mask: Tensor | None = None,
    ) -> Tensor:
        """Logits [N, Q, 95] of the Q character positions selected by `positions`, a slice or an index int64 [Q].

        `mask`, bool and broadcastable to [N, 1, Q, C], is true where a query may see a context position.
        """
        query = self.dropout(self.pos_queries[:, positions]).expand(len(memory.key), -1, -1)  # [N, Q, D]
        out = self.layer(query, content, memory, mask)
        logits: Tensor = self.head(self.norm(out.to(self.norm.weight.dtype)))
        return logits


class CLIP4STR(nn.Module):
    """CLIP's encoders and the two decoders. Parameter names equal those of the published checkpoints."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.clip_model = towers.build_clip(config.vision, config.text, config.embed_dim)
        self.visual_decoder = Decoder(config)
        self.cross_decoder = Decoder(config)

    def encode_image(self, pixels: Tensor) -> Tensor:
        """Normalised pixels float [N, 3, H, W] -> image features [N, S, D]."""
        return towers.encode_image(self.clip_model, pixels)

    def encode_captions(self, tokens: Tensor) -> Tensor:
        """Caption tokens int64 [N, L] -> text features [N, L, D]."""
        return towers.encode_text(self.clip_model, tokens)

    def normalize(self, pixels: Tensor) -> Tensor:
        """uint8 [N, 3, H, W] -> the encoder's input, in the dtype and on the device of the weights."""
        return normalize(pixels, self.config, self.clip_model.visual.proj)


def normalize(pixels: Tensor, config: ModelConfig, weight: Tensor) -> Tensor:
    """uint8 [N, 3, H, W] -> the encoder's input, in the dtype and on the device of one of its weights."""
    mean, std = _statistics(config.mean, config.std, weight.device)
    return ((pixels.to(weight.device, torch.float32) / 255 - mean) / std).to(weight.dtype)


@cache
def _statistics(mean: Channels, std: Channels, device: torch.device) -> tuple[Tensor, Tensor]:
    """Kept on the device, for good: captured graphs read them there. float32 [3, 1, 1] each."""
    return torch.tensor(mean, device=device).view(3, 1, 1), torch.tensor(std, device=device).view(3, 1, 1)


def init_decoder(decoder: Decoder) -> None:
    """Initialise as the published code: truncated normal (std 0.02), zero biases, Xavier attention projections."""
    for module in decoder.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.trunc_normal_(module.weight, std=0.02)
        elif isinstance(module, Attention):
            nn.init.xavier_uniform_(module.in_proj_weight)
            nn.init.zeros_(module.in_proj_bias)
    nn.init.trunc_normal_(decoder.pos_queries, std=0.02)
