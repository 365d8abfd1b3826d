"""How a painted surface comes to be pixels: light, scanning, lost detail, noise and coding."""

import torch
from torch import Tensor

from clip4str.synth.colours import LUMA
from clip4str.synth.degrade import BlockCodec, Lens
from clip4str.synth.kinds import Kind, by_kind
from clip4str.synth.texture import TextureBank


class Camera:
    """Changes images in place; draws from the generator given."""

    def __init__(self, size: tuple[int, int], bank: TextureBank, rng: torch.Generator) -> None:
        self._bank, self._rng = bank, rng
        self._lens = Lens(size, rng.device)
        self._codec = BlockCodec(size, rng.device)

    def take(
        self, images: Tensor, crop_aspect: Tensor, contrast: Tensor, kinds: Tensor, firm: Tensor, hard: Tensor
    ) -> None:
        """Photograph or scan images [N, 3, H, W]; firm float [N] (0..1), how much blur the word stands."""
        # Exposure and haze: photographs of signs are seldom as bright, or as black, as what they show.
        exposure = 1 - by_kind(kinds, 0.0, 0.05, 0.5) * hard * self._rand(len(images))
        haze = by_kind(kinds, 0.0, 0.0, 0.15) * hard * self._rand(len(images))
        images.mul_(exposure.view(-1, 1, 1, 1)).add_(haze.view(-1, 1, 1, 1))
        contrast = contrast * exposure
        firm = firm * (0.4 + contrast).clamp(max=1)
        lit = self._some(by_kind(kinds, 0.1, 0.5, 0.6) * hard)
        if len(lit):
            amount = self._rand(len(lit)) * by_kind(kinds[lit], 0.05, 0.12, 0.4)
            images[lit] *= 1 + self._bank.textures(len(lit)) * amount.view(-1, 1, 1, 1)
        scanned = self._some(by_kind(kinds, 0.8, 0.25, 0.0) * (hard > 0))
        if len(scanned):
            images[scanned] = self._scan(images[scanned], contrast[scanned])
        self._soften(images, crop_aspect, kinds, firm, hard)
        noisy = self._some(by_kind(kinds, 0.15, 0.5, 0.7) * hard)
        if len(noisy):
            sigma = self._rand(len(noisy)) ** 2 * by_kind(kinds[noisy], 0.05, 0.06, 0.1)
            sigma = sigma * (0.05 + contrast[noisy])
            images[noisy] += self._bank.noise(len(noisy)) * sigma.view(-1, 1, 1, 1)
        coded = self._some(by_kind(kinds, 0.1, 0.6, 0.6) * hard)
        if len(coded):
            coarseness = 0.3 + 1.3 * self._rand(len(coded)) ** 2 * (0.2 + contrast[coded])
            images[coded] = self._codec.apply(images[coded], coarseness)

    def _rand(self, *shape: int) -> Tensor:
        return torch.rand(*shape, generator=self._rng, device=self._rng.device)

    def _some(self, shares: Tensor) -> Tensor:
        """Indices of the samples that a share [N] (0..1) falls on."""
        return torch.nonzero(self._rand(shares.shape[0]) < shares).flatten()

    def _soften(self, images: Tensor, crop_aspect: Tensor, kinds: Tensor, firm: Tensor, hard: Tensor) -> None:
        """Few pixels for scans, defocus, few pixels or motion for photographs."""
        shares = torch.where(kinds == Kind.FORM, 0.92, by_kind(kinds, 0.0, 0.85, 0.97) * (0.4 + 0.6 * hard))
        soft = self._some(shares * (hard > 0))
        if not len(soft):
            return
        kind, u = kinds[soft], self._rand(len(soft))
        # Rows of the crop to one row of the scan: pages come 14 to 24 pixels a line, receipts at 20 and more.
        print_span = torch.where(kind == Kind.FORM, 1.3 + 1.0 * u, 1.0 + 1.6 * u)
        sign_span = 0.8 + (1.5 + 2.4 * hard[soft]) * u * firm[soft]
        span = torch.where(kind == Kind.SIGN, sign_span, print_span)
        v = self._rand(len(soft))
        photographed = torch.where(v < 0.45, 0, torch.where(v < 0.88, 1, 2))
        flaws = torch.where((kind == Kind.SIGN) | (v < 0.2), photographed, 1)
        images[soft] = self._lens.apply(images[soft], span, crop_aspect[soft], flaws)

    def _scan(self, images: Tensor, contrast: Tensor) -> Tensor:
        """Bilevel scanning: a little noise, then a steep threshold between ink and ground."""
        n = images.shape[0]
        grey = (images * images.new_tensor(LUMA).view(1, 3, 1, 1)).sum(1, keepdim=True)
        grey = grey + self._bank.noise(n) * (0.1 * self._rand(n) * contrast).view(n, 1, 1, 1)
        low, high = grey.amin((2, 3), keepdim=True), grey.amax((2, 3), keepdim=True)
        threshold = low + (high - low) * (0.4 + 0.3 * self._rand(n, 1, 1, 1))
        return torch.sigmoid((grey - threshold) * 18 / (high - low).clamp(min=0.05)).expand(n, 3, -1, -1)
