"""The published CLIP4STR checkpoints, as a table: where each lies, what it was trained on, how well it reads.

Facts are from the publishing project's README (VamosC/CLIP4STR, commit 7497c15) and from the pages of its
hosts. What no source states is None: nothing here is guessed.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from clip4str.config import HALF

CACHE_VARIABLE = "CLIP4STR_CACHE_DIR"
BENCHMARKS = (
    "IIIT5K", "SVT", "IC13", "IC15 1811", "IC15 2077", "SVTP", "CUTE", "HOST", "WOST", "COCO", "ArT", "Uber",
)  # fmt: skip
_WIT, _DATACOMP, _LAION, _DFN = "WIT-400M", "DataComp-1B", "LAION-2B", "DFN-5B"
_SYNTHETIC, _REAL, _RBU = "MJ+ST", "Real (3.3M)", "RBU (6.5M)"


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file of a Hugging Face repository at one commit."""

    repository: str
    filename: str
    revision: str

    @property
    def host(self) -> str:
        """Who serves it, in words."""
        return "Hugging Face"


@dataclass(frozen=True, slots=True)
class WebFile:
    """A file at a plain address."""

    url: str

    @property
    def filename(self) -> str:
        """The last part of the address."""
        return self.url.rpartition("/")[2]

    @property
    def host(self) -> str:
        """Who serves it, in words."""
        return "GitHub release"


@dataclass(frozen=True, slots=True)
class ZenodoFile:
    """The file of a Zenodo record whose name holds `fragment`; `url` is the record in Zenodo's API.

    The record's list of files tells name, address, size and MD5 checksum; the README names the fragment alone.
    """

    url: str
    fragment: str

    @property
    def filename(self) -> str:
        """Under which it is kept here."""
        return f"clip4str_{self.fragment}.ckpt"

    @property
    def host(self) -> str:
        """Who serves it, in words."""
        return "Zenodo"


@dataclass(frozen=True, slots=True)
class Published:
    """One published checkpoint."""

    name: str
    variant: str
    location: HubFile | WebFile | ZenodoFile
    pretraining: str  # the data CLIP's weights come from
    training: str  # the word images
    accuracies: tuple[float, ...]  # percent of words (36 characters, case folded), in the order of BENCHMARKS
    size: int | None = None  # bytes, as rounded by the host's page
    sha256: str | None = None  # where its host states it
    licence: str = "Apache-2.0"  # the publishing project's; the files state none of their own
    mean: tuple[float, float, float] = HALF  # of the normalisation that its accuracies were measured with
    std: tuple[float, float, float] = HALF


def _hub(filename: str) -> HubFile:
    return HubFile("mzhaoshuai/CLIP4STR", filename, revision="01bb4141ffac9a3e02155e4ad7260fad174b7bf0")


def _release(filename: str) -> WebFile:
    return WebFile(f"https://github.com/VamosC/CLIP4STR/releases/download/1.0.0/{filename}")


def _zenodo(fragment: str) -> ZenodoFile:
    return ZenodoFile("https://zenodo.org/api/records/8369439", fragment)


