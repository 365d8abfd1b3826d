"""Protobuf messages: options as the engine takes them, readings and errors as clients are told them."""

import pytest
from google.rpc import code_pb2, error_details_pb2

from clip4str_service.engine import Answer, Timing
from clip4str_service.errors import (
    DrainingError,
    InvalidRequestError,
    OverloadedError,
    ServiceError,
    UndecodableImageError,
    Violation,
)
from clip4str_service.messages import (
    ids_of,
    model_response,
    options_of,
    recognize_response,
    result,
    status_of,
    stream_response,
)
from clip4str_service.options import Detail, Options, Priority
from clip4str_service.pb import recognition_pb2 as pb
from clip4str_service.readings import Alternative, BranchReading, Character, Reading
from tests.service.pixel_worker import MODEL
from tests.service.rpc_service import told, unpacked


def branch(text: str, confidence: float) -> BranchReading:
    characters = tuple(Character(each, confidence, (Alternative("o", 0.25),)) for each in text)
    return BranchReading(text, confidence, 0.75, characters)


READING = Reading(branch("EXIT", 0.5), branch("EX1T", 0.625), truncated=True)


def test_options_that_are_not_given_are_the_defaults() -> None:
    assert options_of(pb.Options()) == Options()


@pytest.mark.parametrize("detail", pb.Detail.values())
@pytest.mark.parametrize("priority", pb.Priority.values())
def test_every_value_of_an_enum_has_its_meaning(
    detail: "pb.Detail.ValueType", priority: "pb.Priority.ValueType"
) -> None:
    options = options_of(pb.Options(detail=detail, priority=priority))
    text, bulk = detail == pb.DETAIL_TEXT, priority == pb.PRIORITY_BULK
    assert options.detail is (Detail.TEXT if text else Detail.CHARACTERS)
    assert options.priority is (Priority.BULK if bulk else Priority.INTERACTIVE)


def test_given_options_are_taken() -> None:
    options = options_of(pb.Options(top_k=5, charset="digits", timeout_ms=600_000))
    assert (options.top_k, options.charset, options.timeout_ms) == (5, "digits", 600_000)


@pytest.mark.parametrize(
    ("options", "field"),
    [
        (pb.Options(detail=3), "options.detail"),  # type: ignore[arg-type]  # as a newer client may
        (pb.Options(priority=-1), "options.priority"),  # type: ignore[arg-type]  # likewise
        (pb.Options(top_k=6), "options.top_k"),
        (pb.Options(top_k=-(2**31)), "options.top_k"),
        (pb.Options(charset=""), "options.charset"),
        (pb.Options(timeout_ms=0), "options.timeout_ms"),
        (pb.Options(timeout_ms=600_001), "options.timeout_ms"),
    ],
)
def test_wrong_option_is_named(options: pb.Options, field: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        options_of(options)
    assert [violation.field for violation in caught.value.violations] == [field]


def test_position_stands_for_an_empty_id() -> None:
    assert ids_of([pb.Crop(id="1"), pb.Crop(), pb.Crop(id="é" * 128)]) == ["1", "1", "é" * 128]
    with pytest.raises(InvalidRequestError, match=r"crops\[1\]\.id: .*128"):
        ids_of([pb.Crop(), pb.Crop(id="x" * 129)])


@pytest.mark.parametrize("detail", Detail)
def test_reading_is_told_field_by_field(detail: Detail) -> None:
    told_ = result("a", READING, detail)
    assert (told_.id, told_.recognition.text, told_.recognition.confidence) == ("a", "EX1T", 0.625)
    assert (told_.recognition.agreement, told_.recognition.truncated) == (False, True)
    visual = told_.recognition.branches.visual
    assert (visual.text, visual.confidence, visual.eos_confidence) == ("EXIT", 0.5, 0.75)
    assert told_.recognition.branches.cross_modal.text == "EX1T"
    assert "".join(each.text for each in visual.characters) == ("" if detail is Detail.TEXT else "EXIT")
    for character in visual.characters:
        assert character.confidence == 0.5
        assert [(other.text, other.confidence) for other in character.alternatives] == [("o", 0.25)]


def test_answer_holds_each_outcome_in_order_and_what_read_it() -> None:
    answer = Answer(MODEL, [READING, UndecodableImageError("half a PNG")], Timing(1.0, 2.0, 3.0))
    response = recognize_response(["a", "b"], answer, Detail.TEXT)
    assert [(each.id, told(each)) for each in response.results] == [("a", "EX1T"), ("b", "undecodable_image")]
    assert (response.model.name, response.model.revision) == (MODEL.name, MODEL.revision)
    timing = response.timing
    assert (timing.decode_ms, timing.queue_ms, timing.inference_ms) == (1.0, 2.0, 3.0)


def test_stream_answers_name_a_model_where_one_was_asked() -> None:
    results = [result("a", READING, Detail.TEXT)]
    assert stream_response(MODEL, results).model.revision == MODEL.revision
    assert not stream_response(None, results).HasField("model")


def test_model_is_described() -> None:
    response = model_response(MODEL)
    fields = [field.name for field in pb.GetModelResponse.DESCRIPTOR.fields if field.name != "image_size"]
    assert {name: getattr(response, name) for name in fields} == {
        name: getattr(MODEL, name) for name in fields
    }
    assert (response.image_size.height, response.image_size.width) == MODEL.image_size


def rows(kind: type[ServiceError]) -> list[type[ServiceError]]:
    return [row for child in kind.__subclasses__() for row in rows(child)] or [kind]


@pytest.mark.parametrize("kind", rows(ServiceError))
def test_every_error_has_its_status_and_reason(kind: type[ServiceError]) -> None:
    error = InvalidRequestError(Violation("crops", "no")) if kind is InvalidRequestError else kind("no")
    status = status_of(error)
    assert status.code == code_pb2.Code.Value(kind.grpc_status)
    assert status.message == error.detail
    info = unpacked(status, error_details_pb2.ErrorInfo)
    assert info is not None
    assert (info.reason, info.domain) == (kind.code, "clip4str")
    assert (unpacked(status, error_details_pb2.RetryInfo) is not None) == (error.retry_after_ms is not None)


def test_status_details() -> None:
    status = status_of(InvalidRequestError(Violation("a", "wrong"), Violation("b", "too")), "id-7")
    bad_request = unpacked(status, error_details_pb2.BadRequest)
    request = unpacked(status, error_details_pb2.RequestInfo)
    assert bad_request is not None
    assert request is not None
    found = [(each.field, each.description) for each in bad_request.field_violations]
    assert (found, request.request_id) == ([("a", "wrong"), ("b", "too")], "id-7")
    retry = unpacked(status_of(OverloadedError("full", retry_after=0.2505)), error_details_pb2.RetryInfo)
    assert retry is not None
    assert retry.retry_delay.ToMilliseconds() == 251
    assert unpacked(status_of(DrainingError("over")), error_details_pb2.RequestInfo) is None
