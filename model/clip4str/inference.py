"""A trained model in the form that runs fastest: the same function, made of other modules.

Batch normalisation folds into the convolutions before it, projections of queries, keys and values become linear
maps of their own, and on a CPU that computes in bf16 each linear map's weight is laid out once as oneDNN's matrix
products want it, where PyTorch would do so at every call.
"""

from __future__ import annotations

import logging

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import fuse_conv_bn_eval

from clip4str.attention import Attention, KeyValue, attend, merge_heads, split_heads
from clip4str.charset import TOKENS
from clip4str.model import CLIP4STR, Decoder, DecoderLayer

log = logging.getLogger(__name__)


def optimize(model: CLIP4STR, device: torch.device, dtype: torch.dtype) -> CLIP4STR:
    """Turn a model into its form for inference, in place: no training, no saving from here on.

    Weights and activations are `dtype`, but each decoder's last normalisation and its head stay float32: bf16's
    steps are too coarse for probabilities.
    """
    # A single query's products are faster in float32 on a CPU, and their ever new shapes cost nothing (cpu.rounded).
    attends_in = torch.float32 if device.type == "cpu" else dtype
    model.eval().requires_grad_(False)
    _fold_batch_norms(model.clip_model.visual)
    if isinstance(model.clip_model.visual.conv1, nn.Conv2d):
        model.clip_model.visual.conv1 = PatchEmbedding(model.clip_model.visual.conv1)
    model.visual_decoder = TabledDecoder(model.visual_decoder, device, attends_in)
    model.cross_decoder = TabledDecoder(model.cross_decoder, device, attends_in)
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.MultiheadAttention):
                setattr(module, name, SelfAttention(child))
            elif isinstance(child, Attention):
                setattr(module, name, SplitAttention(child, attends_in))
    model.to(device, dtype).to(memory_format=torch.channels_last)
    for decoder in (model.visual_decoder, model.cross_decoder):
        decoder.norm.float()
        decoder.head.float()
    if device.type == "cpu" and dtype is torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported():
        _pack(model)
    return model


def compile_encoder(model: CLIP4STR) -> None:
    """Fuse the image encoder's element-wise operations on a GPU, where Triton can: it needs a C compiler.

    Not being able to costs speed only, so it is logged and borne.
    """
    transformer, config = model.clip_model.visual.transformer, model.config.vision
    weight = model.clip_model.visual.proj
    tokens = config.grid[0] * config.grid[1] + 1
    # Models of one process share their encoders' code, and each may compile it twice: for one crop and for more.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 64)
    transformer.compile(dynamic=True)
    try:
        with torch.inference_mode():
            for batch in (1, 2):
                transformer(weight.new_zeros(batch, tokens, config.width))
    except Exception as error:  # noqa: BLE001 (compilers fail in many ways)
        transformer._compiled_call_impl = None
        log.warning("the image encoder is not compiled: %s", str(error).partition("\n")[0])


