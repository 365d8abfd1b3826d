"""The library's front door: load a model, read word crops, get both branches' readings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from clip4str import checkpoint
from clip4str.charset import CHARACTERS, EOS, allowed_classes
from clip4str.decoding import decode
from clip4str.image import prepare
from clip4str.model import CLIP4STR
from clip4str.runtime import resolve_device, resolve_precision

MAX_TOP_K = 5


@dataclass(frozen=True, slots=True)
class Alternative:
    """Another character that could stand at a position, and its probability in [0, 1]."""

    text: str
    confidence: float


@dataclass(frozen=True, slots=True)
class Character:
    """One read character; `confidence` is its probability in [0, 1], `alternatives` the next best characters."""

    text: str
    confidence: float
    alternatives: tuple[Alternative, ...] = ()


@dataclass(frozen=True, slots=True)
class BranchReading:
    """What one branch read, from its refined logits.

    `confidence`: product of the characters' and the end-of-sequence token's probabilities, uncalibrated.
    `eos_confidence`: probability of the end-of-sequence token where the text ended; of a text that never
    ended, its probability at the last position (it then has no part in `confidence`).
    """

    text: str
    confidence: float
    eos_confidence: float
    characters: tuple[Character, ...]


@dataclass(frozen=True, slots=True)
class Reading:
    """One crop's answer: both branches, and whether the text was cut because the model never ended it."""

    visual: BranchReading
    cross_modal: BranchReading
    truncated: bool

    @property
    def text(self) -> str:
        """The final answer: the refined cross-modal branch's text."""
        return self.cross_modal.text

    @property
    def confidence(self) -> float:
        """The final answer's confidence in [0, 1]."""
        return self.cross_modal.confidence

    @property
    def agreement(self) -> bool:
        """Whether both branches read the same text."""
        return self.visual.text == self.cross_modal.text


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """How to read one crop.

    `top_k`: alternatives listed for each character, 0 to 5. `charset`: only these characters may be read, by
    name (full, alphanumeric, digits, lowercase, uppercase) or as a literal string; None allows all 94.
    Raises ValueError, or its subclass CharsetError.
    """

    top_k: int = 0
    charset: str | None = None

    def __post_init__(self) -> None:
        if type(self.top_k) is not int or not 0 <= self.top_k <= MAX_TOP_K:
            raise ValueError(f"top_k is {self.top_k!r}: it must be a whole number between 0 and {MAX_TOP_K}")
        if self.charset is not None:
            allowed_classes(self.charset)


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What is loaded. `image_size` is (height, width) in pixels, `revision` "sha256:<hex>" of the model file."""

    name: str
    revision: str
    variant: str
    dtype: str
    device: str
    charset: str
    max_length: int
    image_size: tuple[int, int]
    parameters: int


class Recognizer:
    """A loaded model that reads word crops. What it reads in a crop does not depend on the other crops."""

    def __init__(self, model: CLIP4STR, info: ModelInfo) -> None:
        self.model = model
        self.info = info

    @classmethod
    def load(
        cls, model: str = "default", *, device: str | None = None, precision: str = "auto"
    ) -> Recognizer:
        """Load "default", a checkpoint's path or a directory with one.

        `device`: "cpu", "cuda", "cuda:N" or None for the best there is; `precision`: auto, fp32, bf16, fp16.
        Raises CheckpointError for a bad file, ValueError for a bad device or precision.
        """
        target = resolve_device(device)
        dtype = resolve_precision(precision, target)
        loaded = checkpoint.load(model)
        network = checkpoint.build(loaded).to(target, dtype)
        config = loaded.config
        info = ModelInfo(
            name=loaded.name,
            revision=loaded.revision,
            variant=config.variant,
            dtype=str(dtype).removeprefix("torch."),
            device=str(target),
            charset=CHARACTERS,
            max_length=config.max_length,
            image_size=config.vision.image_size,
            parameters=sum(parameter.numel() for parameter in network.parameters()),
        )
        return cls(network, info)

    def prepare(self, image: Image.Image) -> Tensor:
        """PIL image of any mode -> the model's pixels, uint8 [3, H, W]. Safe to call from several threads."""
        return prepare(image, self.info.image_size)

    def read(
        self, images: Sequence[Image.Image], top_k: int = 0, charset: str | None = None
    ) -> list[Reading]:
        """Read word crops, in order, all with the same options. Raises ValueError for bad options."""
        options = ReadOptions(top_k, charset)
        return self.read_prepared([self.prepare(image) for image in images], [options] * len(images))

    def read_prepared(self, crops: Sequence[Tensor], options: Sequence[ReadOptions]) -> list[Reading]:
        """Read one batch of prepared crops, uint8 [3, H, W] each, every one with its own options.

        One caller at a time. Memory grows with the batch: split thousands of crops into batches. Raises ValueError
        unless there are as many options as crops.
        """
        if len(crops) != len(options):
            raise ValueError(f"{len(crops)} crops, but {len(options)} options: each crop needs its own")
        if not crops:
            return []
        pixels = self.model.normalize(torch.stack(list(crops)))
        decoded = decode(self.model, pixels, self._allowed(options, pixels.device))
        visual, cross_modal = decoded.visual.refined.cpu(), decoded.cross_modal.refined.cpu()
        readings = []
        for row, wanted in enumerate(options):
            visual_reading, _ = branch_reading(visual[row], wanted.top_k)
            cross_reading, truncated = branch_reading(cross_modal[row], wanted.top_k)
            readings.append(Reading(visual_reading, cross_reading, truncated))
        return readings

    @staticmethod
    def _allowed(options: Sequence[ReadOptions], device: torch.device) -> Tensor | None:
        """Constraint mask bool [N, 95], or None when no crop has one."""
        if all(wanted.charset is None for wanted in options):
            return None
        return torch.stack([allowed_classes(wanted.charset or "full") for wanted in options]).to(device)


def branch_reading(logits: Tensor, top_k: int = 0) -> tuple[BranchReading, bool]:
    """One row's refined logits, float32 [26, 95] -> its reading, and whether no end-of-sequence token came."""
    probabilities = logits.softmax(-1)  # [26, 95]
    best, ids = probabilities.max(-1)
    ended = (ids == EOS).nonzero()
    length = int(ended[0]) if len(ended) else len(ids)
    characters = tuple(
        Character(CHARACTERS[index - 1], confidence, _alternatives(probabilities[position], index, top_k))
        for position, (index, confidence) in enumerate(
            zip(ids[:length].tolist(), best[:length].tolist(), strict=True)
        )
    )
    until = min(length + 1, len(ids))  # EOS counts where it was read
    reading = BranchReading(
        text="".join(character.text for character in characters),
        confidence=float(best[:until].double().prod()),
        eos_confidence=float(probabilities[min(length, len(ids) - 1), EOS]),
        characters=characters,
    )
    return reading, length == len(ids)


def _alternatives(probabilities: Tensor, chosen: int, top_k: int) -> tuple[Alternative, ...]:
    """The `top_k` most probable characters other than the chosen one, those with no probability left out."""
    if not top_k:
        return ()
    others = probabilities.clone()
    others[[EOS, chosen]] = 0.0
    confidences, ids = others.topk(top_k)
    pairs = zip(ids.tolist(), confidences.tolist(), strict=True)
    return tuple(
        Alternative(CHARACTERS[index - 1], confidence) for index, confidence in pairs if confidence > 0.0
    )
