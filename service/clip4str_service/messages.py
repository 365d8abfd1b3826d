"""The protobuf messages of gRPC, to and from what the engine takes and gives."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2

from clip4str_service.engine import Answer
from clip4str_service.errors import InvalidRequestError, ServiceError, Violation
from clip4str_service.hub import Outcome
from clip4str_service.options import MAX_ID_LENGTH, Detail, Options, Priority, options_from_values
from clip4str_service.pb import recognition_pb2 as pb
from clip4str_service.readings import BranchReading, ModelInfo, Reading

_DOMAIN = "clip4str"

_DETAILS: dict[int, Detail] = {
    pb.DETAIL_UNSPECIFIED: Detail.CHARACTERS,
    pb.DETAIL_TEXT: Detail.TEXT,
    pb.DETAIL_CHARACTERS: Detail.CHARACTERS,
}
_PRIORITIES: dict[int, Priority] = {
    pb.PRIORITY_UNSPECIFIED: Priority.INTERACTIVE,
    pb.PRIORITY_INTERACTIVE: Priority.INTERACTIVE,
    pb.PRIORITY_BULK: Priority.BULK,
}


def ids_of(crops: Sequence[pb.Crop]) -> list[str]:
    """The crops' ids; the position stands for an empty one. Raises InvalidRequestError."""
    for index, crop in enumerate(crops):
        check_id(crop.id, f"crops[{index}].id")
    return [crop.id or str(index) for index, crop in enumerate(crops)]


def check_id(crop_id: str, field: str) -> None:
    """Raises InvalidRequestError for an id that is too long."""
    if len(crop_id) > MAX_ID_LENGTH:
        raise InvalidRequestError(Violation(field, f"should have at most {MAX_ID_LENGTH} characters"))


def options_of(options: pb.Options) -> Options:
    """Checked options. Raises InvalidRequestError."""
    for field, value, known in (
        ("detail", options.detail, _DETAILS),
        ("priority", options.priority, _PRIORITIES),
    ):
        if value not in known:
            raise InvalidRequestError(Violation(f"options.{field}", f"there is no value {value}"))
    values: dict[str, object] = {
        "detail": _DETAILS[options.detail],
        "priority": _PRIORITIES[options.priority],
        "top_k": options.top_k,
    }
    if options.HasField("charset"):
        values["charset"] = options.charset
    if options.HasField("timeout_ms"):
        values["timeout_ms"] = options.timeout_ms
    return options_from_values(values)


def recognize_response(ids: Sequence[str], answer: Answer, detail: Detail) -> pb.RecognizeResponse:
    """The answer to every crop, in order."""
    return pb.RecognizeResponse(
        model=_model(answer.model),
        results=[
            result(crop_id, outcome, detail) for crop_id, outcome in zip(ids, answer.outcomes, strict=True)
        ],
        timing=pb.Timing(**answer.timing._asdict()),
    )


def stream_response(model: ModelInfo | None, results: Sequence[pb.Result]) -> pb.RecognizeStreamResponse:
    """Some answers of a stream; without a model where none was asked."""
    return pb.RecognizeStreamResponse(model=None if model is None else _model(model), results=results)


def result(crop_id: str, outcome: Outcome, detail: Detail) -> pb.Result:
    """The answer to one crop."""
    if isinstance(outcome, ServiceError):
        return pb.Result(id=crop_id, error=status_of(outcome))
    return pb.Result(id=crop_id, recognition=_recognition(outcome, detail))


def model_response(model: ModelInfo) -> pb.GetModelResponse:
    """A description of the model."""
    height, width = model.image_size
    return pb.GetModelResponse(
        name=model.name,
        revision=model.revision,
        variant=model.variant,
        dtype=model.dtype,
        device=model.device,
        charset=model.charset,
        max_length=model.max_length,
        image_size=pb.ImageSize(height=height, width=width),
        parameters=model.parameters,
    )


def status_of(error: ServiceError, request_id: str = "") -> status_pb2.Status:
    """The error of one crop or, with its request's id, of a whole call."""
    status = status_pb2.Status(code=code_pb2.Code.Value(error.grpc_status), message=error.detail)
    details: list[Message] = [error_details_pb2.ErrorInfo(reason=error.code, domain=_DOMAIN)]
    if error.violations:
        details.append(
            error_details_pb2.BadRequest(
                field_violations=[
                    error_details_pb2.BadRequest.FieldViolation(
                        field=each.field, description=each.description
                    )
                    for each in error.violations
                ]
            )
        )
    if error.retry_after_ms is not None:
        delay = Duration()
        delay.FromTimedelta(timedelta(milliseconds=error.retry_after_ms))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    if request_id:
        details.append(error_details_pb2.RequestInfo(request_id=request_id))
    for detail in details:
        status.details.add().Pack(detail)
    return status


def _model(model: ModelInfo) -> pb.Model:
    return pb.Model(name=model.name, revision=model.revision)


def _recognition(reading: Reading, detail: Detail) -> pb.Recognition:
    return pb.Recognition(
        text=reading.text,
        confidence=reading.confidence,
        agreement=reading.agreement,
        truncated=reading.truncated,
        branches=pb.Branches(
            visual=_branch(reading.visual, detail), cross_modal=_branch(reading.cross_modal, detail)
        ),
    )


def _branch(branch: BranchReading, detail: Detail) -> pb.Branch:
    characters = branch.characters if detail is Detail.CHARACTERS else ()
    return pb.Branch(
        text=branch.text,
        confidence=branch.confidence,
        eos_confidence=branch.eos_confidence,
        characters=[
            pb.Character(
                text=character.text,
                confidence=character.confidence,
                alternatives=[
                    pb.Alternative(text=other.text, confidence=other.confidence)
                    for other in character.alternatives
                ],
            )
            for character in characters
        ],
    )
