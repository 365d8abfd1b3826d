"""Turns glyph masks into word crops: where the word lies, its colours, what is painted, how it is photographed.

Everything is batched torch on one device and drawn from one generator; there is no loop over samples.
Disturbances fall on random shares of a batch, so that each costs only what it is used.
"""

import torch
from torch import Tensor

from clip4str.synth.camera import Camera
from clip4str.synth.colours import draw_colours
from clip4str.synth.kinds import by_kind
from clip4str.synth.paint import Painter
from clip4str.synth.texture import TextureBank
from clip4str.synth.warp import place


class Composer:
    """Makes crops uint8 [N, 3, H, W] from masks; reproducible from the seed and the order of calls.

    `difficulty` within 0..1 bounds how hard a crop may be: most of a batch are mild, few as hard as it says. At 0
    words are plain, upright and of high contrast.
    Raises ValueError if the size is not a multiple of 8 both ways.
    """

    def __init__(self, size: tuple[int, int] = (32, 128), *, seed: int, device: str = "cpu") -> None:
        if size[0] % 8 or size[1] % 8:
            raise ValueError(f"size (height, width) must be multiples of 8, got {size}")
        self._size = size
        self._device = torch.device(device)
        self._rng = torch.Generator(self._device).manual_seed(seed)
        bank = TextureBank(size, self._rng, self._device)
        self._painter = Painter(bank, self._rng)
        self._camera = Camera(size, bank, self._rng)

    def seed(self, seed: int) -> None:
        """Go on as if a fresh generator with this seed had been there; textures stay those of the first seed."""
        self._rng.manual_seed(seed)

    @torch.no_grad()
    def compose(self, masks: Tensor, aspects: Tensor, kinds: Tensor, difficulty: float = 1.0) -> Tensor:
        """Crops uint8 [N, 3, H, W] from masks uint8 [N, h, w], their aspects float [N] (width / height) and kinds.

        kinds: int64 [N], values of Kind. Raises ValueError if difficulty is not within 0..1.
        """
        if not 0.0 <= difficulty <= 1.0:
            raise ValueError(f"difficulty must be within 0..1, got {difficulty}")
        masks = masks.to(self._device).float() / 255.0
        aspects, kinds = aspects.to(self._device, torch.float32), kinds.to(self._device)
        # Signs are met in worse light and from further away than print.
        luck = torch.rand(masks.shape[0], generator=self._rng, device=self._device)
        hard = difficulty * luck ** by_kind(kinds, 1.0, 1.0, 0.6)
        placement = place(aspects, self._size, hard, kinds, self._rng)
        # Thin or faint words do not survive the blur that bold ones do.
        bold = (masks.mean((1, 2)) / 0.35).clamp(0, 1)
        colours = draw_colours(kinds, 1 - bold, hard, self._rng)
        firm = bold.clamp(min=0.45)
        images = self._painter.paint(masks, placement, colours, kinds, hard)
        self._camera.take(images, placement.crop_aspect, colours.contrast, kinds, firm, hard)
        return (images * 255.0 + 0.5).clamp_(0, 255).to(torch.uint8)
