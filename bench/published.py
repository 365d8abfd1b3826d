"""The published CLIP4STR inference algorithm in plain PyTorch: the baseline of our speed measurements.

A transcription made to be compared with, never shipped in the package. It computes what the published code
computes, the way the published code computes it: `nn.MultiheadAttention` everywhere; the whole decoder again
at each autoregressive step, with the memory projected to keys and values again; a look at every row's end
after each step, for which the device must be waited for; captions tokenised and encoded anew for each
reading. There is no cache and nothing is fused beyond PyTorch's own modules, and nothing is slowed down: evaluation
mode, inference mode, the attention that PyTorch chooses. The golden fixtures hold it to the published
implementation's results.

Rows of a batch are decoded together as published: the longest visual reading sets the number T of
autoregressive steps of all rows in both branches, so a row's answer may depend on its neighbours. One image
at a time, it gives the answers of `clip4str`. Tokenizers and characters come from `clip4str`; the network
and the decoding do not.

N batch, S image tokens, L caption tokens, D shared dimension, C context length, Q queries.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clip4str.charset import BOS, CLASSES, EOS, PAD, TOKENS, adapt, decode_caption
from clip4str.checkpoint import infer_config
from clip4str.config import ModelConfig, TextConfig, VisionConfig
from clip4str.towers import ConvStem, tokenize


class QuickGELU(nn.Module):
    """CLIP's approximation of GELU."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class Block(nn.Module):
    """One pre-norm block of either CLIP tower."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.ln_1 = nn.LayerNorm(width)
        inner, outer = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.mlp = nn.Sequential(OrderedDict(c_fc=inner, gelu=QuickGELU(), c_proj=outer))
        self.ln_2 = nn.LayerNorm(width)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        normed = self.ln_1(x)
        x = x + self.attn(normed, normed, normed, need_weights=False, attn_mask=mask)[0]
        out: Tensor = x + self.mlp(self.ln_2(x))
        return out


class Transformer(nn.Module):
    """The blocks of one CLIP tower."""

    def __init__(self, width: int, layers: int, heads: int) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList([Block(width, heads) for _ in range(layers)])

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        for block in self.resblocks:
            x = block(x, mask)
        return x


class VisionTransformer(nn.Module):
    """CLIP's image encoder, which keeps every token: pixels [N, 3, H, W] -> memory [N, S, D]."""

    def __init__(self, config: VisionConfig, embed_dim: int) -> None:
        super().__init__()
        width = config.width
        rows, columns = config.grid
        self.class_embedding = nn.Parameter(torch.empty(width))
        self.positional_embedding = nn.Parameter(torch.empty(rows * columns + 1, width))
        self.proj = nn.Parameter(torch.empty(width, embed_dim))
        self.conv1: nn.Module
        if config.stem_channels:
            self.conv1 = ConvStem(config.stem_channels, width)
        else:
            self.conv1 = nn.Conv2d(3, width, config.patch_size, stride=config.patch_size, bias=False)
        self.ln_pre = nn.LayerNorm(width)
        self.transformer = Transformer(width, config.layers, config.heads)
        self.ln_post = nn.LayerNorm(width)

    def forward(self, pixels: Tensor) -> Tensor:
        patches = self.conv1(pixels).flatten(2).transpose(1, 2)  # [N, S - 1, width]
        start = self.class_embedding.expand(len(patches), 1, -1)
        x = torch.cat([start, patches], dim=1) + self.positional_embedding
        x = self.transformer(self.ln_pre(x))
        memory: Tensor = self.ln_post(x) @ self.proj
        return memory


