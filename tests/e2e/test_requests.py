"""Requests that are wrong as a whole: one problem document, or one gRPC status, that says what to mend."""

import base64
from typing import Any

import grpc
import httpx
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from clip4str_service.pb import recognition_pb2 as pb
from clip4str_service.pb.recognition_pb2_grpc import RecognitionServiceStub
from clip4str_service.samples import Sample

TOO_MANY = 129
CROP = {"content": base64.b64encode(b"never decoded").decode()}


def assert_problem(response: httpx.Response, status: int, code: str, mentions: str) -> None:
    assert response.headers["Content-Type"] == "application/problem+json"
    problem = response.json()
    assert (response.status_code, problem["status"], problem["code"]) == (status, status, code)
    assert {"type", "title", "detail", "request_id"} <= set(problem)
    assert mentions in problem["detail"]


@pytest.mark.parametrize(
    ("body", "mentions"),
    [
        ({"crops": []}, "crops"),
        ({}, "crops"),
        ({"crops": [{"id": "a"}]}, "content"),
        ({"crops": [CROP], "options": {"top_k": 6}}, "top_k"),
        ({"crops": [CROP], "options": {"top_k": -1}}, "top_k"),
        ({"crops": [CROP], "options": {"charset": ""}}, "charset"),
        ({"crops": [CROP], "options": {"charset": "\u00e9"}}, "charset"),
        ({"crops": [CROP], "options": {"detail": "words"}}, "detail"),
        ({"crops": [CROP], "options": {"timeout_ms": 0}}, "timeout_ms"),
        ({"crops": [CROP], "options": {"colour": "red"}}, "colour"),
    ],
)
def test_bad_field_is_named(rest: httpx.Client, body: dict[str, Any], mentions: str) -> None:
    assert_problem(rest.post("/v1/recognize", json=body), 400, "invalid_request", mentions)


def test_unreadable_json_is_refused(rest: httpx.Client) -> None:
    headers = {"Content-Type": "application/json"}
    response = rest.post("/v1/recognize", content=b'{"crops": [', headers=headers)
    assert_problem(response, 400, "invalid_request", "JSON")


def test_bad_query_option_is_named(rest: httpx.Client, samples: list[Sample]) -> None:
    response = rest.post(
        "/v1/recognize?top_k=many", content=samples[0].content, headers={"Content-Type": "image/jpeg"}
    )
    assert_problem(response, 400, "invalid_request", "top_k")


def test_form_without_an_image_is_refused(rest: httpx.Client) -> None:
    response = rest.post("/v1/recognize", files={"picture": ("a.jpg", b"x", "image/jpeg")})
    assert_problem(response, 400, "invalid_request", "image")


def test_other_media_types_are_refused(rest: httpx.Client) -> None:
    response = rest.post("/v1/recognize", content=b"hello", headers={"Content-Type": "text/plain"})
    assert_problem(response, 415, "unsupported_media_type", "text/plain")


def test_too_many_crops_are_refused(rest: httpx.Client, rpc: RecognitionServiceStub) -> None:
    assert_problem(
        rest.post("/v1/recognize", json={"crops": [CROP] * TOO_MANY}), 413, "too_many_crops", "128"
    )
    request = pb.RecognizeRequest(crops=[pb.Crop(content=b"x")] * TOO_MANY)
    assert reason(rpc, request) == (grpc.StatusCode.INVALID_ARGUMENT, "too_many_crops")


def test_too_large_a_request_is_refused(rest: httpx.Client) -> None:
    content = bytes(17 << 20)
    response = rest.post("/v1/recognize", content=content, headers={"Content-Type": "image/jpeg"})
    assert_problem(response, 413, "payload_too_large", "16")


def test_unknown_path_and_method_are_problems_too(rest: httpx.Client) -> None:
    for response, status in ((rest.get("/v1/nothing"), 404), (rest.get("/v1/recognize"), 405)):
        assert response.status_code == status
        assert response.headers["Content-Type"] == "application/problem+json"


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        (pb.RecognizeRequest(), "invalid_request"),
        (pb.RecognizeRequest(crops=[pb.Crop(content=b"x")], options=pb.Options(top_k=6)), "invalid_request"),
        (
            pb.RecognizeRequest(crops=[pb.Crop(content=b"x")], options=pb.Options(charset="\u00e9")),
            "invalid_request",
        ),
    ],
)
def test_bad_grpc_request_carries_the_same_code(
    rpc: RecognitionServiceStub, request_: pb.RecognizeRequest, code: str
) -> None:
    assert reason(rpc, request_) == (grpc.StatusCode.INVALID_ARGUMENT, code)


def reason(rpc: RecognitionServiceStub, request: pb.RecognizeRequest) -> tuple[grpc.StatusCode, str]:
    """Return the status code and the ErrorInfo reason of a call that fails."""
    with pytest.raises(grpc.RpcError) as caught:
        rpc.Recognize(request, timeout=60)
    call: Any = caught.value  # an RpcError that is a Call as well, which its type does not tell
    status = rpc_status.from_call(call)
    info = error_details_pb2.ErrorInfo()
    assert status is not None
    assert any(detail.Unpack(info) for detail in status.details)
    assert status.message
    return call.code(), info.reason
