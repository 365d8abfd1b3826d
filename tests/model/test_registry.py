"""The table of published checkpoints is sound, and the documentation shows it as it is."""

import re
from pathlib import Path

import pytest

from clip4str import registry
from clip4str.config import HALF, VARIANTS
from clip4str.registry import BENCHMARKS, DEFAULTS, PUBLISHED, HubFile, WebFile, ZenodoFile

DOCUMENT = Path(__file__).parents[2] / "docs" / "models.md"


@pytest.mark.parametrize("name", PUBLISHED)
def test_entry(name: str) -> None:
    entry = PUBLISHED[name]
    assert entry.name == name
    assert entry.variant in VARIANTS
    assert name.startswith(f"{entry.variant}-")
    assert len(entry.accuracies) == len(BENCHMARKS)
    assert all(40 < value < 100 for value in entry.accuracies)
    assert entry.sha256 is None or re.fullmatch("[0-9a-f]{64}", entry.sha256)
    assert entry.mean == entry.std == HALF  # what the published evaluation used, of all of them
    match entry.location:
        case HubFile(revision=revision):
            assert re.fullmatch("[0-9a-f]{40}", revision)
        case WebFile(url) | ZenodoFile(url):
            assert url.startswith("https://")


def test_files_do_not_collide() -> None:
    assert len({entry.location.filename for entry in PUBLISHED.values()}) == len(PUBLISHED)


def test_stated_sizes_are_those_of_float32_weights() -> None:
    parameters = {"base16": 158_256_319, "large14": 446_861_247, "huge14": 1_020_157_631}
    for entry in PUBLISHED.values():
        if entry.size is not None:
            assert entry.size == pytest.approx(4 * parameters[entry.variant], rel=0.005)


def test_a_variant_stands_for_its_best_checkpoint() -> None:
    for variant, name in DEFAULTS.items():
        same = [entry for entry in PUBLISHED.values() if entry.variant == variant]
        best = max(same, key=lambda entry: sum(entry.accuracies))
        assert registry.find(variant) == registry.find(name) == best
    assert registry.find("base32") is None


def test_cache_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("CLIP4STR_CACHE_DIR", raising=False)
    assert registry.cache_folder() == Path("/home/someone/.cache/clip4str")
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/cache")
    assert registry.cache_folder() == Path("/var/cache/clip4str")
    monkeypatch.setenv("CLIP4STR_CACHE_DIR", "~/models")
    assert registry.cache_folder() == Path("/home/someone/models")


def test_documentation_shows_the_table() -> None:
    assert registry.tables() in DOCUMENT.read_text(encoding="utf-8"), "paste `clip4str fetch --list` there"
