"""What a request may hold is the same by both protocols, however small it is when it is compressed."""

import gzip
from collections.abc import Callable

import grpc
import httpx
import pytest

from clip4str_service.pb import recognition_pb2 as pb
from clip4str_service.pb.recognition_pb2_grpc import RecognitionServiceStub
from clip4str_service.samples import Sample
from samples.demo import RunningService
from tests.e2e.observed import FRONT_END, PATIENT, children, most_resident
from tests.e2e.traffic import reason

LIMIT = 16 << 20
CROP_LIMIT = 2 << 20
BOMB = 128 << 20  # bytes, of which gzip makes a thousandth
BOUNDARY = b"boundary"
FORM = {"Content-Type": "multipart/form-data; boundary=boundary"}
GZIP = grpc.Compression.Gzip


def padded(content: bytes, size: int) -> bytes:
    """The JPEG with zeros behind it, which are of no use to anybody."""
    return content + bytes(size - len(content))


def form(content: bytes, size: int) -> bytes:
    """A form of so many bytes: crops that are as large as may be, and a last one that is smaller."""
    head = b'--boundary\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
    whole = head + padded(content, CROP_LIMIT) + b"\r\n"
    count, left = divmod(size - len(b"--boundary--\r\n"), len(whole))
    last = head + padded(content, left - len(head) - 2) + b"\r\n"
    return whole * count + last + b"--boundary--\r\n"


def message(content: bytes, size: int) -> pb.RecognizeRequest:
    """Likewise."""
    request = pb.RecognizeRequest(crops=[pb.Crop(content=padded(content, CROP_LIMIT))] * 7)
    last = request.crops.add(content=content)
    last.content = padded(content, len(content) + size - request.ByteSize() - 3)  # longer lengths
    last.content = padded(content, len(last.content) + size - request.ByteSize())
    return request


def test_largest_request_is_read_by_both(
    rest: httpx.Client, rpc: RecognitionServiceStub, exit_sign: Sample
) -> None:
    body, request = form(exit_sign.content, LIMIT), message(exit_sign.content, LIMIT)
    assert len(body) == request.ByteSize() == LIMIT
    by_rest = rest.post("/v1/recognize", content=body, headers=FORM)
    assert {result["text"] for result in by_rest.json()["results"]} == {exit_sign.text}
    by_grpc = rpc.Recognize(request, timeout=PATIENT)
    assert [result.recognition.text for result in by_grpc.results] == [exit_sign.text] * 8
    answers = rpc.RecognizeStream(iter([stream_request(request)]), timeout=PATIENT)
    by_stream = [result.recognition.text for answer in answers for result in answer.results]
    assert by_stream == [exit_sign.text] * 8


def test_one_byte_more_is_refused_by_both(
    rest: httpx.Client, rpc: RecognitionServiceStub, exit_sign: Sample
) -> None:
    by_rest = rest.post("/v1/recognize", content=form(exit_sign.content, LIMIT + 1), headers=FORM)
    assert (by_rest.status_code, by_rest.json()["code"]) == (413, "payload_too_large")
    request = message(exit_sign.content, LIMIT + 1)
    assert refusal(lambda: rpc.Recognize(request, timeout=PATIENT)) == "payload_too_large"
    messages = iter([stream_request(request)])
    assert refusal(lambda: list(rpc.RecognizeStream(messages, timeout=PATIENT))) == "payload_too_large"


def test_compressed_requests_are_read(rpc: RecognitionServiceStub, exit_sign: Sample) -> None:
    request = message(exit_sign.content, LIMIT)
    by_grpc = rpc.Recognize(request, timeout=PATIENT, compression=GZIP)
    assert [result.recognition.text for result in by_grpc.results] == [exit_sign.text] * 8
    messages = iter([stream_request(request)])
    answers = rpc.RecognizeStream(messages, timeout=PATIENT, compression=GZIP)
    assert sum(len(answer.results) for answer in answers) == 8
    assert rpc.GetModel(pb.GetModelRequest(), timeout=PATIENT, compression=GZIP).name == "default"


def test_compression_gets_nothing_past_the_limits(
    service: RunningService, rest: httpx.Client, rpc: RecognitionServiceStub, exit_sign: Sample
) -> None:
    (front_end,) = children(service, FRONT_END)
    request = message(exit_sign.content, LIMIT + 1)
    compressed = refusal(lambda: rpc.Recognize(request, timeout=PATIENT, compression=GZIP))
    assert compressed == "payload_too_large"
    before = most_resident(front_end)
    bomb = pb.RecognizeRequest(crops=[pb.Crop(content=bytes(BOMB))])
    for _ in range(3):
        with pytest.raises(grpc.RpcError, match="RESOURCE_EXHAUSTED"):
            rpc.Recognize(bomb, timeout=PATIENT, compression=GZIP)
    assert most_resident(front_end) - before < BOMB // 2
    headers = {"Content-Type": "image/jpeg", "Content-Encoding": "gzip"}
    by_rest = rest.post("/v1/recognize", content=gzip.compress(exit_sign.content), headers=headers)
    assert (by_rest.status_code, by_rest.json()["code"]) == (415, "unsupported_media_type")


def stream_request(request: pb.RecognizeRequest) -> pb.RecognizeStreamRequest:
    """The same crops, in a message of as many bytes."""
    return pb.RecognizeStreamRequest(crops=request.crops)


def refusal(call: Callable[[], object]) -> str:
    """The code that a call fails with."""
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return reason(caught.value)
