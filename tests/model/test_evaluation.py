"""The benchmarks' metrics: equal to the published implementation's, and of which words and branches."""

import json
from pathlib import Path

import pytest

from clip4str import BranchReading, Reading
from clip4str.evaluation import BranchScores, score, similarity

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
