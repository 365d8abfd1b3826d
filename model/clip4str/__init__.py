"""CLIP4STR: read words out of image crops with a visual and a cross-modal branch on CLIP.

The value types cost nothing to import. What needs PyTorch is imported when it is first asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from clip4str.charset import CharsetError
from clip4str.info import ModelInfo
from clip4str.reading import Alternative, BranchReading, Character, Reading, ReadOptions

if TYPE_CHECKING:
    from clip4str.checkpoint import CheckpointError
    from clip4str.recognizer import Recognizer

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

_LATER = {"CheckpointError": "clip4str.checkpoint", "Recognizer": "clip4str.recognizer"}

if not TYPE_CHECKING:  # a type checker would take any name for one of ours

    def __getattr__(name: str) -> object:
        if name not in _LATER:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(_LATER[name]), name)

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
