"""Who may call: every request passes here before any of its body is read."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from clip4str_service.auth import KeyRing, KeysError, presented_key
from clip4str_service.engine import Caller

log = logging.getLogger(__name__)


class Gate:
    """The API keys of a file; without a file everybody may call, and all are one."""

    def __init__(self, path: Path | None) -> None:
        """Raises KeysError."""
        self._ring = None if path is None else KeyRing(path)

    def caller(self, values: Callable[[str], Sequence[str]], traceparent: str = "") -> Caller:
        """Who calls. Raises UnauthenticatedError.

        `values` gives all values of a header, or of metadata, by its name in lower case; `traceparent` is of the
        request's own span.
        """
        if self._ring is None:
            return Caller(traceparent=traceparent)
        return Caller(self._ring.keys.authenticate(presented_key(values)).name, traceparent)

    def reload(self) -> None:
        """Reads the file again; the keys stay as they are when it is no good."""
        if self._ring is not None:
            try:
                self._ring.reload()
            except KeysError as error:
                log.error("the API keys stay as they are", extra={"why": str(error)})
