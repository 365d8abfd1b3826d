"""What is read to measure speed: a model, and crops with words of a known length in it.

Speed depends on what is read: longer words take more steps. The default model reads drawn words. A published size of
which no checkpoint is at hand gets made-up weights, which "read" a word of `WORD_LENGTH` characters in anything:
other ones in other crops, and much the same in both branches, as trained weights do.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from PIL import Image, ImageDraw, ImageFont

from clip4str import checkpoint
from clip4str.charset import EOS
from clip4str.checkpoint import Checkpoint, CheckpointError
from clip4str.config import VARIANTS, ModelConfig
from clip4str.model import CLIP4STR, init_decoder

WORD_LENGTH = 6
"""Characters of a made-up word; the mean of the drawn ones is near it too."""

_TEXT = """Coffee street 24h garden, OPEN The road STATION 1984 in a Invoice total: $12.50 Mountain exit Restaurant
No. bread 24h MUSEUM river window University 7.30pm fresh Hotel market parking by Internationally"""


@dataclass(frozen=True, slots=True)
class Workload:
    """A model's weights, and what they are: "trained" or "made up"."""

    checkpoint: Checkpoint
    weights: str

    def images(self, count: int) -> list[Image.Image]:
        """Word crops, no two alike."""
        if self.weights == "trained":
            return [_drawn(index) for index in range(count)]
        return [_coarse(index) for index in range(count)]


def workload(model: str) -> Workload:
    """The model of this name or path; a variant's name stands for made-up weights where no checkpoint is fetched.

    Raises CheckpointError.
    """
    try:
        return Workload(checkpoint.load(model), "trained")
    except CheckpointError:
        if model not in VARIANTS:
            raise
    config = VARIANTS[model]
    return Workload(Checkpoint(model, "made up", config, made_up(config)), "made up")


@torch.no_grad()
def made_up(config: ModelConfig, length: int = WORD_LENGTH) -> dict[str, torch.Tensor]:
    """Weights with which both branches read `length` characters in any crop, other characters in another crop."""
    torch.manual_seed(0)
    model = CLIP4STR(config)
    decoder = model.visual_decoder
    init_decoder(decoder)
    layer = decoder.layer
    # What is seen decides, and what was read before counts for little, as between trained branches that agree.
    layer.cross_attn.in_proj_weight.mul_(4)
    layer.cross_attn.out_proj.weight.mul_(4)
    layer.self_attn.out_proj.weight.mul_(0.1)
    model.clip_model.text_projection.mul_(0.01)  # so that the caption changes little
    # The first dimension is kept free to say where the word ends.
    for linear in (layer.cross_attn.out_proj, layer.self_attn.out_proj, layer.linear2):
        linear.weight[0] = 0
    decoder.pos_queries.mul_(10)
    decoder.pos_queries[0, :, 0] = -3
    decoder.pos_queries[0, length:, 0] = 3
    decoder.head.weight.mul_(20)
    decoder.head.weight[:, 0] = 0
    decoder.head.weight[EOS] = 0
    decoder.head.weight[EOS, 0] = 100
    model.cross_decoder.load_state_dict(decoder.state_dict())
    return model.state_dict()


def _drawn(index: int) -> Image.Image:
    words = _TEXT.split()
    word = words[index % len(words)]
    font = ImageFont.load_default(size=28 + index % 9)
    left, top, right, bottom = (round(edge) for edge in font.getbbox(word))
    shade = 150 + 7 * index % 100
    image = Image.new("RGB", (right - left + 12, bottom - top + 10), (shade, 255 - index % 40, shade + 5))
    ImageDraw.Draw(image).text((6 - left, 5 - top), word, fill=(index % 60, 20, 40), font=font)
    return image


def _coarse(index: int) -> Image.Image:
    generator = torch.Generator().manual_seed(index)
    blocks = torch.randint(256, (8, 8, 3), dtype=torch.uint8, generator=generator)
    return Image.fromarray(blocks.numpy()).resize((128, 32), Image.Resampling.NEAREST)
