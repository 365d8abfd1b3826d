"""What is on the surface that a crop shows: ground, word, shadows, neighbouring words, rules."""

import torch
from torch import Tensor
from torch.nn import functional as F

from clip4str.synth.colours import Colours
from clip4str.synth.kinds import Kind, by_kind
from clip4str.synth.texture import TextureBank
from clip4str.synth.warp import Placement


class Painter:
    """Paints words on grounds, as float [N, 3, H, W] around 0..1; draws from the generator given."""

    def __init__(self, bank: TextureBank, rng: torch.Generator) -> None:
        self._bank, self._rng = bank, rng

    def paint(
        self, masks: Tensor, placement: Placement, colours: Colours, kinds: Tensor, hard: Tensor
    ) -> Tensor:
        """Images of N words: masks float [N, h, w] (0..1), kinds int64 [N], hard float [N] (0..1)."""
        word = self._weigh(placement.sample(masks), placement, kinds, hard)
        images = self._surface(colours, kinds, hard)
        self._add_neighbours(images, masks, placement, colours, kinds, hard)
        self._add_shadows(images, word, colours, kinds, hard)
        images = self._print(images, word, placement, colours, kinds, hard)
        self._add_rules(images, placement, colours, kinds, hard)
        return images

    def _rand(self, *shape: int) -> Tensor:
        return torch.rand(*shape, generator=self._rng, device=self._rng.device)

    def _some(self, shares: Tensor) -> Tensor:
        """Indices of the samples that a share [N] (0..1) falls on."""
        return torch.nonzero(self._rand(shares.shape[0]) < shares).flatten()

    def _weigh(self, word: Tensor, placement: Placement, kinds: Tensor, hard: Tensor) -> Tensor:
        """Bleeding ink, worn strokes, and the dots of printers."""
        some = self._some(by_kind(kinds, 0.4, 0.3, 0.2) * hard)
        if len(some):
            grown = F.max_pool2d(word[some], (3, 3), 1, (1, 1))
            word[some] = word[some].lerp(grown, self._rand(len(some), 1, 1, 1) * 0.7)
        some = self._some(by_kind(kinds, 0.2, 0.15, 0.06) * hard)
        if len(some):
            thin = -F.max_pool2d(-word[some], (1, 3), 1, (0, 1))
            word[some] = word[some].lerp(thin, self._rand(len(some), 1, 1, 1) * 0.5)
        some = self._some(by_kind(kinds, 0.06, 0.4, 0.0) * hard)
        if len(some):
            # Dots a twelfth of the word's height apart, or lines of a worn print head.
            near = placement.take(some)
            m = len(some)
            pitch = 6.28 * (9 + 5 * self._rand(m, 1, 1))
            across = torch.where(self._rand(m, 1, 1) < 0.5, torch.cos(near.x * pitch), 1.0)
            dots = (0.5 + 0.7 * (torch.cos(near.y * pitch) + across)).clamp(0, 1).unsqueeze(1)
            word[some] = word[some] * (1 - self._rand(m, 1, 1, 1) * 0.75 * (1 - dots))
        return word

    def _surface(self, colours: Colours, kinds: Tensor, hard: Tensor) -> Tensor:
        """Grounds: their colour with texture, kept weaker than the word's contrast."""
        n = kinds.shape[0]
        amount = self._rand(n) ** 2 * by_kind(kinds, 0.03, 0.1, 0.9) * hard * colours.contrast
        tint = 1.0 + 0.6 * (self._rand(n, 3) - 0.5) * by_kind(kinds, 0.0, 0.1, 1.0).view(n, 1)
        weight = (amount.view(n, 1) * tint).view(n, 3, 1, 1)
        return torch.addcmul(colours.ground.view(n, 3, 1, 1), self._bank.textures(n), weight)

    def _add_neighbours(
        self,
        images: Tensor,
        masks: Tensor,
        placement: Placement,
        colours: Colours,
        kinds: Tensor,
        hard: Tensor,
    ) -> None:
        """Parts of other words at a border of some crops: beside, above or below, in the same ink."""
        some = self._some(by_kind(kinds, 0.5, 0.25, 0.35) * hard)
        if not len(some):
            return
        m = len(some)
        near = placement.take(some)
        gap = 0.22 + 0.3 * self._rand(m, 1, 1)
        sign = torch.where(self._rand(m, 1, 1) < 0.5, -1.0, 1.0)
        beside = self._rand(m, 1, 1) < 0.4
        other = masks[some.roll(1)]
        dx = torch.where(beside, sign * (near.aspect + gap), (self._rand(m, 1, 1) - 0.5) * near.aspect)
        dy = torch.where(beside, 0.0, sign * (1.0 + gap))
        fragment = near.sample(other, dx, dy)
        images[some] = images[some].lerp(colours.ink[some].view(m, 3, 1, 1), fragment * 0.9)

    def _add_shadows(
        self, images: Tensor, word: Tensor, colours: Colours, kinds: Tensor, hard: Tensor
    ) -> None:
        """Outlines, drop shadows, sides of raised letters and glows under the word on some signs."""
        some = self._some(by_kind(kinds, 0.0, 0.0, 0.5) * hard)
        if not len(some):
            return
        m = len(some)
        ink = word[some]
        grown = F.max_pool2d(ink, (3, 5), 1, (1, 2))
        row, column = self._step()
        shadow = torch.roll(ink, (2 * row, 3 * column), (2, 3))
        side = torch.maximum(torch.roll(ink, (row, 2 * column), (2, 3)), shadow)
        glow = F.avg_pool2d(grown, (5, 9), 1, (2, 4))
        pick = self._rand(m, 1, 1, 1)
        layer = torch.where(
            pick < 0.35, grown, torch.where(pick < 0.55, shadow, torch.where(pick < 0.8, side, glow))
        )
        # The layer lies on the ground's side of the ink, or beyond it: it must not swallow the word.
        ground, fill = colours.ground[some], colours.ink[some]
        beyond = (ground + (ground - fill) * (0.2 + 0.8 * self._rand(m, 1))).clamp(0, 1)
        between = ground.lerp(fill, 0.55 * self._rand(m, 1))
        colour = torch.where(self._rand(m, 1) < 0.6, beyond, between).view(m, 3, 1, 1)
        images[some] = images[some].lerp(colour, layer * (0.4 + 0.6 * self._rand(m, 1, 1, 1)))

    def _step(self) -> tuple[int, int]:
        """A row and a column to move by, -1..1 each, not both 0."""
        step = int(torch.randint(0, 8, (1,), generator=self._rng, device=self._rng.device))
        return divmod(step + step // 4, 3)[0] - 1, (step + step // 4) % 3 - 1

    def _print(
        self,
        images: Tensor,
        word: Tensor,
        placement: Placement,
        colours: Colours,
        kinds: Tensor,
        hard: Tensor,
    ) -> Tensor:
        """The word over its ground. Its ink is uneven; on signs it may shade from top to bottom or be raised."""
        n = images.shape[0]
        amount = self._rand(n) ** 2 * by_kind(kinds, 0.35, 0.5, 0.6) * hard * colours.contrast
        fill = colours.ink.view(n, 3, 1, 1) + self._bank.textures(n) * amount.view(n, 1, 1, 1)
        some = self._some(by_kind(kinds, 0.0, 0.0, 0.3) * hard)
        if len(some):
            m = len(some)
            away = (colours.ink - colours.ground)[some] * (1.4 * self._rand(m, 3) - 0.7)
            height = placement.y[some].clamp(-0.5, 0.5).unsqueeze(1)
            fill[some] += away.view(m, 3, 1, 1) * height
        some = self._some(by_kind(kinds, 0.0, 0.0, 0.25) * hard)
        if len(some):
            row, column = self._step()
            ink = word[some]
            slope = torch.roll(ink, (row, 2 * column), (2, 3)) - torch.roll(ink, (-row, -2 * column), (2, 3))
            depth = (0.15 + 0.35 * self._rand(len(some))) * colours.contrast[some]
            fill[some] += slope * depth.view(-1, 1, 1, 1)
        return torch.lerp(images, fill, word)

    def _add_rules(
        self, images: Tensor, placement: Placement, colours: Colours, kinds: Tensor, hard: Tensor
    ) -> None:
        """Rules under or over some words and box lines beside them, in the word's frame."""
        some = self._some(by_kind(kinds, 0.45, 0.08, 0.12) * hard)
        if not len(some):
            return
        m = len(some)
        near = placement.take(some)
        thick = 0.02 + 0.08 * self._rand(m, 1, 1) ** 2
        level = torch.where(self._rand(m, 1, 1) < 0.8, 0.56, -0.6) * (1 + 0.4 * self._rand(m, 1, 1))
        side = torch.where(self._rand(m, 1, 1) < 0.5, 0.5, -0.5)
        edge = side * (near.aspect + 0.2 + 0.3 * self._rand(m, 1, 1))
        upright = self._rand(m, 1, 1) < torch.where(kinds[some] == Kind.FORM, 0.15, 0.25).view(m, 1, 1)
        distance = torch.where(upright, near.x - edge, near.y - level).abs()
        cover = ((thick - distance) / 0.03 + 0.5).clamp(0, 1).unsqueeze(1)
        images[some] = images[some].lerp(colours.ink[some].view(m, 3, 1, 1), cover * 0.95)
