"""Ink and ground colours of synthetic word images, far enough apart that the word stays readable."""

from dataclasses import dataclass

import torch
from torch import Tensor

LUMA = (0.299, 0.587, 0.114)


def luminance(colours: Tensor) -> Tensor:
    """Luminance of colours [..., 3] within 0..1, as [...]."""
    return colours @ colours.new_tensor(LUMA)


def least_contrast(difficulty: float) -> float:
    """The smallest luminance difference of ink and ground (0..1): 0.6 at difficulty 0, 0.16 at 1."""
    return 0.6 - 0.44 * difficulty


@dataclass(frozen=True, slots=True)
class Colours:
    """ink, ground: float [N, 3] within 0..1; contrast: their luminance difference, float [N]."""

    ink: Tensor
    ground: Tensor
    contrast: Tensor


def draw_colours(documents: Tensor, thin: Tensor, difficulty: float, rng: torch.Generator) -> Colours:
    """Colours for N samples.

    documents: bool [N], dark grey ink on bright paper; the others take any hue. thin: float [N] within 0..1,
    how little ink the word has: hairlines need more contrast than bold type to be seen.
    """
    n, device = documents.shape[0], documents.device

    def rand(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=rng, device=device)

    least = least_contrast(difficulty) + 0.25 * thin
    # Signs are seen in any light, most often poor; print is black on white, now and then faint.
    skew = torch.where(documents, 0.35, 0.5 + 0.9 * difficulty)
    contrast = least + (0.97 - least) * rand(n) ** skew
    dark_ink = rand(n) < torch.where(documents, 0.97, 0.5)
    low = rand(n) * (1 - contrast)
    paper = (1 - contrast) * (1 - 0.5 * rand(n) ** 4)
    low = torch.where(documents, paper, low)
    vivid = torch.where(documents, 0.1 * rand(n) ** 2, rand(n) ** 1.5)
    dark, bright = _tint(low, vivid, rng), _tint(low + contrast, vivid, rng)
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
