"""Turns glyph masks into word crops: colours, surfaces, shadows, neighbours, lines, warps and degradation.

Everything is batched torch on one device and drawn from one generator; there is no loop over samples.
Disturbances fall on random shares of a batch, so that each costs only what it is used.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from clip4str.synth.colours import LUMA, Colours, draw_colours
from clip4str.synth.degrade import BlockCodec, Lens
from clip4str.synth.texture import TextureBank
from clip4str.synth.warp import Placement, place

# Share of the samples that look like scanned or photographed documents; the others look like signs.
_DOCUMENTS = 0.4


class Composer:
    """Makes crops uint8 [N, 3, H, W] from masks; reproducible from the seed and the order of calls.

    `difficulty` within 0..1 scales every disturbance: 0 gives plain, upright, high-contrast words.
    Raises ValueError if the size is not a multiple of 8 both ways.
    """

    def __init__(self, size: tuple[int, int] = (32, 128), *, seed: int, device: str = "cpu") -> None:
        if size[0] % 8 or size[1] % 8:
            raise ValueError(f"size (height, width) must be multiples of 8, got {size}")
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
        # Thin or faint words do not survive the blur that bold ones do.
        bold = (masks.mean((1, 2)) / 0.35).clamp(0, 1)
        colours = draw_colours(documents, 1 - bold, difficulty, self._rng)
        firm = bold.clamp(min=0.45) * (0.5 + colours.contrast).clamp(max=1)
        word = self._weigh(placement.sample(masks), placement, documents, difficulty)
        images = self._surface(colours, documents, difficulty)
        self._add_neighbours(images, masks, placement, colours, difficulty)
        self._add_shadows(images, word, colours, documents, difficulty)
        images = self._print(images, word, colours, documents, difficulty)
        self._add_lines(images, placement, colours, difficulty)
        self._photograph(images, placement, colours, documents, firm, difficulty)
        return (images * 255.0 + 0.5).clamp_(0, 255).to(torch.uint8)

    # -- random draws --------------------------------------------------------------------------------------

    def _rand(self, *shape: int) -> Tensor:
        return torch.rand(*shape, generator=self._rng, device=self._device)

    def _some(self, n: int, share: float) -> Tensor:
        """Indices of a random share of n samples; the count is rounded at random, so small shares occur."""
        count = min(n, int(share * n + float(self._rand(1))))
        return torch.randperm(n, generator=self._rng, device=self._device)[:count]

    # -- layers; `_add_*` paint on the images [N, 3, H, W] given --------------------------------------------

    def _weigh(self, word: Tensor, placement: Placement, documents: Tensor, difficulty: float) -> Tensor:
        """Bleeding and thin strokes on some words, dots of a printer on a few."""
        n = word.shape[0]
        some = self._some(n, 0.12 * difficulty)
        if len(some):
            grown = F.max_pool2d(word[some], (3, 3), 1, (1, 1))
            word[some] = word[some].lerp(grown, self._rand(len(some), 1, 1, 1) * 0.7)
        some = self._some(n, 0.06 * difficulty)
        if len(some):
            thin = -F.max_pool2d(-word[some], (1, 3), 1, (0, 1))
            word[some] = word[some].lerp(thin, self._rand(len(some), 1, 1, 1) * 0.5)
        some = self._some(n, 0.06 * difficulty)
        if len(some):
            # Dots a twelfth of the word's height apart, or lines of a worn print head.
            near = placement.take(some)
            m = len(some)
            pitch = 6.28 * (9 + 5 * self._rand(m, 1, 1))
            across = torch.where(self._rand(m, 1, 1) < 0.5, torch.cos(near.x * pitch), 1.0)
            dots = (0.5 + 0.7 * (torch.cos(near.y * pitch) + across)).clamp(0, 1).unsqueeze(1)
            depth = self._rand(m, 1, 1, 1) * 0.7 * documents[some].view(m, 1, 1, 1)
            word[some] = word[some] * (1 - depth * (1 - dots))
        return word

    def _surface(self, colours: Colours, documents: Tensor, difficulty: float) -> Tensor:
        """Grounds [N, 3, H, W]: the ground's colour with texture, kept weaker than the word's contrast."""
        n = documents.shape[0]
        amount = self._rand(n) ** 2 * torch.where(documents, 0.06, 0.75) * difficulty * colours.contrast
        tint = 1.0 + 0.6 * (self._rand(n, 3) - 0.5) * torch.where(documents, 0.1, 1.0).view(n, 1)
        weight = (amount.view(n, 1) * tint).view(n, 3, 1, 1)
        return torch.addcmul(colours.ground.view(n, 3, 1, 1), self._bank.textures(n), weight)

    def _add_neighbours(
        self, images: Tensor, masks: Tensor, placement: Placement, colours: Colours, difficulty: float
    ) -> None:
        """Parts of other words at a border of some crops: beside, above or below, in the same ink."""
        some = self._some(images.shape[0], 0.25 * difficulty)
        if not len(some):
            return
        m = len(some)
        near = placement.take(some)
        gap = 0.2 + 0.25 * self._rand(m, 1, 1)
        sign = torch.where(self._rand(m, 1, 1) < 0.5, -1.0, 1.0)
        beside = self._rand(m, 1, 1) < 0.4
        dx = torch.where(beside, sign * (near.aspect + gap), (self._rand(m, 1, 1) - 0.5) * near.aspect)
        dy = torch.where(beside, 0.0, sign * (1.0 + gap))
        fragment = near.sample(masks[some.roll(1)], dx, dy)
        images[some] = images[some].lerp(colours.ink[some].view(m, 3, 1, 1), fragment * 0.9)

    def _add_shadows(
        self, images: Tensor, word: Tensor, colours: Colours, documents: Tensor, difficulty: float
    ) -> None:
        """Outlines, drop shadows and glows under the word on some signs."""
        some = self._some(images.shape[0], 0.25 * difficulty)
        some = some[~documents[some]]
        if not len(some):
            return
        m = len(some)
        ink = word[some]
        grown = F.max_pool2d(ink, (3, 5), 1, (1, 2))
        row, column = (
            int(v) - 2 for v in torch.randint(0, 5, (2,), generator=self._rng, device=self._device)
        )
        shadow = torch.roll(ink, (row, column * 2), (2, 3))
        glow = F.avg_pool2d(grown, (5, 9), 1, (2, 4))
        pick = self._rand(m, 1, 1, 1)
        layer = torch.where(pick < 0.4, grown, torch.where(pick < 0.75, shadow, glow))
        # The layer lies on the ground's side of the ink, or beyond it: it must not swallow the word.
        ground, fill = colours.ground[some], colours.ink[some]
        beyond = (ground + (ground - fill) * (0.2 + 0.8 * self._rand(m, 1))).clamp(0, 1)
        between = ground.lerp(fill, 0.55 * self._rand(m, 1))
        colour = torch.where(self._rand(m, 1) < 0.6, beyond, between).view(m, 3, 1, 1)
        images[some] = images[some].lerp(colour, layer * (0.4 + 0.6 * self._rand(m, 1, 1, 1)))

    def _print(
        self, images: Tensor, word: Tensor, colours: Colours, documents: Tensor, difficulty: float
    ) -> Tensor:
        """The word over its ground; its ink is uneven."""
        n = images.shape[0]
        amount = self._rand(n) ** 3 * torch.where(documents, 0.3, 0.5) * difficulty * colours.contrast
        fill = colours.ink.view(n, 3, 1, 1) + self._bank.textures(n) * amount.view(n, 1, 1, 1)
        return torch.lerp(images, fill, word)

    def _add_lines(self, images: Tensor, placement: Placement, colours: Colours, difficulty: float) -> None:
        """Rules under or over some words and box lines beside them, in the word's frame."""
        some = self._some(images.shape[0], 0.10 * difficulty)
        if not len(some):
            return
        m = len(some)
        near = placement.take(some)
        thick = 0.02 + 0.06 * self._rand(m, 1, 1) ** 2
        level = torch.where(self._rand(m, 1, 1) < 0.75, 0.56, -0.56) * (1 + 0.25 * self._rand(m, 1, 1))
        side = torch.where(self._rand(m, 1, 1) < 0.5, 0.5, -0.5)
        edge = side * (near.aspect + 0.2 + 0.2 * self._rand(m, 1, 1))
        distance = torch.where(self._rand(m, 1, 1) < 0.25, near.x - edge, near.y - level).abs()
        cover = ((thick - distance) / 0.03 + 0.5).clamp(0, 1).unsqueeze(1)
        images[some] = images[some].lerp(colours.ink[some].view(m, 3, 1, 1), cover * 0.95)

    # -- camera --------------------------------------------------------------------------------------------

    def _photograph(
        self,
        images: Tensor,
        placement: Placement,
        colours: Colours,
        documents: Tensor,
        firm: Tensor,
        difficulty: float,
    ) -> None:
        """Light, scanning, blur, noise and coding, in place; firm [N] within 0..1 bounds the blur."""
        n = images.shape[0]
        lit = self._some(n, 0.35 * difficulty)
        if len(lit):
            amount = self._rand(len(lit)) * torch.where(documents[lit], 0.08, 0.35)
            images[lit] *= 1 + self._bank.textures(len(lit)) * amount.view(-1, 1, 1, 1)
        scanned = self._some(n, 0.12 * difficulty)
        scanned = scanned[documents[scanned]]
        if len(scanned):
            images[scanned] = self._scan(images[scanned], colours.contrast[scanned])
        soft = self._some(n, 0.75 * difficulty)
        if len(soft):
            span = 0.5 + 2.8 * self._rand(len(soft)) ** 1.3 * firm[soft]
            images[soft] = self._lens.apply(images[soft], span, placement.crop_aspect[soft], self._rng)
        noisy = self._some(n, 0.45 * difficulty)
        if len(noisy):
            sigma = self._rand(len(noisy)) ** 2 * 0.12 * (0.1 + colours.contrast[noisy])
            sigma = sigma * torch.where(documents[noisy], 0.5, 1.0)
            images[noisy] += self._bank.noise(len(noisy)) * sigma.view(-1, 1, 1, 1)
        coded = self._some(n, 0.3 * difficulty)
        if len(coded):
            coarseness = 0.3 + 1.5 * self._rand(len(coded)) ** 2 * (0.2 + colours.contrast[coded])
            images[coded] = self._codec.apply(images[coded], coarseness)

    def _scan(self, images: Tensor, contrast: Tensor) -> Tensor:
        """Bilevel scanning: a little noise, then a steep threshold between ink and ground."""
        n = images.shape[0]
        grey = (images * images.new_tensor(LUMA).view(1, 3, 1, 1)).sum(1, keepdim=True)
        grey = grey + self._bank.noise(n) * (0.08 * contrast).view(n, 1, 1, 1)
        low, high = grey.amin((2, 3), keepdim=True), grey.amax((2, 3), keepdim=True)
        threshold = low + (high - low) * (0.4 + 0.2 * self._rand(n, 1, 1, 1))
        return torch.sigmoid((grey - threshold) * 25 / (high - low).clamp(min=0.05)).expand(n, 3, -1, -1)
