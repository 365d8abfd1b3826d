"""Ink and ground colours of synthetic word images, far enough apart that the word stays readable."""

from dataclasses import dataclass

import torch
from torch import Tensor

from clip4str.synth.kinds import Kind, by_kind

LUMA = (0.299, 0.587, 0.114)


def luminance(colours: Tensor) -> Tensor:
    """Luminance of colours [..., 3] within 0..1, as [...]."""
    return colours @ colours.new_tensor(LUMA)


def least_contrast(hard: Tensor) -> Tensor:
    """The smallest luminance difference of ink and ground (0..1): 0.6 where hard is 0, 0.16 where it is 1."""
    return 0.6 - 0.44 * hard


@dataclass(frozen=True, slots=True)
class Colours:
    """ink, ground: float [N, 3] within 0..1; contrast: their luminance difference, float [N]."""

    ink: Tensor
    ground: Tensor
    contrast: Tensor


def draw_colours(kinds: Tensor, thin: Tensor, hard: Tensor, rng: torch.Generator) -> Colours:
    """Colours for N samples.

    kinds: int64 [N]; print is dark grey ink on bright paper, signs take any hue. thin: float [N] within 0..1,
    how little ink the word has: hairlines need more contrast than bold type to be seen. hard: float [N], 0..1.
    """
    n, device = kinds.shape[0], kinds.device

    def rand(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=rng, device=device)

    sign = kinds == Kind.SIGN
    least = least_contrast(hard) + 0.25 * thin
    # Signs are seen in any light, most often poor; print is black on white, now and then faint.
    skew = torch.where(sign, 0.9 + 1.0 * hard, by_kind(kinds, 0.09, 0.5, 0.0))
    contrast = least + (by_kind(kinds, 0.98, 0.98, 0.92) - least) * rand(n) ** skew
    dark_ink = rand(n) < by_kind(kinds, 0.985, 0.995, 0.42)
    low = rand(n) ** 0.9 * (1 - contrast)
    paper = (1 - contrast) * (1 - by_kind(kinds, 0.15, 0.6, 0.0) * rand(n) ** 3)
    low = torch.where(sign, low, paper)
    vivid = torch.where(sign, rand(n) ** 0.9, 0.04 * rand(n) ** 2)
    dark, bright = _tint(low, vivid, rng), _tint(low + contrast, vivid * (0.3 + 0.7 * rand(n)), rng)
    swap = dark_ink.view(n, 1)
    return Colours(torch.where(swap, dark, bright), torch.where(swap, bright, dark), contrast)


def _tint(luma: Tensor, vivid: Tensor, rng: torch.Generator) -> Tensor:
    """Colours [N, 3] of exactly the luminance [N] given, in a random hue as vivid [N] (0..1) as asked."""
    n = luma.shape[0]
    hue = torch.rand(n, 3, generator=rng, device=luma.device)
    hue = hue - luminance(hue).view(n, 1)
    grey = luma.view(n, 1)
    # The largest multiple of the hue that stays within 0..1 keeps the luminance exact.
    room = torch.where(hue > 0, (1 - grey) / hue.clamp(min=1e-4), grey / (-hue).clamp(min=1e-4))
    return grey + hue * (room.amin(1, keepdim=True).clamp(max=1.5) * vivid.view(n, 1))
