"""The options of a request: one model that checks them, whichever front end they came through."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import PydanticCustomError

from clip4str_service.errors import InvalidRequestError, Violation
from clip4str_service.readings import ReadOptions

MAX_ID_LENGTH = 128  # of a crop
MAX_CHARSET_LENGTH = 128  # the model knows fewer characters; longer strings only repeat some
MAX_TIMEOUT_MS = 600_000

_MAX_VIOLATIONS = 10  # reported of one request
_MAX_NAME_LENGTH = 64  # of a field's name that came in with the request


class Detail(StrEnum):
    """How much of a reading to return."""

    TEXT = "text"
    CHARACTERS = "characters"


class Priority(StrEnum):
    """Which queue a request's crops wait in."""

    INTERACTIVE = "interactive"
    BULK = "bulk"


def _known_characters(charset: str) -> str:
    try:
        ReadOptions(charset=charset)
    except ValueError as error:
        # The message may hold braces: as a value it is not taken for a template.
        raise PydanticCustomError("charset", "{reason}", {"reason": str(error)}) from None
    return charset


class Options(BaseModel):
    """What is wanted of every crop of a request."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    detail: Detail = Field(
        default=Detail.CHARACTERS, description="`text` leaves the characters out of both branches"
    )
    top_k: int = Field(default=0, ge=0, le=5, description="alternatives to return for each character")
    charset: (
        Annotated[str, Field(max_length=MAX_CHARSET_LENGTH), AfterValidator(_known_characters)] | None
    ) = Field(
        default=None,
        description="what may be read, in both branches: `full`, `alphanumeric`, `digits`, `lowercase`, "
        "`uppercase`, or the allowed characters themselves",
    )
    priority: Priority = Field(
        default=Priority.INTERACTIVE, description="`bulk` gives way to `interactive`, but is never starved"
    )
    timeout_ms: int | None = Field(
        default=None,
        ge=1,
        le=MAX_TIMEOUT_MS,
        description="time, from when the request was read whole, after which its answer is of no use",
    )

    def read_options(self) -> ReadOptions:
        """The part of the options that the model needs."""
        return ReadOptions(self.top_k, self.charset)


def options_from_strings(strings: Mapping[str, str]) -> Options:
    """Options from a query string or form. Raises InvalidRequestError."""
    try:
        return Options.model_validate_strings(strings)
    except ValidationError as error:
        raise invalid_request(error) from None


def options_from_values(values: Mapping[str, object]) -> Options:
    """Options from typed values. Raises InvalidRequestError, with fields under `options`."""
    try:
        return Options.model_validate(values)
    except ValidationError as error:
        raise invalid_request(error, "options") from None


def invalid_request(error: ValidationError, parent: str = "") -> InvalidRequestError:
    """What pydantic found wrong, as the caller is told it; values that came in are not repeated.

    Args:
        parent: path of what was validated inside the request; empty for the request itself.
    """
    errors = error.errors(include_url=False, include_context=False, include_input=False)
    return InvalidRequestError(
        *(
            Violation(_path(parent, each["loc"]), _description(each["type"], each["msg"]))
            for each in errors[:_MAX_VIOLATIONS]
        )
    )


def _path(parent: str, location: tuple[int | str, ...]) -> str:
    path = parent
    for step in location:
        if isinstance(step, int):
            path += f"[{step}]"
        else:
            path += ("." if path else "") + step[:_MAX_NAME_LENGTH]
    return path or "body"


def _description(kind: str, message: str) -> str:
    if kind == "extra_forbidden":
        return "there is no such field"
    if kind == "missing":
        return "is required"
    return (
        message[:1].lower() + message[1:]
        if message.startswith(("Input", "List", "String", "Value"))
        else message
    )
