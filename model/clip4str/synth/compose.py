"""Turns glyph masks into word crops: colours, surfaces, shadows, neighbours, lines, warps and degradation.

Everything is batched torch on one device and drawn from one generator; there is no loop over samples.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from clip4str.synth.degrade import BlockCodec, Lens
from clip4str.synth.texture import TextureBank
from clip4str.synth.warp import Placement, place

# Share of the samples that look like scanned or photographed documents; the others look like signs and labels.
_DOCUMENTS = 0.35
_LUMA = (0.299, 0.587, 0.114)


def luminance(colours: Tensor) -> Tensor:
    """Luminance of colours [N, 3] within 0..1, as [N]."""
    return colours @ colours.new_tensor(_LUMA)


@dataclass(frozen=True, slots=True)
class Colours:
    """Ink and ground of each sample: float [N, 3] within 0..1, and their luminance difference [N]."""

    ink: Tensor
    ground: Tensor

    @property
    def contrast(self) -> Tensor:
        return (luminance(self.ink) - luminance(self.ground)).abs()


class Composer:
    """Makes crops uint8 [N, 3, H, W] from masks; reproducible from the seed and the order of calls.

    `difficulty` within 0..1 scales every disturbance: 0 gives plain, upright, high-contrast words, 1 the full range.
    """

    def __init__(
        self, size: tuple[int, int] = (32, 128), *, seed: int, device: str | torch.device = "cpu"
    ) -> None:
        if size[0] % 8 or size[1] % 8:
            raise ValueError(f"size must be multiples of 8 (height, width), got {size}")
        self._size = size
        self._device = torch.device(device)
        self._rng = torch.Generator(self._device).manual_seed(seed)
        self._bank = TextureBank(size, self._rng, self._device)
        self._lens = Lens(size, self._device)
        self._codec = BlockCodec(size, self._device)

    @torch.no_grad()
    def compose(self, masks: Tensor, aspects: Tensor, difficulty: float = 1.0) -> Tensor:
        """Crops uint8 [N, 3, H, W] from masks uint8 [N, h, w] and their aspects float [N] (width / height).

        Raises ValueError if difficulty is not within 0..1.
        """
        if not 0.0 <= difficulty <= 1.0:
            raise ValueError(f"difficulty must be within 0..1, got {difficulty}")
        masks = masks.to(self._device).float() / 255.0
        aspects = aspects.to(self._device, torch.float32)
        documents = self._rand(masks.shape[0]) < _DOCUMENTS
        placement = place(aspects, self._size, difficulty, documents, self._rng)
        ink = self._weigh(placement.sample(masks), difficulty)
        colours = self.draw_colours(documents, difficulty)
        ground = self._surface(colours, documents, difficulty)
        ground = self._neighbours(ground, masks, placement, colours, difficulty)
        ground = self._shade(ground, ink, documents, difficulty)
        images = self._print(ground, ink, colours, difficulty)
        images = self._lines(images, placement, colours, documents, difficulty)
        images = self._photograph(images, masks, colours, documents, difficulty)
        return (images * 255.0 + 0.5).clamp_(0, 255).to(torch.uint8)

    # -- drawing -------------------------------------------------------------------------------------------

    def _rand(self, *shape: int) -> Tensor:
        return torch.rand(*shape, generator=self._rng, device=self._device)

    def _randn(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self._rng, device=self._device)

    def _some(self, n: int, share: float) -> Tensor:
        """Indices of a random share of n samples; its count is rounded at random, so that small shares occur."""
        count = min(n, int(share * n + float(torch.rand(1, generator=self._rng, device=self._device))))
        return torch.randperm(n, generator=self._rng, device=self._device)[:count]

    def draw_colours(self, documents: Tensor, difficulty: float) -> Colours:
        """Ink and ground colours for samples [N]; their luminance differs by at least 0.16 (0.6 at difficulty 0)."""
        n = documents.shape[0]
        least = 0.6 - 0.44 * difficulty
        reach = self._rand(n) ** (0.5 + 0.6 * difficulty)
        contrast = least + (0.95 - least) * reach
        dark_ink = self._rand(n) < torch.where(documents, 0.985, 0.5)
        # Paper is bright: on documents the ground's luminance is high and low contrast means faint ink.
        low = self._rand(n) * (1 - contrast)
        low = torch.where(documents & dark_ink, 1 - contrast - self._rand(n) ** 3 * (1 - contrast) * 0.8, low)
        dark, bright = (
            self._tinted(low, documents, difficulty),
            self._tinted(low + contrast, documents, difficulty),
        )
        swap = dark_ink.view(n, 1)
        return Colours(torch.where(swap, dark, bright), torch.where(swap, bright, dark))

    def _tinted(self, luma: Tensor, documents: Tensor, difficulty: float) -> Tensor:
        """Colours [N, 3] of the luminance given, with a random hue as vivid as it allows."""
        n = luma.shape[0]
        hue = self._rand(n, 3)
        hue = hue - luminance(hue).view(n, 1)
        vivid = torch.where(documents, 0.06 * self._rand(n), self._rand(n) ** 0.7).view(n, 1)
        grey = luma.view(n, 1)
        # The largest multiple of the hue that stays within 0..1 keeps the luminance exact.
        room = torch.where(hue > 0, (1 - grey) / hue.clamp(min=1e-4), grey / (-hue).clamp(min=1e-4))
        return grey + hue * (room.amin(1, keepdim=True).clamp(max=2.0) * vivid)

    def _weigh(self, ink: Tensor, difficulty: float) -> Tensor:
        """Bleeding and faint strokes on some samples."""
        n = ink.shape[0]
        bleeding, faint = self._some(n, 0.10 * difficulty), self._some(n, 0.06 * difficulty)
        if len(bleeding):
            grown = F.max_pool2d(ink[bleeding], 3, 1, 1)
            amount = self._rand(len(bleeding), 1, 1, 1) * 0.7
            ink[bleeding] = ink[bleeding].lerp(grown, amount)
        if len(faint):
            thin = -F.max_pool2d(-ink[faint], (1, 3), 1, (0, 1))
            ink[faint] = ink[faint].lerp(thin, self._rand(len(faint), 1, 1, 1) * 0.5)
        return ink

    # -- layers --------------------------------------------------------------------------------------------

    def _surface(self, colours: Colours, documents: Tensor, difficulty: float) -> Tensor:
        """Grounds [N, 3, H, W]: the ground colour with texture, kept weaker than the word's contrast."""
        n = documents.shape[0]
        amount = self._rand(n) ** 2.5 * torch.where(documents, 0.12, 0.7) * difficulty * colours.contrast
        tint = 1.0 + 0.5 * self._randn(n, 3) * torch.where(documents, 0.1, 1.0).view(n, 1)
        texture = self._bank.textures(n)
        weight = (amount.view(n, 1) * tint).view(n, 3, 1, 1)
        return torch.addcmul(colours.ground.view(n, 3, 1, 1), texture, weight)

    def _neighbours(
        self, ground: Tensor, masks: Tensor, placement: Placement, colours: Colours, difficulty: float
    ) -> Tensor:
        """Parts of other words at the borders of some crops: beside, above or below, in the same ink."""
        n = ground.shape[0]
        some = self._some(n, 0.30 * difficulty)
        if not len(some):
            return ground
        m = len(some)
        other = masks[some.roll(1)]
        near = placement.take(some)
        gap = (0.12 + 0.25 * self._rand(m, 1, 1)) * 1.0
        side = torch.randint(0, 4, (m, 1, 1), generator=self._rng, device=self._device)
        sign = (side % 2 * 2 - 1).float()
        beside = (side < 2).float()
        dx = sign * beside * (near.aspect + gap) + (1 - beside) * (self._rand(m, 1, 1) - 0.5) * near.aspect
        dy = (1 - beside) * sign * (1.0 + gap)
        fragment = near.sample(other, dx, dy)
        ground[some] = ground[some].lerp(colours.ink[some].view(m, 3, 1, 1), fragment * 0.9)
        return ground

    def _shade(self, ground: Tensor, ink: Tensor, documents: Tensor, difficulty: float) -> Tensor:
        """Outlines, drop shadows and glows under the word on some signs."""
        n = ground.shape[0]
        some = self._some(n, 0.22 * difficulty)
        if not len(some):
            return ground
        m = len(some)
        word = ink[some]
        grown = F.max_pool2d(word, (3, 5), 1, (1, 2))
        row, column = (int(v) for v in torch.randint(-2, 3, (2,), generator=self._rng, device=self._device))
        shadow = torch.roll(word, (row, column * 2), (2, 3))
        glow = F.avg_pool2d(grown, (5, 9), 1, (2, 4))
        pick = torch.randint(0, 3, (m, 1, 1, 1), generator=self._rng, device=self._device)
        layer = torch.where(pick == 0, grown, torch.where(pick == 1, shadow, glow))
        colour = self._rand(m, 3, 1, 1) * torch.where(self._rand(m, 1, 1, 1) < 0.5, 0.3, 1.0)
        strength = (0.3 + 0.7 * self._rand(m, 1, 1, 1)) * (~documents[some]).view(m, 1, 1, 1)
        # A shadow close to the ink would swallow the word: it is pushed to the ground's side of the ink.
        return ground.index_copy(0, some, ground[some].lerp(colour.expand(m, 3, 1, 1), layer * strength))

    def _print(self, ground: Tensor, ink: Tensor, colours: Colours, difficulty: float) -> Tensor:
        """The word over its ground; the ink itself is uneven on some samples."""
        n = ground.shape[0]
        fill = colours.ink.view(n, 3, 1, 1)
        amount = (self._rand(n, 1, 1, 1) ** 3 * 0.45 * difficulty) * colours.contrast.view(n, 1, 1, 1)
        uneven = fill + self._bank.textures(n) * amount
        return torch.lerp(ground, uneven, ink)

    def _lines(
        self, images: Tensor, placement: Placement, colours: Colours, documents: Tensor, difficulty: float
    ) -> Tensor:
        """Rules under or over the word and vertical box lines, in the word's frame."""
        n = images.shape[0]
        some = self._some(n, 0.10 * difficulty)
        if not len(some):
            return images
        m = len(some)
        near = placement.take(some)
        thick = 0.02 + 0.06 * self._rand(m, 1, 1) ** 2
        level = torch.where(self._rand(m, 1, 1) < 0.75, 0.56, -0.56) * (1 + 0.25 * self._rand(m, 1, 1))
        beside = torch.where(self._rand(m, 1, 1) < 0.5, 1.0, -1.0) * (
            near.aspect / 2 + 0.08 + 0.1 * self._rand(m, 1, 1)
        )
        upright = self._rand(m, 1, 1) < 0.25
        distance = torch.where(upright, near.x - beside, near.y - level).abs()
        cover = ((thick - distance) / 0.03 + 0.5).clamp(0, 1).unsqueeze(1)
        images[some] = images[some].lerp(colours.ink[some].view(m, 3, 1, 1), cover * 0.95)
        return images

    # -- camera --------------------------------------------------------------------------------------------

    def _photograph(
        self, images: Tensor, masks: Tensor, colours: Colours, documents: Tensor, difficulty: float
    ) -> Tensor:
        """Light, blur, noise, scanning and coding."""
        n = images.shape[0]
        light = self._some(n, 0.35 * difficulty)
        if len(light):
            m = len(light)
            gain = 1 + self._bank.textures(m) * (self._rand(m, 1, 1, 1) * 0.35)
            images[light] = images[light] * gain
        soft = self._some(n, 0.62 * difficulty)
        if len(soft):
            strength = self._rand(len(soft)) ** 1.4
            narrow = 0.35 + 0.65 * self._rand(len(soft))
            images[soft] = self._lens.apply(images[soft], strength, narrow, self._rng)
        scanned = self._some(n, 0.07 * difficulty)
        if len(scanned):
            images[scanned] = self._scan(images[scanned], colours.contrast[scanned])
        noisy = self._some(n, 0.55 * difficulty)
        if len(noisy):
            m = len(noisy)
            sigma = self._rand(m) ** 2 * 0.16 * (0.15 + colours.contrast[noisy])
            images[noisy] = images[noisy] + self._bank.noise(m) * sigma.view(m, 1, 1, 1)
        coded = self._some(n, 0.3 * difficulty)
        if len(coded):
            coarse = 0.4 + 1.8 * self._rand(len(coded)) ** 2 * (0.3 + colours.contrast[coded])
            images[coded] = self._codec.apply(images[coded], coarse)
        return images

    def _scan(self, images: Tensor, contrast: Tensor) -> Tensor:
        """Bilevel scanning: noise, then a steep threshold between ink and ground."""
        n = images.shape[0]
        grey = (images * images.new_tensor(_LUMA).view(1, 3, 1, 1)).sum(1, keepdim=True)
        grey = grey + self._bank.noise(n) * (0.10 * contrast).view(n, 1, 1, 1)
        low, high = grey.amin((2, 3), keepdim=True), grey.amax((2, 3), keepdim=True)
        threshold = low + (high - low) * (0.4 + 0.2 * self._rand(n, 1, 1, 1))
        return torch.sigmoid((grey - threshold) * 25 / (high - low).clamp(min=0.05)).expand(n, 3, -1, -1)
