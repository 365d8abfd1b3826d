"""A bank of grey textures and noises for grounds, light and ink, made once and drawn from cheaply."""

import torch
from torch import Tensor
from torch.nn import functional as F

_EACH = 64
_NOISES = 128


class TextureBank:
    """Textures and noise for crops of one size (H, W); each draw is flipped, shifted or scaled at random."""

    def __init__(self, size: tuple[int, int], rng: torch.Generator, device: torch.device) -> None:
        self._size, self._rng, self._device = size, rng, device
        parts = [
            self._clouds(2, 3),
            self._clouds(2, 3),
            self._clouds(4, 8),
            self._clouds(10, 32),
            self._patches(),
            self._patches() + self._clouds(3, 5) * 0.6,
            self._stripes() * 0.4 + self._clouds(2, 3),
            self._clouds(3, 5) * 0.6 + self._patches() * 0.4 + self._clouds(16, 64) * 0.4,
        ]
        bank = torch.cat(parts)
        bank = bank - bank.mean((1, 2), keepdim=True)
        self._textures = bank / bank.abs().amax((1, 2), keepdim=True).clamp(min=1e-3)
        high, wide = size
        # Noise of a sensor is smooth by the time a small crop has been enlarged; fine grain is the exception.
        fine = self._normal(_NOISES // 4, high, wide)
        smooth = F.avg_pool2d(self._normal(_NOISES // 2, high + 2, wide + 4), (3, 5), 1) * 3.0
        coarse = F.avg_pool2d(self._normal(_NOISES // 4, high + 4, wide + 10), (5, 11), 1) * 5.0
        self._noise = torch.cat((fine, smooth, coarse))

    def textures(self, n: int) -> Tensor:
        """n textures [n, 1, H, W], zero mean, within -1..1."""
        return self._signed(self._textures[self._picks(self._textures.shape[0], n)])

    def noise(self, n: int) -> Tensor:
        """n fields of noise [n, 1, H, W], about unit variance."""
        shift = [int(self._picks(bound, 1)) for bound in self._size]
        return self._signed(torch.roll(self._noise[self._picks(_NOISES, n)], shift, (1, 2)))

    def _signed(self, fields: Tensor) -> Tensor:
        sign = self._picks(2, fields.shape[0]).view(-1, 1, 1) * 2 - 1
        return (fields * sign).unsqueeze(1)

    def _picks(self, bound: int, n: int) -> Tensor:
        return torch.randint(0, bound, (n,), generator=self._rng, device=self._device)

    def _normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self._rng, device=self._device)

    def _uniform(self, *shape: int) -> Tensor:
        return torch.rand(*shape, generator=self._rng, device=self._device)

    def _clouds(self, rows: int, columns: int) -> Tensor:
        coarse = self._normal(_EACH, 1, rows, columns)
        return F.interpolate(coarse, size=self._size, mode="bicubic", align_corners=False)[:, 0]

    def _axes(self) -> tuple[Tensor, Tensor]:
        high, wide = self._size
        v = torch.linspace(-0.5, 0.5, high, device=self._device).view(1, high, 1)
        u = torch.linspace(-0.5 * wide / high, 0.5 * wide / high, wide, device=self._device).view(1, 1, wide)
        return u, v

    def _stripes(self) -> Tensor:
        u, v = self._axes()
        angle = self._uniform(_EACH, 1, 1) * 6.28
        pitch = 2 + 22 * self._uniform(_EACH, 1, 1) ** 2
        wave = torch.sin((u * torch.cos(angle) + v * torch.sin(angle)) * pitch + angle * 7)
        return (wave * (1 + 4 * self._uniform(_EACH, 1, 1))).clamp(-1, 1)

    def _patches(self) -> Tensor:
        """Flat areas with straight edges near the borders: frames, walls, neighbouring signs."""
        u, v = self._axes()
        total = torch.zeros(_EACH, *self._size, device=self._device)
        for _ in range(3):
            angle = torch.round(self._uniform(_EACH, 1, 1) * 4) * 1.5708 + self._normal(_EACH, 1, 1) * 0.15
            reach = 0.5 + 1.5 * torch.cos(angle).abs()
            offset = reach * (0.6 + 0.4 * self._uniform(_EACH, 1, 1))
            edge = (u * torch.cos(angle) + v * torch.sin(angle) - offset) * 25
            total = total + torch.sigmoid(edge) * self._normal(_EACH, 1, 1)
        return total
