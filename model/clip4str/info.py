"""What is known of a loaded model."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What is loaded. `image_size` is (height, width) in pixels, `revision` "sha256:<hex>" of the model file.

    `max_length` is that of the words it was trained on; one that never ends is cut after one character more.
    """

    name: str
    revision: str
    variant: str
    dtype: str
    device: str
    charset: str
    max_length: int
    image_size: tuple[int, int]
    parameters: int
