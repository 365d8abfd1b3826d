"""CLIP4STR: read words out of image crops with a visual and a cross-modal branch on CLIP."""

from clip4str.charset import CharsetError
from clip4str.checkpoint import CheckpointError
from clip4str.reading import Alternative, BranchReading, Character, Reading, ReadOptions
from clip4str.recognizer import ModelInfo, Recognizer

__all__ = [
    "Alternative",
    "BranchReading",
    "Character",
    "CharsetError",
    "CheckpointError",
    "ModelInfo",
    "ReadOptions",
    "Reading",
    "Recognizer",
]
