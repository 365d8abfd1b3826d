"""A bank of grey textures and noises for backgrounds, light and surfaces, made once and drawn from cheaply."""

import torch
from torch import Tensor
from torch.nn import functional as F


class TextureBank:
    """Textures [count, H, W] of zero mean, most within -1..1: gradients, clouds, grain, stripes, patches.

    `textures(n)` and `noise(n)` draw n of them at random, flipped and rolled, as [n, 1, H, W].
    """

    def __init__(
        self, size: tuple[int, int], rng: torch.Generator, device: torch.device, count: int = 384
    ) -> None:
        self._size, self._rng, self._device = size, rng, device
        each = count // 6
        parts = [
            self._clouds(each, 2, 3),
            self._clouds(each, 4, 8),
            self._clouds(each, 10, 32),
            self._patches(each),
            self._stripes(each),
            self._clouds(each, 3, 5) * 0.6 + self._patches(each) * 0.3 + self._clouds(each, 16, 64) * 0.4,
        ]
        bank = torch.cat(parts)
        bank = bank - bank.mean((1, 2), keepdim=True)
        self._textures = bank / bank.abs().amax((1, 2), keepdim=True).clamp(min=1e-3)
        white = self._normal(128, *size)
        blurred = F.avg_pool2d(self._normal(128, size[0] + 2, size[1] + 2), 3, 1) * 2.0
        self._noise = torch.cat((white, blurred))

    def textures(self, n: int) -> Tensor:
        """n textures [n, 1, H, W], zero mean, within -1..1."""
        return self._draw(self._textures, n)

    def noise(self, n: int) -> Tensor:
        """n fields of noise [n, 1, H, W], about unit variance."""
        return self._draw(self._noise, n)

    def _draw(self, bank: Tensor, n: int) -> Tensor:
        index = torch.randint(0, bank.shape[0], (n,), generator=self._rng, device=self._device)
        rows, columns = (
            int(torch.randint(0, bound, (1,), generator=self._rng, device=self._device))
            for bound in self._size
        )
        fields = torch.roll(bank[index], (rows, columns), (1, 2)) if bank is self._noise else bank[index]
        sign = torch.randint(0, 2, (n, 1, 1), generator=self._rng, device=self._device) * 2 - 1
        return (fields * sign).unsqueeze(1)

    def _normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self._rng, device=self._device)

    def _uniform(self, *shape: int) -> Tensor:
        return torch.rand(*shape, generator=self._rng, device=self._device)

    def _clouds(self, n: int, rows: int, columns: int) -> Tensor:
        coarse = self._normal(n, 1, rows, columns)
        return F.interpolate(coarse, size=self._size, mode="bicubic", align_corners=False)[:, 0]

    def _axes(self) -> tuple[Tensor, Tensor]:
        high, wide = self._size
        v = torch.linspace(-0.5, 0.5, high, device=self._device).view(1, high, 1)
        u = torch.linspace(-0.5 * wide / high, 0.5 * wide / high, wide, device=self._device).view(1, 1, wide)
        return u, v

    def _stripes(self, n: int) -> Tensor:
        u, v = self._axes()
        angle = self._uniform(n, 1, 1) * 6.28
        pitch = 2 + 22 * self._uniform(n, 1, 1) ** 2
        wave = torch.sin((u * torch.cos(angle) + v * torch.sin(angle)) * pitch + angle * 7)
        return (wave * (1 + 4 * self._uniform(n, 1, 1))).clamp(-1, 1)

    def _patches(self, n: int) -> Tensor:
        """Flat areas with hard straight edges: frames, walls, neighbouring signs."""
        u, v = self._axes()
        total = torch.zeros(n, *self._size, device=self._device)
        for _ in range(3):
            angle = torch.round(self._uniform(n, 1, 1) * 4) * 1.5708 + self._normal(n, 1, 1) * 0.2
            offset = (self._uniform(n, 1, 1) - 0.5) * 3.0
            edge = (u * torch.cos(angle) + v * torch.sin(angle) - offset) * 20
            total = total + torch.sigmoid(edge) * self._normal(n, 1, 1)
        return total