class CLIP(nn.Module):
    """CLIP's two encoders."""

    mask: Tensor

    def __init__(self, vision: VisionConfig, text: TextConfig, embed_dim: int) -> None:
        super().__init__()
        self.visual = VisionTransformer(vision, embed_dim)
        self.transformer = Transformer(text.width, text.layers, text.heads)
        self.token_embedding = nn.Embedding(text.vocabulary, text.width)
        self.positional_embedding = nn.Parameter(torch.empty(text.positions, text.width))
        self.ln_final = nn.LayerNorm(text.width)
        self.text_projection = nn.Parameter(torch.empty(text.width, embed_dim))
        self.logit_scale = nn.Parameter(torch.empty(()))  # in the checkpoints; unused when reading
        causal = torch.full((text.context_length, text.context_length), float("-inf")).triu(1)
        self.register_buffer("mask", causal, persistent=False)

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Caption tokens int64 [N, L] -> text features [N, L, D] of all positions."""
        x = self.token_embedding(tokens) + self.positional_embedding[: tokens.shape[1]]
        features: Tensor = self.ln_final(self.transformer(x, self.mask)) @ self.text_projection
        return features


class DecoderLayer(nn.Module):
    """Pre-norm two-stream layer. Attention also returns its averaged weights, as in the published code."""

    def __init__(self, dim: int, heads: int, mlp_ratio: int) -> None:
        super().__init__()
        self.self_attn = nn.MultiheadAttention(dim, heads, batch_first=True)
        self.cross_attn = nn.MultiheadAttention(dim, heads, batch_first=True)
        self.linear1 = nn.Linear(dim, mlp_ratio * dim)
        self.linear2 = nn.Linear(mlp_ratio * dim, dim)
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.norm_q = nn.LayerNorm(dim)
        self.norm_c = nn.LayerNorm(dim)

    def forward(
        self, query: Tensor, content: Tensor, memory: Tensor, mask: Tensor, padding: Tensor | None
    ) -> Tensor:
        q, kv = self.norm_q(query), self.norm_c(content)
        query = query + self.self_attn(q, kv, kv, attn_mask=mask, key_padding_mask=padding)[0]
        query = query + self.cross_attn(self.norm1(query), memory, memory)[0]
        out: Tensor = query + self.linear2(F.gelu(self.linear1(self.norm2(query))))
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
    """One branch's decoder: context ids int64 [N, C] and memory -> logits [N, Q, 95] of the wanted positions.

    `mask` [Q, C] and `padding` [N, C] are added to the attention over the context: 0, or -inf where hidden.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        dim = config.embed_dim
        self.pos_queries = nn.Parameter(torch.empty(1, config.steps, dim))
        self.layers = nn.ModuleList([DecoderLayer(dim, config.decoder_heads, config.decoder_mlp_ratio)])
        self.text_embed = TokenEmbedding(dim)
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, CLASSES)

    def forward(
        self, ids: Tensor, memory: Tensor, positions: slice, mask: Tensor, padding: Tensor | None = None
    ) -> Tensor:
        start = self.text_embed(ids[:, :1])
        characters = self.pos_queries[:, : ids.shape[1] - 1] + self.text_embed(ids[:, 1:])
        content = torch.cat([start, characters], dim=1)
        query = self.pos_queries[:, positions].expand(len(ids), -1, -1)
        for layer in self.layers:
            query = layer(query, content, memory, mask, padding)
        logits: Tensor = self.head(self.norm(query))
        return logits


@dataclass(frozen=True, slots=True)
class Captions:
    """What the text encoder saw in one pass."""

    texts: list[str]
    tokens: Tensor  # int64 [N, L]
    features: Tensor  # [N, L, D]


@dataclass(frozen=True, slots=True)
class Decoded:
    """One run's intermediate results. Logits are float32, of 26 positions when refined, fewer with `max_length`."""

    memory: Tensor  # [N, S, D]
    visual_autoregressive: Tensor  # [N, T, 95]
    cross_autoregressive: Tensor  # [N, T, 95]
    visual_refined: Tensor  # [N, 26, 95]
    cross_refined: Tensor  # [N, 26, 95]: the answer
    captions: tuple[Captions, ...]  # of the autoregressive visual reading, then of each refined one


