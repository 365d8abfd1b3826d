"""How well a recogniser reads labelled words: the benchmarks' metrics, for the answer and for each branch."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from PIL import Image
from rapidfuzz.distance import Levenshtein

from clip4str.charset import ALPHANUMERIC_LOWER, adapt
from clip4str.datasets import DatasetError, WordSet
from clip4str.reading import Reading


class Reader(Protocol):
    """What can be measured: a `Recognizer`, or anything else that reads word images."""

    def read(self, images: Sequence[Image.Image]) -> list[Reading]:
        """One reading for each image, in order."""
        ...


@dataclass(frozen=True, slots=True)
class BranchScores:
    """One metric in percent, 0 to 100: of the final answer and of each branch alone."""

    final: float
    visual: float
    cross_modal: float


@dataclass(frozen=True, slots=True)
class SetReport:
    """What one set of labelled words measured.

    Attributes:
        n: words read.
        n_36: of these, words with a letter or digit; the `_36` metrics leave out the others, as papers do.
        accuracy_36: words right when only [0-9a-z] are compared, in lower case; percent of `n_36`.
        accuracy_94: words right in exact case and punctuation; percent of `n`.
        one_minus_ned_36: 1 - edit distance / length of the longer text, mean over `n_36`, in percent.
        mean_confidence: mean confidence of the final answer, 0 to 1.
        crops_per_second: words read by the second of wall time, image decoding included.
    """

    n: int
    n_36: int
    accuracy_36: BranchScores
    accuracy_94: BranchScores
    one_minus_ned_36: BranchScores
    mean_confidence: float
    crops_per_second: float


def similarity(text: str, label: str) -> float:
    """Return 1 - edit distance / length of the longer one: 0 to 1, and 1 for two equal texts."""
    return Levenshtein.normalized_similarity(text, label)


def score(readings: Sequence[Reading], labels: Sequence[str], seconds: float) -> SetReport:
    """Measure readings against their labels, both in the same order.

    Args:
        readings: at least one.
        labels: exact-case texts of the 94 characters, at least one of them with a letter or digit.
        seconds: how long the reading took.
    """
    labels_36 = [adapt(label, ALPHANUMERIC_LOWER) for label in labels]
    n_36 = sum(label != "" for label in labels_36)

    def branch(texts: list[str]) -> tuple[float, float, float]:
        texts_36 = [adapt(text, ALPHANUMERIC_LOWER) for text in texts]
        pairs_36 = [(text, label) for text, label in zip(texts_36, labels_36, strict=True) if label]
        return (
            100 * sum(text == label for text, label in pairs_36) / n_36,
            100 * sum(text == label for text, label in zip(texts, labels, strict=True)) / len(labels),
            100 * sum(similarity(text, label) for text, label in pairs_36) / n_36,
        )

    branches = (
        branch([reading.text for reading in readings]),
        branch([reading.visual.text for reading in readings]),
        branch([reading.cross_modal.text for reading in readings]),
    )
    accuracy_36, accuracy_94, one_minus_ned_36 = (
        BranchScores(*scores) for scores in zip(*branches, strict=True)
    )
    return SetReport(
        n=len(labels),
        n_36=n_36,
        accuracy_36=accuracy_36,
        accuracy_94=accuracy_94,
        one_minus_ned_36=one_minus_ned_36,
        mean_confidence=sum(reading.confidence for reading in readings) / len(readings),
        crops_per_second=len(readings) / seconds,
    )


def evaluate(reader: Reader, dataset: WordSet, batch_size: int = 64, limit: int | None = None) -> SetReport:
    """Read a set and measure it: the whole of it, or `limit` crops spread evenly over it.

    Raises:
        DatasetError: an image of the set is missing or broken, or no word has a letter or digit.
    """
    count = len(dataset) if limit is None else min(limit, len(dataset))
    rows = [index * len(dataset) // count for index in range(count)]
    labels = [dataset.labels[row] for row in rows]
    if not any(adapt(label, ALPHANUMERIC_LOWER) for label in labels):
        raise DatasetError(
            f"{dataset.name}: no label has a letter or digit, the only ones accuracy_36 compares"
        )
    readings: list[Reading] = []
    started = time.perf_counter()
    for start in range(0, count, batch_size):
        readings += reader.read([dataset.image(row) for row in rows[start : start + batch_size]])
    return score(readings, labels, time.perf_counter() - started)
