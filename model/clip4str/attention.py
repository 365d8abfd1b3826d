"""Attention, with keys and values that can be projected once and used many times."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class KeyValue(NamedTuple):
    """Projected attention keys and values, each [N, heads, tokens, head width]."""

    key: Tensor
    value: Tensor

    def append(self, other: KeyValue) -> KeyValue:
        """Both sequences of tokens, one after the other."""
        return KeyValue(torch.cat([self.key, other.key], dim=2), torch.cat([self.value, other.value], dim=2))

    def repeat(self, count: int) -> KeyValue:
        """Each row `count` times in a row: [N * count, heads, tokens, head width]."""
        return KeyValue(self.key.repeat_interleave(count, 0), self.value.repeat_interleave(count, 0))

    def select(self, rows: Tensor) -> KeyValue:
        """These rows, an index int64 [M]: [M, heads, tokens, head width]."""
        return KeyValue(self.key[rows], self.value[rows])

    def contiguous(self) -> KeyValue:
        """The same, laid out so that attending to it needs no copy."""
        return KeyValue(self.key.contiguous(), self.value.contiguous())


class Attention(nn.Module):
    """Multi-head attention of queries over a memory given as `KeyValue`. Parameter names are the published ones."""

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * dim, dim))  # rows: query, key, value
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * dim))
        self.out_proj = nn.Linear(dim, dim)

    def project(self, x: Tensor) -> KeyValue:
        """Keys and values of x [N, tokens, D]."""
        key, value = self.key_value_projection(x).chunk(2, dim=-1)
        return KeyValue(split_heads(key, self.heads), split_heads(value, self.heads))

    def forward(self, x: Tensor, memory: KeyValue, mask: Tensor | None = None) -> Tensor:
        """x [N, Q, D] attends to `memory`; `mask` bool, broadcastable to [N, 1, Q, tokens], true where it may."""
        query = split_heads(self.query_projection(x), self.heads)
        dropout = self.dropout if self.training else 0.0
        merged: Tensor = self.out_proj(merge_heads(attend(query, memory, mask, dropout)))
        return merged

    def query_projection(self, x: Tensor) -> Tensor:
        """[N, Q, D] -> [N, Q, D]."""
        dim = x.shape[-1]
        return F.linear(x, self.in_proj_weight[:dim], self.in_proj_bias[:dim])

    def key_value_projection(self, x: Tensor) -> Tensor:
        """[N, tokens, D] -> [N, tokens, 2D], keys before values."""
        dim = x.shape[-1]
        return F.linear(x, self.in_proj_weight[dim:], self.in_proj_bias[dim:])


def split_heads(x: Tensor, heads: int) -> Tensor:
    """[N, tokens, heads * d] -> [N, heads, tokens, d]."""
    return x.view(*x.shape[:2], heads, -1).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """[N, heads, tokens, d] -> [N, tokens, heads * d]."""
    return x.transpose(1, 2).flatten(2)


def attend(query: Tensor, memory: KeyValue, mask: Tensor | None = None, dropout: float = 0.0) -> Tensor:
    """Softmax attention, [N, heads, Q, d] over `memory` -> [N, heads, Q, d]; `mask` as `Attention` takes it.

    PyTorch's fused kernel, but for inference on a CPU: there, for sequences as short as ours, two batched matrix
    products are faster (in bf16 2 times for an encoder's 197 tokens and 10 times for a single query).
    """
    if torch.is_grad_enabled() or dropout > 0.0 or query.device.type != "cpu":
        return F.scaled_dot_product_attention(query, *memory, attn_mask=mask, dropout_p=dropout)
    scaled = query * (1 / math.sqrt(query.shape[-1]))
    scores = torch.matmul(scaled, memory.key.transpose(2, 3))  # [N, heads, Q, tokens]
    if mask is not None:
        scores.masked_fill_(~mask, float("-inf"))
    return torch.matmul(scores.softmax(-1), memory.value)