class PublishedCLIP4STR(nn.Module):
    """The published network under its own parameter names; `from_state_dict` builds it."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.clip_model = CLIP(config.vision, config.text, config.embed_dim)
        self.visual_decoder = Decoder(config)
        self.cross_decoder = Decoder(config)

    @classmethod
    def from_state_dict(
        cls, state: Mapping[str, Tensor], config: ModelConfig | None = None
    ) -> PublishedCLIP4STR:
        """The model of these weights in float32, in evaluation mode.

        Without `config` all sizes come from the shapes of published weights. Raises RuntimeError when a name
        or a shape does not fit.
        """
        model = cls(infer_config(state) if config is None else config)
        model.load_state_dict(state, strict=True)
        return model.eval()

    @torch.inference_mode()
    def decode(
        self, pixels: Tensor, charset: str | None = None, max_length: int | None = None, refine_iters: int = 1
    ) -> Decoded:
        """Read normalised pixels [N, 3, H, W] on the model's device.

        `charset`: what captions are adapted to, by default the configuration's. `max_length`: None decodes
        until every row has ended, a number decodes exactly that many characters (25 at most) and EOS.
        """
        charset = self.config.caption_charset if charset is None else charset
        limit = self.config.steps if max_length is None else min(max_length, self.config.max_length) + 1

        memory = self.clip_model.visual(pixels.to(self.clip_model.visual.proj.dtype))
        visual = first_visual = autoregress(self.visual_decoder, memory, limit, until_eos=max_length is None)
        captions = [self._caption(visual, charset)]
        cross_memory = torch.cat([memory, captions[-1].features], dim=1)
        cross = first_cross = autoregress(self.cross_decoder, cross_memory, visual.shape[1], until_eos=False)
        for _ in range(refine_iters):
            visual = refine(self.visual_decoder, memory, visual, limit)
            captions.append(self._caption(visual, charset))
            cross_memory = torch.cat([memory, captions[-1].features], dim=1)
            cross = refine(self.cross_decoder, cross_memory, cross, limit)
        return Decoded(
            memory, first_visual.float(), first_cross.float(), visual.float(), cross.float(), tuple(captions)
        )

    def _caption(self, logits: Tensor, charset: str) -> Captions:
        """What logits [N, T, 95] say, adapted to the charset, through the tokenizer and the text encoder."""
        texts = [adapt(decode_caption(row), charset) for row in logits.argmax(-1).tolist()]
        tokens = tokenize(texts, self.config).to(logits.device)
        return Captions(texts, tokens, self.clip_model.encode_text(tokens))


def read(model: PublishedCLIP4STR, pixels: Tensor, *, max_length: int | None = None) -> Tensor:
    """The published answer: refined cross-modal logits, float32 [N, 26, 95], of normalised pixels [N, 3, H, W]."""
    return model.decode(pixels, max_length=max_length).cross_refined


def autoregress(decoder: Decoder, memory: Tensor, limit: int, *, until_eos: bool) -> Tensor:
    """Greedy decoding by one character a step, `limit` steps at most. Returns logits [N, T, 95]."""
    ids = torch.full((len(memory), limit), PAD, device=memory.device)
    ids[:, 0] = BOS
    mask = torch.full((limit, limit), float("-inf"), dtype=memory.dtype, device=memory.device).triu(1)
    logits = []
    for i in range(limit):
        seen = slice(0, i + 1)
        logits.append(decoder(ids[:, seen], memory, slice(i, i + 1), mask[i : i + 1, seen]))
        if i + 1 < limit:
            ids[:, i + 1] = logits[-1][:, 0].argmax(-1)
            if until_eos and bool((ids == EOS).any(-1).all()):
                break
    return torch.cat(logits, dim=1)


def refine(decoder: Decoder, memory: Tensor, logits: Tensor, limit: int) -> Tensor:
    """Predict `limit` positions again, each from all characters read but its own (cloze mask)."""
    characters = logits[:, :-1].argmax(-1)  # [N, T - 1]
    ids = torch.cat([characters.new_full((len(characters), 1), BOS), characters], dim=1)  # [N, T]
    columns, positions = torch.arange(ids.shape[1], device=ids.device), torch.arange(limit, device=ids.device)
    own = columns == positions[:, None] + 1  # [Q, C]: the character at context column i + 1 is position i's
    ended = (ids == EOS).cumsum(-1) > 0  # [N, C]: from the first EOS on
    hidden = torch.full((), float("-inf"), dtype=memory.dtype, device=memory.device)
    mask = torch.where(own, hidden, 0.0)
    padding = torch.where(ended, hidden, 0.0)
    refined: Tensor = decoder(ids, memory, slice(0, limit), mask, padding)
    return refined
