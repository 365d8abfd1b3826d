"""Places a word's mask in its crop: margins, rotation, shear, perspective and curved baselines in one resampling.

Coordinates are in heights of the word's box, with the origin at its centre: the box spans
x within -aspect/2..aspect/2 and y within -1/2..1/2. The crop is a rectangle around the warped box.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True, slots=True)
class Placement:
    """Where each pixel of each crop falls in the frame of its word.

    x, y: float [N, H, W], in heights of the word's box; aspect: float [N, 1, 1], width of the box over its height.
    """

    x: Tensor
    y: Tensor
    aspect: Tensor

    def sample(
        self, masks: Tensor, dx: float | Tensor = 0.0, dy: float | Tensor = 0.0, scale: float = 1.0
    ) -> Tensor:
        """Resample masks [N, h, w] (0..1), moved by (dx, dy) word heights and scaled; returns [N, 1, H, W], 0..1."""
        gx = (self.x - dx) * (2.0 / scale) / self.aspect
        gy = (self.y - dy) * (2.0 / scale)
        grid = torch.stack((gx, gy), dim=-1)
        return F.grid_sample(
            masks.unsqueeze(1), grid, mode="bilinear", padding_mode="zeros", align_corners=False
        )

    def take(self, index: Tensor) -> "Placement":
        """The placements of some of the samples."""
        return Placement(self.x[index], self.y[index], self.aspect[index])


def place(
    aspect: Tensor, size: tuple[int, int], difficulty: float, upright: Tensor, rng: torch.Generator
) -> Placement:
    """Draw a placement for every word.

    aspect: float [N]; size: (H, W) of the crops; difficulty: 0 (upright, tight) .. 1;
    upright: bool [N], words of flat documents, which are hardly turned or bent.
    """
    n, device = aspect.shape[0], aspect.device
    high, wide = size

    def uniform(low: float, high_: float) -> Tensor:
        return torch.rand(n, 1, 1, generator=rng, device=device) * (high_ - low) + low

    def normal() -> Tensor:
        return torch.randn(n, 1, 1, generator=rng, device=device)

    def share(p: float) -> Tensor:
        return (torch.rand(n, 1, 1, generator=rng, device=device) < p).float()

    calm = torch.where(upright, 0.12, 1.0).view(n, 1, 1) * difficulty
    a = aspect.view(n, 1, 1)
    # How far the baseline rises over the whole word bounds the turn, so that long words stay legible.
    rise = normal() * (0.10 + 0.30 * share(0.3)) * calm
    slope = (rise / a.clamp(min=0.8)).clamp(-0.45, 0.45)
    cos, sin = 1.0 / torch.sqrt(1 + slope * slope), slope / torch.sqrt(1 + slope * slope)
    slant = normal() * 0.12 * calm
    bow = normal() * 0.22 * share(0.25) * calm
    wave = normal() * 0.06 * share(0.2) * calm
    phase, cycles = uniform(0, 6.28), uniform(0.5, 1.5)
    tilt_x, tilt_y = normal() * 0.10 * calm, normal() * 0.06 * calm

    # The crop: the box of the turned and bent word plus margins, wider at the sides as annotators draw it.
    half_w = 0.5 * (a * cos + sin.abs() + slant.abs())
    half_h = 0.5 * (cos + a * sin.abs() * 0.92) + bow.abs() * 0.5 + wave.abs()
    reach = 0.03 + 0.25 * difficulty * torch.rand(n, 4, generator=rng, device=device) ** 1.7
    reach = reach - 0.05 * difficulty * torch.rand(n, 4, generator=rng, device=device)
    reach = reach * (1 + 1.5 * difficulty * (torch.rand(n, 1, generator=rng, device=device) < 0.08))
    top, bottom, left, right = (reach[:, k].view(n, 1, 1) for k in range(4))
    loose = 1.0 + 0.6 * uniform(0, 1) * difficulty
    x_low, x_high = -half_w - left * loose, half_w + right * loose
    y_low, y_high = -half_h - top, half_h + bottom

    u = (torch.arange(wide, device=device) + 0.5).view(1, 1, wide) / wide
    v = (torch.arange(high, device=device) + 0.5).view(1, high, 1) / high
    x = x_low + (x_high - x_low) * u
    y = y_low + (y_high - y_low) * v
    depth = 1.0 + tilt_x * (2 * u - 1) + tilt_y * (2 * v - 1)
    x, y = x / depth, y / depth
    x, y = cos * x + sin * y, cos * y - sin * x
    along = 2 * x / a
    y = y + bow * (along * along - 0.5) + wave * torch.sin(along * cycles * 3.14 + phase)
    x = x + slant * y
    return Placement(x, y, a)
