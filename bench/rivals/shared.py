"""What the servers of other frameworks have in common: what they are told, the model, and what they answer."""

from __future__ import annotations

import io
import os
from typing import Any

from PIL import Image

from clip4str import BranchReading, Reading, Recognizer
from clip4str.hardware import fit_threads

PORT = int(os.environ.get("RIVAL_PORT", "8080"))
TIMEOUT_S = float(os.environ.get("RIVAL_TIMEOUT_S", "30"))
WORKERS = int(os.environ.get("RIVAL_WORKERS", "1"))
BATCH = int(os.environ.get("RIVAL_BATCH", "64"))
WAIT_MS = float(os.environ.get("RIVAL_WAIT_MS", "10"))
QUEUE = int(os.environ.get("RIVAL_QUEUE", "1024"))
THREADS = max(
    1, len(os.sched_getaffinity(0)) // WORKERS
)  # of each worker's model: the processors are shared out


def load() -> Recognizer:
    """The model, ready to read."""
    fit_threads(THREADS)
    recognizer = Recognizer.load(os.environ.get("CLIP4STR_MODEL", "default"))
    recognizer.warm_up(BATCH)
    return recognizer


def decode(content: bytes) -> Image.Image:
    """A crop's file to pixels."""
    image = Image.open(io.BytesIO(content))
    image.load()
    return image


def answer(reading: Reading) -> dict[str, Any]:
    """As much of a reading as this service answers."""
    return {
        "text": reading.text,
        "confidence": reading.confidence,
        "agreement": reading.agreement,
        "truncated": reading.truncated,
        "branches": {"visual": _branch(reading.visual), "cross_modal": _branch(reading.cross_modal)},
    }


def _branch(branch: BranchReading) -> dict[str, Any]:
    characters = [
        {"text": each.text, "confidence": each.confidence, "alternatives": []} for each in branch.characters
    ]
    return {
        "text": branch.text,
        "confidence": branch.confidence,
        "eos_confidence": branch.eos_confidence,
        "characters": characters,
    }
