"""What cameras, scanners and codecs do to a crop: blur, low resolution and block coding, batched.

Blur and resampling are linear along each axis, so a chain of them is one small matrix per axis. Banks of such
matrices are made once; each sample picks one for its rows and one for its columns.
"""

import math

import torch
from torch import Tensor

_LEVELS = 32


def _resample(length: int, detail: float) -> Tensor:
    """[length, length]: average down to length / detail cells and enlarge again, bicubic as small crops are."""
    cells = max(2, round(length / detail))
    edges = torch.linspace(0, length, cells + 1)
    pixels = torch.arange(length, dtype=torch.float32)
    overlap = torch.minimum(edges[1:, None], pixels + 1) - torch.maximum(edges[:-1, None], pixels)
    down = overlap.clamp(min=0)
    down = down / down.sum(1, keepdim=True)
    centre = ((pixels + 0.5) / length * cells - 0.5).clamp(0, cells - 1)
    away = (centre[:, None] - torch.arange(cells)).abs()
    near = (1.5 * away - 2.5) * away * away + 1
    far = ((-0.5 * away + 2.5) * away - 4) * away + 2
    up = torch.where(away < 1, near, torch.where(away < 2, far, 0.0))
    return (up / up.sum(1, keepdim=True)) @ down


def _gaussian(length: int, sigma: float) -> Tensor:
    """[length, length]: Gaussian blur, normalised at the borders."""
    pixels = torch.arange(length, dtype=torch.float32)
    weights = torch.exp(-0.5 * ((pixels[:, None] - pixels) / sigma) ** 2)
    return weights / weights.sum(1, keepdim=True)


def _box(length: int, span: float) -> Tensor:
    """[length, length]: motion blur over `span` pixels."""
    pixels = torch.arange(length, dtype=torch.float32)
    weights = (span / 2 + 0.5 - (pixels[:, None] - pixels).abs()).clamp(0, 1)
    return weights / weights.sum(1, keepdim=True)


def _bank(length: int, longest: float) -> Tensor:
    """[3, levels, length, length]: defocus, few pixels, motion; level k acts over 0.5 .. `longest` pixels."""
    spans = [0.5 * (longest / 0.5) ** (k / (_LEVELS - 1)) for k in range(_LEVELS)]
    defocus = torch.stack([_gaussian(length, 0.5 * s) for s in spans])
    pixels = torch.stack([_resample(length, max(1.0, s)) for s in spans])
    motion = torch.stack([_box(length, 1.4 * s) for s in spans])
    return torch.stack((defocus, pixels, motion))


class Lens:
    """Blurs and coarsens crops of one size.

    Detail is lost evenly in the crop's own proportions: a crop squeezed from a square keeps less detail along
    its rows than one from a long strip.
    """

    def __init__(self, size: tuple[int, int], device: torch.device) -> None:
        self._size = size
        self._longest = (4.0, 14.0)
        self._rows = _bank(size[0], self._longest[0]).to(device)
        self._columns = _bank(size[1], self._longest[1]).transpose(2, 3).contiguous().to(device)

    def apply(self, images: Tensor, span: Tensor, crop_aspect: Tensor, flaws: Tensor) -> Tensor:
        """New images [N, C, H, W] that keep no detail finer than `span` [N] rows (0.5..4) of the crop.

        crop_aspect [N] is the width of the crop over its height before it was squeezed; flaws: int64 [N],
        0 for defocus, 1 for few pixels, 2 for motion.
        """
        n, c, h, w = images.shape
        across = span * (w / h) / crop_aspect
        # A moving camera smears along one axis only: nearly always along the rows.
        along = torch.where(flaws == 2, 0.5, span)
        rows = self._rows[flaws, self._level(along, 0)]
        columns = self._columns[flaws, self._level(across, 1)]
        images = torch.bmm(images.reshape(n, c * h, w), columns).view(n, c, h, w)
        return torch.matmul(rows.unsqueeze(1), images)

    def _level(self, span: Tensor, axis: int) -> Tensor:
        steps = torch.log(span.clamp(min=0.5) / 0.5) / math.log(self._longest[axis] / 0.5)
        return (steps * (_LEVELS - 1)).round().long().clamp(0, _LEVELS - 1)


class BlockCodec:
    """JPEG-like loss: 8x8 cosine transform, quantisation, inverse; as two block-diagonal matrices."""

    def __init__(self, size: tuple[int, int], device: torch.device) -> None:
        k = torch.arange(8, dtype=torch.float32)
        cosine = torch.cos(math.pi * (2 * k[None, :] + 1) * k[:, None] / 16) * 0.5
        cosine[0] /= math.sqrt(2)
        rows, columns = size[0] // 8, size[1] // 8
        self._rows = torch.kron(torch.eye(rows), cosine).to(device)
        self._columns = torch.kron(torch.eye(columns), cosine).to(device)
        # Steps grow with frequency, as in the tables that encoders use.
        steps = 10.0 + 6.0 * (k[:, None] + k[None, :]) + 0.6 * (k[:, None] * k[None, :])
        self._steps = (steps / 255.0).repeat(rows, columns).to(device)

    def apply(self, images: Tensor, coarseness: Tensor) -> Tensor:
        """Quantise images [N, C, H, W] (0..1) with steps scaled by coarseness [N] (1: about quality 60)."""
        steps = self._steps * coarseness.view(-1, 1, 1, 1)
        spectrum = torch.matmul(torch.matmul(self._rows, images - 0.5), self._columns.T)
        spectrum = torch.round(spectrum / steps) * steps
        return torch.matmul(torch.matmul(self._rows.T, spectrum), self._columns) + 0.5
