"""How many bytes of requests a front end holds at a time, from their first byte to their answer."""

from __future__ import annotations

from types import TracebackType

from clip4str_service.errors import OverloadedError


class Intake:
    """Room for the bytes of requests."""

    def __init__(self, max_bytes: int) -> None:
        self.held = 0
        self._max_bytes = max_bytes

    def request(self) -> Holding:
        """A request that holds nothing yet; a context manager, at whose end it gives back what it holds."""
        return Holding(self)

    def take(self, nbytes: int) -> None:
        """For holdings. Raises OverloadedError when there is no room."""
        if self.held + nbytes > self._max_bytes:
            raise OverloadedError(
                f"requests of {self.held} bytes are in hand, and there is room for {self._max_bytes}; try again later"
            )
        self.held += nbytes


class Holding:
    """The bytes of one request."""

    __slots__ = ("_intake", "_nbytes")

    def __init__(self, intake: Intake) -> None:
        self._intake = intake
        self._nbytes = 0

    def take(self, nbytes: int) -> None:
        """More bytes came. Raises OverloadedError when there is no room for them."""
        self._intake.take(nbytes)
        self._nbytes += nbytes

    def give_back(self, nbytes: int) -> None:
        """Some of the bytes are not needed any more."""
        self._intake.held -= nbytes
        self._nbytes -= nbytes

    def __enter__(self) -> Holding:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.give_back(self._nbytes)
