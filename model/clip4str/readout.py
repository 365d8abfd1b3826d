"""Logits to readings: the text, and how sure its model is of every character."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from clip4str.charset import CHARACTERS, EOS
from clip4str.reading import Alternative, BranchReading, Character

Floats = NDArray[np.float32]


def branch_readings(logits: Floats, top_k: Sequence[int]) -> list[tuple[BranchReading, bool]]:
    """One branch's refined logits, float32 [N, T, 95] -> each row's reading, and whether it never ended.

    `top_k`: alternatives wanted in each row.
    """
    # in NumPy: PyTorch would share these few numbers out among threads that have batches of their own to read
    odds = np.exp(logits - logits.max(-1, keepdims=True))
    probabilities = odds / odds.sum(-1, keepdims=True)  # [N, T, 95]
    ids, best = logits.argmax(-1), probabilities.max(-1)
    rows = zip(
        probabilities, best.tolist(), ids.tolist(), probabilities[..., EOS].tolist(), top_k, strict=True
    )
    return [_branch_reading(*row) for row in rows]


def _branch_reading(
    probabilities: Floats, best: list[float], ids: list[int], ends: list[float], top_k: int
) -> tuple[BranchReading, bool]:
    """One row: its probabilities [T, 95], of which `best` are the highest, `ids` theirs, `ends` those of EOS."""
    ended = EOS in ids
    length = ids.index(EOS) if ended else len(ids)
    others = _alternatives(probabilities[:length], ids[:length], top_k) if top_k else [()] * length
    characters = tuple(
        Character(CHARACTERS[index - 1], confidence, alternatives)
        for index, confidence, alternatives in zip(ids[:length], best[:length], others, strict=True)
    )
    confidence = 1.0
    for factor in best[: length + 1]:  # EOS counts where it was read
        confidence *= factor
    text = "".join(character.text for character in characters)
    return BranchReading(text, confidence, ends[min(length, len(ids) - 1)], characters), not ended


def _alternatives(probabilities: Floats, chosen: list[int], top_k: int) -> list[tuple[Alternative, ...]]:
    """At each position the `top_k` most probable characters but the chosen, those with no probability left out."""
    others = probabilities.copy()
    others[:, EOS] = 0.0
    others[np.arange(len(chosen)), chosen] = 0.0
    ids = np.argsort(-others, axis=-1, kind="stable")[:, :top_k]
    confidences = np.take_along_axis(others, ids, axis=-1)
    return [
        tuple(
            Alternative(CHARACTERS[i - 1], confidence)
            for i, confidence in zip(*row, strict=True)
            if confidence > 0.0
        )
        for row in zip(ids.tolist(), confidences.tolist(), strict=True)
    ]
