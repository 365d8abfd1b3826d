"""What cameras, scanners and codecs do to a crop: blur, low resolution, JPEG blocks. Separable, batched, seeded.

Blur and resampling are linear along each axis, so a whole chain of them is one small matrix per axis. A bank of such
matrices is made once; each sample picks one for its columns and one for its rows.
"""

import math

import torch
from torch import Tensor


def _resample(length: int, points: float) -> Tensor:
    """[length, length]: area-average down to `points` cells and interpolate back up."""
    cells = max(2, round(points))
    edges = torch.linspace(0, length, cells + 1)
    pixels = torch.arange(length, dtype=torch.float32)
    overlap = torch.minimum(edges[1:, None], pixels + 1) - torch.maximum(edges[:-1, None], pixels)
    down = overlap.clamp(min=0)
    down = down / down.sum(1, keepdim=True)
    centre = ((pixels + 0.5) / length * cells - 0.5).clamp(0, cells - 1)
    up = (1 - (centre[:, None] - torch.arange(cells)).abs()).clamp(min=0)
    return up @ down


def _gaussian(length: int, sigma: float) -> Tensor:
    """[length, length]: Gaussian blur, normalised at the borders."""
    pixels = torch.arange(length, dtype=torch.float32)
    weights = torch.exp(-0.5 * ((pixels[:, None] - pixels) / max(sigma, 1e-3)) ** 2)
    return weights / weights.sum(1, keepdim=True)


def _box(length: int, span: float) -> Tensor:
    """[length, length]: motion blur over `span` pixels."""
    pixels = torch.arange(length, dtype=torch.float32)
    weights = (span / 2 + 0.5 - (pixels[:, None] - pixels).abs()).clamp(0, 1)
    return weights / weights.sum(1, keepdim=True)


class Lens:
    """A bank of blurs and low resolutions for crops of one size; strength grows with the index.

    `levels` steps from none to strong; the strongest leaves about 9 rows of detail. `apply` takes images
    [N, C, H, W] and levels [N] within 0..1 and returns new images of the same shape.
    """

    def __init__(self, size: tuple[int, int], device: torch.device, levels: int = 24) -> None:
        high, wide = size
        rows, columns = [], []
        for kind in range(3):
            for level in range(levels):
                s = (level + 1) / levels
                if kind == 0:  # out of focus
                    rows.append(_gaussian(high, 0.3 + 1.2 * s))
                    columns.append(_gaussian(wide, 0.3 + 2.7 * s))
                elif kind == 1:  # few pixels
                    detail = 1.0 + 2.3 * s
                    rows.append(_resample(high, high / detail))
                    columns.append(_resample(wide, wide / (detail * 1.25)))
                else:  # moved, with a little defocus
                    rows.append(_gaussian(high, 0.3 + 0.5 * s))
                    columns.append(_box(wide, 1 + 6 * s) @ _gaussian(wide, 0.4))
        self._rows = torch.stack(rows).to(device)
        self._columns = torch.stack(columns).transpose(1, 2).contiguous().to(device)
        self._levels = levels

    def apply(self, images: Tensor, strength: Tensor, narrow: Tensor, rng: torch.Generator) -> Tensor:
        """Blur images [N, C, H, W] by strength [N] within 0..1; `narrow` [N] within 0..1 tempers the columns' blur."""
        n, c, h, w = images.shape
        kind = torch.randint(0, 3, (n,), generator=rng, device=images.device)
        level = (strength * self._levels).long().clamp(0, self._levels - 1)
        across = (strength * narrow * self._levels).long().clamp(0, self._levels - 1)
        rows = self._rows[kind * self._levels + level]
        columns = self._columns[kind * self._levels + across]
        images = torch.bmm(images.reshape(n, c * h, w), columns).view(n, c, h, w)
        return torch.matmul(rows.unsqueeze(1), images)


class BlockCodec:
    """JPEG-like loss: 8x8 cosine transform, quantisation, inverse; as two block-diagonal matrices."""

    def __init__(self, size: tuple[int, int], device: torch.device) -> None:
        k = torch.arange(8, dtype=torch.float32)
        cosine = torch.cos(math.pi * (2 * k[None, :] + 1) * k[:, None] / 16) * 0.5
        cosine[0] /= math.sqrt(2)
        high, wide = size
        self._rows = torch.block_diag(*[cosine] * (high // 8)).to(device)
        self._columns = torch.block_diag(*[cosine] * (wide // 8)).to(device)
        # Steps grow with frequency, as in the tables that encoders use.
        steps = 10.0 + 6.0 * (k[:, None] + k[None, :]) + 0.6 * (k[:, None] * k[None, :])
        self._steps = (steps / 255.0).repeat(high // 8, wide // 8).to(device)

    def apply(self, images: Tensor, coarseness: Tensor) -> Tensor:
        """Quantise images [N, C, H, W] (0..1) with steps scaled by coarseness [N] (1: about quality 60)."""
        steps = self._steps * coarseness.view(-1, 1, 1, 1)
        spectrum = self._rows @ (images - 0.5) @ self._columns.T
        spectrum = torch.round(spectrum / steps) * steps
        return self._rows.T @ spectrum @ self._columns + 0.5