_ALL = (
    Published(
        "base16-synth", "base16", _release("clip4str_base16x16_synth_a5e3386222.ckpt"),
        pretraining=_WIT, training=_SYNTHETIC,
        accuracies=(97.70, 95.36, 96.06, 87.47, 84.02, 91.47, 94.44, 80.01, 86.75, 66.69, 72.82, 43.52),
    ),
    Published(
        "base16-real", "base16", _release("clip4str_base16x16_d70bde1f2d.ckpt"),
        pretraining=_WIT, training=_REAL,
        accuracies=(99.20, 98.30, 98.23, 91.44, 90.61, 96.90, 99.65, 77.36, 87.87, 80.80, 85.74, 86.70),
    ),
    Published(
        "base16-rbu", "base16", _hub("clip4str_base_6e9fe947ac.pt"),
        pretraining=_DATACOMP, training=_RBU,
        accuracies=(99.5, 98.3, 98.6, 91.4, 91.1, 98.0, 99.0, 79.3, 88.8, 81.3, 85.8, 92.1),
        size=633_000_000, sha256="15f9c480e8db69cf8c7436d918dc3867e9055234f2f55f4c2de31cf0cc6b119c",
    ),
    Published(
        "large14-synth", "large14", _zenodo("3544c362f0"),
        pretraining=_WIT, training=_SYNTHETIC,
        accuracies=(97.57, 95.36, 96.75, 88.02, 84.40, 91.78, 94.44, 81.08, 87.38, 67.45, 73.48, 44.59),
    ),
    Published(
        "large14-real", "large14", _zenodo("f125500adc"),
        pretraining=_WIT, training=_REAL,
        accuracies=(99.43, 98.15, 98.52, 91.66, 91.14, 97.36, 98.96, 79.22, 89.07, 81.97, 85.83, 87.36),
    ),
    Published(
        "large14-rbu", "large14", _hub("clip4str_large_3c9d881b88.pt"),
        pretraining=_DATACOMP, training=_RBU,
        accuracies=(99.6, 98.6, 99.0, 91.9, 91.4, 98.1, 99.7, 81.1, 90.6, 82.7, 86.4, 92.2),
        size=1_790_000_000,
    ),
    Published(
        "huge14-rbu-laion", "huge14", _hub("clip4str_huge_5eef9f86e2.pt"),
        pretraining=_LAION, training=_RBU,
        accuracies=(99.7, 98.6, 98.9, 91.6, 91.1, 98.5, 99.7, 80.6, 90.0, 82.5, 86.2, 91.2),
        size=4_080_000_000, sha256="c0d3f67d337c70d4b46a418ca296fdbe5b178f6712664872f1a1495eea248e8c",
    ),
    Published(
        "huge14-rbu-dfn", "huge14", _hub("clip4str_huge_3e942729b1.pt"),
        pretraining=_DFN, training=_RBU,
        accuracies=(99.5, 99.1, 98.9, 91.7, 91.0, 98.0, 99.0, 82.6, 90.9, 83.0, 86.4, 91.7),
        size=4_080_000_000,
    ),
)  # fmt: skip
PUBLISHED = {entry.name: entry for entry in _ALL}
# What a variant's bare name stands for: of each size, the checkpoint that reads best on average.
DEFAULTS = {"base16": "base16-rbu", "large14": "large14-rbu", "huge14": "huge14-rbu-dfn"}


def find(name: str) -> Published | None:
    """The checkpoint of this name, or a variant's default; None for any other name."""
    return PUBLISHED.get(DEFAULTS.get(name, name))


def known() -> str:
    """All names there are, for an error message."""
    return ", ".join([*PUBLISHED, *DEFAULTS])


def cache_folder() -> Path:
    """Where fetched checkpoints lie: CLIP4STR_CACHE_DIR, or clip4str in the user's cache folder (XDG)."""
    if chosen := os.environ.get(CACHE_VARIABLE):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "clip4str"


def expected_sha256(entry: Published, path: Path) -> str | None:
    """What a fetched file must hash to: as stated by its host, else as recorded beside it at the first fetch."""
    record = record_path(path)
    if entry.sha256 is not None or not record.is_file():
        return entry.sha256
    return record.read_text(encoding="utf-8").partition(" ")[0].strip()


def record_path(path: Path) -> Path:
    """The file beside a fetched one that records its checksum, in the form `sha256sum --check` reads."""
    return path.with_name(path.name + ".sha256")


def tables() -> str:
    """The checkpoints as two Markdown tables: what they are, and what they read."""
    facts = [("name", "variant", "CLIP from", "trained on", "size", "host", "sha256", "mean, std", "licence")]
    figures: list[tuple[str, ...]] = [("name", *BENCHMARKS)]
    for entry in _ALL:
        size = "not stated" if entry.size is None else f"{entry.size / 1e9:.2f} GB"
        digest = "not stated" if entry.sha256 is None else f"{entry.sha256[:8]}…"
        normalisation = f"{_values(entry.mean)}, {_values(entry.std)}"
        shown = (entry.pretraining, entry.training, size, entry.location.host, digest, normalisation)
        facts.append((entry.name, entry.variant, *shown, entry.licence))
        figures.append((entry.name, *(f"{value:g}" for value in entry.accuracies)))
    return f"{_markdown(facts)}\n\n{_markdown(figures)}"


def _values(channels: tuple[float, float, float]) -> str:
    """One number where all channels share it."""
    return " ".join(f"{value:g}" for value in dict.fromkeys(channels))


def _markdown(rows: Sequence[tuple[str, ...]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in rows
    ]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])
