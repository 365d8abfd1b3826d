"""The parts of reading a batch, by name, and how one looks on: to time them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

STAGES = ("encode", "visual", "caption", "cross_modal", "refine", "postprocess")
"""Image encoder; visual branch; text encoder; cross-modal branch; refinement, once in either branch; readings."""

Stage = Callable[[str], AbstractContextManager[None]]
"""Makes the context manager that is entered for a part, by its name."""


def unobserved(_: str) -> AbstractContextManager[None]:
    """A stage that nobody times."""
    return nullcontext()
