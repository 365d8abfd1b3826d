"""The table of errors, pinned: clients are written against it."""

from google.rpc import code_pb2

from clip4str_service.errors import InvalidRequestError, ServiceError, Violation

TABLE = {
    "invalid_request": (400, "INVALID_ARGUMENT", None),
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
