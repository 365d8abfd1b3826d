"""Any PIL image to the model's pixels. Nothing else in the project resizes a crop."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def prepare(image: Image.Image, size: tuple[int, int]) -> Tensor:
    """PIL image of any mode -> uint8 [3, height, width], RGB.

    Squeezed to `size` (height, width) without keeping the aspect ratio, bicubic with antialiasing, as the
    published evaluation does.
    """
    height, width = size
    if image.mode == "La":  # Pillow converts it by one way only
        image = image.convert("LA")
    resized = image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1).contiguous()  # [H, W, 3] -> [3, H, W]
