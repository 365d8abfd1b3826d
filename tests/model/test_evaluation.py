"""The benchmarks' metrics: equal to the published implementation's, and of which words and branches."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from clip4str import BranchReading, Reading, Recognizer, checkpoint
from clip4str.config import VARIANTS
from clip4str.datasets import DatasetError, WordSet, open_set
from clip4str.evaluation import BranchScores, evaluate, score, similarity
from clip4str.model import CLIP4STR, init_decoder

GOLDEN = Path(__file__).parents[1] / "golden"


def reading(final: str, visual: str | None = None, confidence: float = 1.0) -> Reading:
    """A reading whose cross-modal text, the final answer, may differ from its visual text."""
    return Reading(
        visual=BranchReading(final if visual is None else visual, 0.5, 1.0, ()),
        cross_modal=BranchReading(final, confidence, 1.0, ()),
        truncated=False,
    )


def test_metrics_equal_the_published_implementation() -> None:
    golden = json.loads((GOLDEN / "text.json").read_text(encoding="utf-8"))["metrics"]
    expected = golden["batch"]
    readings = [
        reading(text, confidence=sample["confidence"])
        for (text, _), sample in zip(golden["pairs"], golden["per_sample"], strict=True)
    ]
    report = score(readings, [label for _, label in golden["pairs"]], seconds=4.0)
    n = expected["num_samples"]
    assert (report.n, report.n_36) == (n, n)
    assert report.accuracy_36.final == pytest.approx(100 * expected["correct"] / n)
    assert report.one_minus_ned_36.final == pytest.approx(100 * (1 - expected["ned"] / n))
    assert report.mean_confidence == pytest.approx(expected["confidence"] / n)
    assert report.crops_per_second == n / 4.0


@pytest.mark.parametrize(
    ("text", "label", "expected"),
    [("", "a", 0.0), ("kitten", "sitting", 4 / 7), ("abc", "abcd", 0.75), ("ab", "ab", 1.0), ("", "", 1.0)],
)
def test_similarity_counts_unit_edits_over_the_longer_text(text: str, label: str, expected: float) -> None:
    assert similarity(text, label) == pytest.approx(expected)


def test_accuracy_94_needs_case_and_punctuation_that_accuracy_36_ignores() -> None:
    report = score([reading("exit"), reading("No7"), reading("OPEN")], ["EXIT", "No.7", "OPEN"], seconds=1.0)
    assert report.accuracy_36.final == 100.0
    assert report.accuracy_94.final == pytest.approx(100 / 3)


def test_word_of_punctuation_alone_counts_for_accuracy_94_only() -> None:
    report = score([reading("&"), reading("b")], ["&", "a"], seconds=1.0)
    assert (report.n, report.n_36) == (2, 1)
    assert (report.accuracy_94.final, report.accuracy_36.final) == (50.0, 0.0)


def test_each_branch_is_scored_alone_and_the_final_answer_is_the_cross_modal_one() -> None:
    report = score(
        [reading("EXIT", visual="EX1T"), reading("taxi", visual="taxi")], ["EXIT", "taxi"], seconds=1.0
    )
    assert report.accuracy_94 == BranchScores(final=100.0, visual=50.0, cross_modal=100.0)
    assert report.accuracy_36 == BranchScores(final=100.0, visual=50.0, cross_modal=100.0)
    assert report.one_minus_ned_36 == BranchScores(final=100.0, visual=87.5, cross_modal=100.0)


def write_set(path: Path, labels: list[str]) -> WordSet:
    """A folder of grey images, each with its label."""
    path.mkdir()
    for index in range(len(labels)):
        Image.new("L", (40, 10), 40 * index).save(path / f"{index}.png")
    rows = "".join(f"{index}.png\t{label}\n" for index, label in enumerate(labels))
    (path / "labels.tsv").write_text(rows, encoding="utf-8")
    return open_set(path)


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Recognizer:
    """The default architecture with random weights."""
    torch.manual_seed(0)
    model = CLIP4STR(VARIANTS["tiny"])
    for decoder in (model.visual_decoder, model.cross_decoder):
        init_decoder(decoder)
    path = tmp_path_factory.mktemp("model") / "untrained.safetensors"
    checkpoint.save(path, model)
    return Recognizer.load(str(path), device="cpu")


def test_evaluate_scores_the_whole_set_read_in_batches(untrained: Recognizer, tmp_path: Path) -> None:
    words = write_set(tmp_path / "words", ["one", "2", "three", "IV", "Five5"])
    expected = score(untrained.read([words.image(index) for index in range(5)]), words.labels, seconds=1.0)
    report = evaluate(untrained, words, batch_size=2)
    assert (report.n, report.n_36, report.one_minus_ned_36) == (5, 5, expected.one_minus_ned_36)
    assert report.mean_confidence == pytest.approx(expected.mean_confidence, rel=1e-3)
    assert report.crops_per_second > 0


def test_limit_reads_evenly_spaced_words(untrained: Recognizer, tmp_path: Path) -> None:
    words = write_set(tmp_path / "words", ["one", "2", "three", "IV"])
    expected = score(untrained.read([words.image(0), words.image(2)]), ["one", "three"], seconds=1.0)
    report = evaluate(untrained, words, limit=2)
    assert (report.n, report.one_minus_ned_36) == (2, expected.one_minus_ned_36)
    assert evaluate(untrained, words, limit=9).n == 4


def test_set_of_punctuation_alone_cannot_be_evaluated(untrained: Recognizer, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="signs: no label has a letter or digit"):
        evaluate(untrained, write_set(tmp_path / "signs", ["!", "?"]))
