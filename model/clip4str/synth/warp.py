"""Places a word's mask in its crop: margins, rotation, perspective and bent baselines in one resampling.

Coordinates are in heights of the word's box, with the origin at its centre: the box spans
x within -aspect/2..aspect/2 and y within -1/2..1/2. The crop is a rectangle around the warped box.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from clip4str.synth.kinds import by_kind


@dataclass(frozen=True, slots=True)
class Placement:
    """Where each pixel of each crop falls in the frame of its word.

    x, y: float [N, H, W], in heights of the word's box; aspect: float [N, 1, 1], the box's width over its
    height; crop_aspect: float [N], the same of the whole crop before it is squeezed to H x W.
    """

    x: Tensor
    y: Tensor
    aspect: Tensor
    crop_aspect: Tensor

    def sample(self, masks: Tensor, dx: float | Tensor = 0.0, dy: float | Tensor = 0.0) -> Tensor:
        """Resample masks [N, h, w] (0..1), moved by (dx, dy) word heights; returns [N, 1, H, W], 0..1."""
        grid = torch.stack(((self.x - dx) * (2.0 / self.aspect), (self.y - dy) * 2.0), dim=-1)
        return F.grid_sample(
            masks.unsqueeze(1), grid, mode="bilinear", padding_mode="zeros", align_corners=False
        )

    def take(self, index: Tensor) -> "Placement":
        """The placements of some of the samples."""
        return Placement(self.x[index], self.y[index], self.aspect[index], self.crop_aspect[index])


# Margins as annotators and detectors leave them, in heights of the word's box: top, bottom, left, right, each from
# .. to, for forms, receipts and signs. Below 0 the crop cuts into the word.
_MARGINS = (
    ((0.02, 0.55), (-0.02, 0.42), (-0.05, 0.50), (-0.06, 0.42)),
    ((0.06, 0.36), (0.02, 0.32), (0.04, 0.65), (0.03, 0.60)),
    ((-0.04, 0.32), (-0.04, 0.30), (-0.05, 0.40), (-0.05, 0.40)),
)
# The more, the tighter most crops are.
_TIGHTNESS = (1.1, 1.3, 2.0)


def place(
    aspect: Tensor, size: tuple[int, int], hard: Tensor, kinds: Tensor, rng: torch.Generator
) -> Placement:
    """Draw a placement for every word.

    aspect: float [N]; size: (H, W) of the crops; hard: float [N], 0 (upright, no cuts) .. 1; kinds: int64 [N],
    print is hardly turned or bent.
    """
    n, device = aspect.shape[0], aspect.device
    high, wide = size

    def rand(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=rng, device=device)

    def normal() -> Tensor:
        return torch.randn(n, 1, 1, generator=rng, device=device)

    def share(p: float) -> Tensor:
        return (rand(n, 1, 1) < p).float()

    calm = (by_kind(kinds, 0.12, 0.15, 1.5) * hard).view(n, 1, 1)
    a = aspect.view(n, 1, 1)
    # How far the baseline rises over the whole word bounds the turn, so that long words stay legible.
    rise = normal() * (0.09 + 0.33 * share(0.3)) * calm
    slope = (rise / a.clamp(min=0.8)).clamp(-0.45, 0.45)
    cos = 1.0 / torch.sqrt(1 + slope * slope)
    sin = slope * cos
    slant = (normal() * 0.12 * calm).clamp(-0.4, 0.4)
    bow = (normal() * 0.22 * share(0.2) * calm).clamp(-0.6, 0.6)
    wave = normal() * 0.06 * share(0.1) * calm
    phase, cycles = 6.28 * rand(n, 1, 1), 0.5 + rand(n, 1, 1)
    tilt_x = (normal() * 0.07 * calm).clamp(-0.2, 0.2)
    tilt_y = (normal() * 0.05 * calm).clamp(-0.15, 0.15)

    # The crop encloses the turned, bent and tilted box.
    widen = 1 + tilt_x.abs() + tilt_y.abs()
    half_w = 0.5 * (a * cos + sin.abs() + slant.abs()) * widen
    half_h = (0.5 * (cos + a * sin.abs() * 0.95) + bow.abs() * 0.5 + wave.abs()) * widen
    margins = torch.tensor(_MARGINS, device=device)[kinds]
    low = margins[:, :, 0] * (hard > 0).view(n, 1) + 0.06 * (hard == 0).view(n, 1)
    spread = rand(n, 4) ** by_kind(kinds, *_TIGHTNESS).view(n, 1)
    sides = low + (margins[:, :, 1] - margins[:, :, 0]) * spread
    sides = sides * (1 + 1.2 * hard.view(n, 1) * (rand(n, 1) < 0.08))
    top, bottom, left, right = sides.view(n, 4, 1, 1).unbind(1)
    x_low, x_high = -half_w - left, half_w + right
    y_low, y_high = -half_h - top, half_h + bottom

    u = ((torch.arange(wide, device=device) + 0.5) / wide).view(1, 1, wide)
    v = ((torch.arange(high, device=device) + 0.5) / high).view(1, high, 1)
    depth = 1.0 + tilt_x * (2 * u - 1) + tilt_y * (2 * v - 1)
    x = (x_low + (x_high - x_low) * u) / depth
    y = (y_low + (y_high - y_low) * v) / depth
    x, y = cos * x + sin * y, cos * y - sin * x
    along = 2 * x / a
    y = y + bow * (along * along - 0.5) + wave * torch.sin(along * cycles * 3.14 + phase)
    x = x + slant * y
    crop_aspect = ((x_high - x_low) / (y_high - y_low)).view(n)
    return Placement(x, y, a, crop_aspect)
