"""What a model that is being trained reads of real words: the metrics of `clip4str eval`."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from clip4str import checkpoint
from clip4str.charset import ALPHANUMERIC_LOWER, adapt
from clip4str.datasets import DatasetError, open_set
from clip4str.evaluation import evaluate
from clip4str.image import prepare
from clip4str.model import CLIP4STR
from clip4str.reading import Reading
from clip4str.readout import branch_readings
from clip4str.recognizer import Recognizer
from clip4str.training.adapters import AdapterModel, decode, save_adapter_model

Accuracy = dict[str, dict[str, float]]  # set -> branch -> percent


class AdapterReader:
    """Reads with an adapter model. It has one branch: both of its readings are that one's."""

    def __init__(self, model: AdapterModel) -> None:
        self._model = copy.deepcopy(model).eval()

    def read(self, images: Sequence[Image.Image]) -> list[Reading]:
        """As `Recognizer.read`."""
        size = self._model.config.vision.image_size
        pixels = torch.from_numpy(np.stack([prepare(image, size) for image in images]))
        logits = decode(self._model, self._model.normalize(pixels))
        return [
            Reading(branch, branch, truncated)
            for branch, truncated in branch_readings(logits.cpu().numpy(), [0] * len(images))
        ]


def save(model: CLIP4STR | AdapterModel, path: Path) -> None:
    """Write a model's file; of an adapter model all that is not CLIP's own."""
    if isinstance(model, AdapterModel):
        save_adapter_model(model, path)
    else:
        checkpoint.save(path, model)


def check_sets(sets: Sequence[Path]) -> None:
    """Whether these sets can be measured is better known before the training. Raises DatasetError."""
    names = []
    for path in sets:
        words = open_set(path)
        names.append(words.name)
        if not any(adapt(label, ALPHANUMERIC_LOWER) for label in words.labels):
            raise DatasetError(f"{path}: no label has a letter or digit, the only ones accuracy_36 compares")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise DatasetError(f"two validation sets are named {twice[0]}: the log needs a name for each")


def validate(
    model: CLIP4STR | AdapterModel, file: Path, sets: Sequence[Path], crops: int, *, cross_modal: bool
) -> Accuracy:
    """accuracy_36 in percent of `crops` crops of each set, by set and branch, the one that counts first.

    A CLIP4STR model is read from its saved `file`, so that what is measured is what others will load. Its final
    answer counts if the cross-modal branch was trained.
    """
    reader: AdapterReader | Recognizer
    branches = ["visual"]
    if isinstance(model, AdapterModel):
        reader = AdapterReader(model)
    else:
        reader = Recognizer.load(str(file), device=str(next(model.parameters()).device))
        branches = ["final", "visual"] if cross_modal else ["visual"]
    results = {}
    for path in sets:
        words = open_set(path)
        accuracy = evaluate(reader, words, limit=crops).accuracy_36
        results[words.name] = {branch: round(getattr(accuracy, branch), 2) for branch in branches}
    return results
