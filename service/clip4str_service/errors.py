"""The one table of errors: what each is called and what it is in HTTP and in gRPC.

ServiceError
├── InvalidRequestError         invalid_request         400  INVALID_ARGUMENT
├── UnauthenticatedError        unauthenticated         401  UNAUTHENTICATED
├── PermissionDeniedError       permission_denied       403  PERMISSION_DENIED
├── NotFoundError               not_found               404  (HTTP only: no such path)
├── MethodNotAllowedError       method_not_allowed      405  (HTTP only: no such method)
├── PayloadTooLargeError        payload_too_large       413  INVALID_ARGUMENT
├── TooManyCropsError           too_many_crops          413  INVALID_ARGUMENT
├── ImageTooLargeError          image_too_large         413  INVALID_ARGUMENT
├── UnsupportedMediaTypeError   unsupported_media_type  415  INVALID_ARGUMENT
├── UndecodableImageError       undecodable_image       422  INVALID_ARGUMENT
├── RetryableError
│   ├── OverloadedError         overloaded              429  RESOURCE_EXHAUSTED
│   ├── NotReadyError           not_ready               503  UNAVAILABLE
│   └── DrainingError           draining                503  UNAVAILABLE
├── ClientGoneError             cancelled               499  CANCELLED
├── InternalError               internal                500  INTERNAL
└── DeadlineExceededError       deadline_exceeded       504  DEADLINE_EXCEEDED

Each is raised for a whole request, or stands in place of one crop's reading.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar, NamedTuple


class Violation(NamedTuple):
    """A field of a request that is wrong, by its path, such as `options.top_k`, and why."""

    field: str
    description: str


class ServiceError(Exception):
    """What a caller is told when something failed. The message is written for that caller.

    Class attributes are the row of the table: `code`, `http_status`, `grpc_status` (a google.rpc.Code's name)
    and `title`, which is the same for every error of the code; `http_headers` go with the answer over HTTP.
    """

    code: ClassVar[str]
    http_status: ClassVar[int]
    grpc_status: ClassVar[str]
    title: ClassVar[str]
    http_headers: ClassVar[Mapping[str, str]] = {}

    violations: tuple[Violation, ...] = ()
    retry_after_ms: int | None = None

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail


class InvalidRequestError(ServiceError):
    """The request breaks the contract: a bad field, no crops, an unknown option."""

    code = "invalid_request"
    http_status = 400
    grpc_status = "INVALID_ARGUMENT"
    title = "The request is invalid"

    def __init__(self, *violations: Violation) -> None:
        super().__init__("; ".join(f"{each.field}: {each.description}" for each in violations))
        self.violations = violations


class UnauthenticatedError(ServiceError):
    """The caller has not shown that it may use the service: no API key, or one that does not hold."""

    code = "unauthenticated"
    http_status = 401
    grpc_status = "UNAUTHENTICATED"
    title = "The request is not authenticated"
    http_headers: ClassVar[Mapping[str, str]] = {"WWW-Authenticate": "Bearer"}


class PermissionDeniedError(ServiceError):
    """The caller is known, and may not do this."""

    code = "permission_denied"
    http_status = 403
    grpc_status = "PERMISSION_DENIED"
    title = "The caller may not do this"


class NotFoundError(ServiceError):
    """There is nothing at this path."""

    code = "not_found"
    http_status = 404
    grpc_status = "UNIMPLEMENTED"
    title = "There is nothing at this path"


class MethodNotAllowedError(ServiceError):
    """The path does not take this method."""

    code = "method_not_allowed"
    http_status = 405
    grpc_status = "UNIMPLEMENTED"
    title = "The path does not take this method"


class PayloadTooLargeError(ServiceError):
    """The request as a whole has too many bytes."""

    code = "payload_too_large"
    http_status = 413
    grpc_status = "INVALID_ARGUMENT"
    title = "The request is too large"


class TooManyCropsError(ServiceError):
    """The request holds too many crops."""

    code = "too_many_crops"
    http_status = 413
    grpc_status = "INVALID_ARGUMENT"
    title = "The request holds too many crops"


class ImageTooLargeError(ServiceError):
    """One crop has too many bytes, or too many pixels by its header."""

    code = "image_too_large"
    http_status = 413
    grpc_status = "INVALID_ARGUMENT"
    title = "The image is too large"


class UnsupportedMediaTypeError(ServiceError):
    """The body, or one crop, is of a type that the service does not take."""

    code = "unsupported_media_type"
    http_status = 415
    grpc_status = "INVALID_ARGUMENT"
    title = "The media type is not supported"


class UndecodableImageError(ServiceError):
    """The crop is empty, truncated or corrupt."""

    code = "undecodable_image"
    http_status = 422
    grpc_status = "INVALID_ARGUMENT"
    title = "The image cannot be decoded"


class RetryableError(ServiceError):
    """The same request may succeed `retry_after_ms` later, or at another replica."""

    retry_after_ms = 1000

    def __init__(self, detail: str, *, retry_after: float | None = None) -> None:
        """`retry_after`: seconds, where it is known."""
        super().__init__(detail)
        if retry_after is not None:
            self.retry_after_ms = math.ceil(retry_after * 1000)


class OverloadedError(RetryableError):
    """There is no room for the request now. `limited`: by its key's own limits."""

    code = "overloaded"
    http_status = 429
    grpc_status = "RESOURCE_EXHAUSTED"
    title = "The service is overloaded"

    def __init__(self, detail: str, *, retry_after: float | None = None, limited: bool = False) -> None:
        super().__init__(detail, retry_after=retry_after)
        self.limited = limited


class NotReadyError(RetryableError):
    """The model is still being loaded."""

    code = "not_ready"
    http_status = 503
    grpc_status = "UNAVAILABLE"
    title = "The service is not ready"


class DrainingError(RetryableError):
    """The service is about to stop."""

    code = "draining"
    http_status = 503
    grpc_status = "UNAVAILABLE"
    title = "The service is draining"


class ClientGoneError(ServiceError):
    """The client left before its answer was ready. It is logged and counted; nobody reads it."""

    code = "cancelled"
    http_status = 499
    grpc_status = "CANCELLED"
    title = "The client cancelled the request"


class InternalError(ServiceError):
    """The fault is ours; the log has the cause under the request's id."""

    code = "internal"
    http_status = 500
    grpc_status = "INTERNAL"
    title = "The service failed"


class DeadlineExceededError(ServiceError):
    """The answer was not ready in the time that the request gave."""

    code = "deadline_exceeded"
    http_status = 504
    grpc_status = "DEADLINE_EXCEEDED"
    title = "The deadline passed"


def error_of(code: str, detail: str, retry_after_ms: int | None = None) -> ServiceError:
    """The error that another process of the service told by its code; one whose message is its detail alone."""
    kind = _TOLD[code]
    if issubclass(kind, RetryableError) and retry_after_ms is not None:
        return kind(detail, retry_after=retry_after_ms / 1000)
    return kind(detail)


_TOLD: Mapping[str, type[ServiceError]] = {
    kind.code: kind
    for kind in (
        PermissionDeniedError,
        TooManyCropsError,
        OverloadedError,
        NotReadyError,
        DrainingError,
        ClientGoneError,
        InternalError,
        DeadlineExceededError,
    )
}
