"""The table of errors, pinned: clients are written against it."""

import pytest
from google.rpc import code_pb2

from clip4str_service.errors import (
    InvalidRequestError,
    OverloadedError,
    ServiceError,
    TooManyCropsError,
    UnauthenticatedError,
    Violation,
    error_of,
)

TABLE = {
    "invalid_request": (400, "INVALID_ARGUMENT", None),
    "unauthenticated": (401, "UNAUTHENTICATED", None),
    "permission_denied": (403, "PERMISSION_DENIED", None),
    "not_found": (404, "UNIMPLEMENTED", None),
    "method_not_allowed": (405, "UNIMPLEMENTED", None),
    "payload_too_large": (413, "INVALID_ARGUMENT", None),
    "too_many_crops": (413, "INVALID_ARGUMENT", None),
    "image_too_large": (413, "INVALID_ARGUMENT", None),
    "unsupported_media_type": (415, "INVALID_ARGUMENT", None),
    "undecodable_image": (422, "INVALID_ARGUMENT", None),
    "overloaded": (429, "RESOURCE_EXHAUSTED", 1000),
    "cancelled": (499, "CANCELLED", None),
    "internal": (500, "INTERNAL", None),
    "not_ready": (503, "UNAVAILABLE", 1000),
    "draining": (503, "UNAVAILABLE", 1000),
    "deadline_exceeded": (504, "DEADLINE_EXCEEDED", None),
}


def rows(kind: type[ServiceError]) -> list[type[ServiceError]]:
    """The classes below one that stand for a row of the table."""
    below = [row for child in kind.__subclasses__() for row in rows(child)]
    return below or [kind]


def test_table() -> None:
    found = {row.code: (row.http_status, row.grpc_status, row.retry_after_ms) for row in rows(ServiceError)}
    assert found == TABLE


def test_each_row_has_a_title_and_a_real_grpc_status() -> None:
    for row in rows(ServiceError):
        assert row.title
        assert row.grpc_status in dict(code_pb2.Code.items())


def test_invalid_request_says_what_is_wrong_where() -> None:
    error = InvalidRequestError(Violation("options.top_k", "is too large"), Violation("crops", "is empty"))
    assert error.detail == str(error) == "options.top_k: is too large; crops: is empty"
    assert [violation.field for violation in error.violations] == ["options.top_k", "crops"]


@pytest.mark.parametrize(("seconds", "milliseconds"), [(None, 1000), (0.25, 250), (0.0001, 1)])
def test_retry_after_is_whole_milliseconds(seconds: float | None, milliseconds: int) -> None:
    assert OverloadedError("no room", retry_after=seconds).retry_after_ms == milliseconds


def test_error_of_another_process() -> None:
    error = error_of("overloaded", "no room", 70)
    assert (type(error), error.detail, error.retry_after_ms) == (OverloadedError, "no room", 70)
    error = error_of("too_many_crops", "9 of 8")
    assert (type(error), error.detail, error.retry_after_ms) == (TooManyCropsError, "9 of 8", None)


def test_unauthenticated_challenges() -> None:
    assert UnauthenticatedError("who are you?").http_headers == {"WWW-Authenticate": "Bearer"}
    assert not OverloadedError("no room").http_headers