class PatchEmbedding(nn.Module):
    """A convolution whose stride is its kernel's size, as the matrix product it is."""

    def __init__(self, source: nn.Conv2d) -> None:
        super().__init__()
        self.patch = source.kernel_size
        self.projection = nn.Linear(source.weight[0].numel(), source.out_channels, bias=False, device="meta")
        self.projection.weight = nn.Parameter(source.weight.detach().flatten(1), requires_grad=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """[N, 3, H, W] -> [N, width, rows, columns]."""
        height, width = self.patch
        rows, columns = pixels.shape[2] // height, pixels.shape[3] // width
        patches = pixels.unflatten(3, (columns, width)).unflatten(2, (rows, height))  # [N, 3, r, h, c, w]
        flat = patches.permute(0, 2, 4, 1, 3, 5).flatten(3)  # [N, r, c, 3 * h * w]
        embedded: Tensor = self.projection(flat)
        return embedded.permute(0, 3, 1, 2)


class SelfAttention(nn.Module):
    """An encoder's nn.MultiheadAttention, called by the same arguments, by way of `attend`."""

    def __init__(self, source: nn.MultiheadAttention) -> None:
        super().__init__()
        self.heads = source.num_heads
        self.projection = _linear(source.in_proj_weight, source.in_proj_bias)
        self.out_proj = _linear(source.out_proj.weight, source.out_proj.bias)

    def forward(  # with nn.MultiheadAttention's arguments
        self,
        query: Tensor,
        key: Tensor,  # noqa: ARG002
        value: Tensor,  # noqa: ARG002
        need_weights: bool,  # noqa: ARG002
        attn_mask: Tensor | None,
    ) -> tuple[Tensor, None]:
        """[N, tokens, width] three times the same -> [N, tokens, width]; `attn_mask` [tokens, tokens] is added."""
        rows, length, _ = query.shape
        projected = self.projection(query).view(rows, length, 3, self.heads, -1)
        queries, keys, values = projected.permute(2, 0, 3, 1, 4).contiguous()  # [N, heads, tokens, d] each
        mask = None if attn_mask is None else attn_mask == 0
        return self.out_proj(merge_heads(attend(queries, KeyValue(keys, values), mask))), None


class SplitAttention(Attention):
    """A decoder's attention, its input projections as two linear maps, what it makes of them in `dtype`."""

    def __init__(self, source: Attention, dtype: torch.dtype) -> None:
        nn.Module.__init__(self)
        self.dtype = dtype
        dim = source.in_proj_weight.shape[1]
        self.heads = source.heads
        self.dropout = 0.0
        self.query = _linear(source.in_proj_weight[:dim], source.in_proj_bias[:dim])
        self.key_value = _linear(source.in_proj_weight[dim:], source.in_proj_bias[dim:])
        self.out_proj = source.out_proj

    def forward(self, x: Tensor, memory: KeyValue, mask: Tensor | None = None) -> Tensor:
        """As `Attention`."""
        query = split_heads(self.query(x).to(self.dtype), self.heads)
        merged: Tensor = self.out_proj(merge_heads(attend(query, memory, mask)).to(x.dtype))
        return merged

    def project(self, x: Tensor) -> KeyValue:
        """As `Attention`."""
        heads = self.key_value(x).view(*x.shape[:2], 2, self.heads, -1).permute(2, 0, 3, 1, 4)
        key, value = heads.to(
            self.dtype, memory_format=torch.contiguous_format
        )  # cast and laid out in one copy
        return KeyValue(key, value)


class TabledDecoder(Decoder):
    """A decoder that looks up what depends on a token and its position alone, or on a position.

    `dtype` is that of the tables, and of the keys and values in them.
    """

    @torch.no_grad()
    def __init__(self, source: Decoder, device: torch.device, dtype: torch.dtype) -> None:
        nn.Module.__init__(self)
        steps = source.pos_queries.shape[1]
        tokens = torch.arange(TOKENS)[:, None]
        each = [torch.stack(source.project_content(tokens, start), 2) for start in range(steps)]
        content = torch.stack(each).flatten(0, 1)  # [steps * tokens, heads, 2, 1, d]
        self.shape = content.shape[1:3]
        self.content = content.flatten(1).to(device, dtype)
        self.offsets = (torch.arange(steps) * TOKENS).to(device)
        attention = source.layer.self_attn
        query = attention.query_projection(source.layer.norm_q(source.pos_queries))
        self.query = split_heads(query, attention.heads).to(device, dtype)  # [1, heads, steps, d]
        self.pos_queries = source.pos_queries
        self.rest = TabledLayer(source.layer)
        self.norm = source.norm
        self.head = source.head

    def project_memory(self, memory: Tensor) -> KeyValue:
        """As `Decoder`."""
        return self.rest.cross_attn.project(memory).contiguous()

    def project_content(self, ids: Tensor, start: int = 0) -> KeyValue:
        """As `Decoder`."""
        rows, length = ids.shape
        found = F.embedding(ids + self.offsets[start : start + length], self.content)
        key, value = found.view(rows, length, *self.shape, -1).permute(3, 0, 2, 1, 4).contiguous()
        return KeyValue(key, value)

    def forward(
        self,
        content: KeyValue,
        memory: KeyValue,
        positions: slice | Tensor = slice(None),
        mask: Tensor | None = None,
    ) -> Tensor:
        """As `Decoder`."""
        query = self.query[:, :, positions].expand(len(memory.key), -1, -1, -1)
        out = self.rest(self.pos_queries[:, positions], attend(query, content, mask), memory)
        logits: Tensor = self.head(self.norm(out.to(self.norm.weight.dtype)))
        return logits


class TabledLayer(nn.Module):
    """What is left to compute of a decoder's layer."""

    def __init__(self, source: DecoderLayer) -> None:
        super().__init__()
        self.self_out = source.self_attn.out_proj
        self.cross_attn = source.cross_attn
        self.linear1 = source.linear1
        self.linear2 = source.linear2
        self.norm1 = source.norm1
        self.norm2 = source.norm2

    def forward(self, query: Tensor, attended: Tensor, memory: KeyValue) -> Tensor:
        """Queries [1, Q, D] and what they found in the content [N, heads, Q, d] -> [N, Q, D]."""
        x = query + self.self_out(merge_heads(attended).to(query.dtype))
        x = x + self.cross_attn(self.norm1(x), memory)
        out: Tensor = x + self.linear2(F.gelu(self.linear1(self.norm2(x))))
        return out


class PackedLinear(nn.Module):
    """A linear map whose weight lies in oneDNN's blocked layout."""

    def __init__(self, source: nn.Linear) -> None:
        super().__init__()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(source.weight.detach(), None)
        bias: Tensor | None = source.bias  # the patch embedding has none
        self.bias = None if bias is None else bias.detach()

    def forward(self, x: Tensor) -> Tensor:
        """[..., inputs] -> [..., outputs]."""
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
        return out


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
    linear.weight = nn.Parameter(weight.detach(), requires_grad=False)
    linear.bias = nn.Parameter(bias.detach(), requires_grad=False)
    return linear


def _fold_batch_norms(root: nn.Module) -> None:
    for module in root.modules():
        if not isinstance(module, nn.Sequential):
            continue
        for index in range(1, len(module)):
            before, layer = module[index - 1], module[index]
            if isinstance(before, nn.Conv2d) and isinstance(layer, nn.BatchNorm2d):
                module[index - 1], module[index] = fuse_conv_bn_eval(before, layer), nn.Identity()


def _pack(model: CLIP4STR) -> None:
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.Linear) and not isinstance(module, Decoder):  # whose head is float32
                setattr(module, name, PackedLinear(child))
