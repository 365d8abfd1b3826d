"""Malformed calls over gRPC: each has its status in time, none is a fault of ours, and nothing is left of any."""

from collections.abc import Iterator, Sequence
from typing import Any

import grpc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clip4str_service.pb import recognition_pb2 as pb
from clip4str_service.rpc_calls import SERVICE
from tests.service.front import PATIENCE, Front
from tests.service.fuzzing import IMAGES, Background, mutated, opened
from tests.service.pixel_worker import plain
from tests.service.rpc_service import RpcService, asking, told

pytestmark = pytest.mark.timeout(3600)

FUZZ = settings.get_profile("fuzz")
INT32 = st.integers(-(2**31), 2**31 - 1)
TEXT = st.text(max_size=20)

OPTIONS = st.builds(
    pb.Options,
    detail=st.integers(0, 2) | INT32,  # enums may have any value on the wire
    top_k=st.integers(0, 5) | INT32,
    charset=st.none() | st.sampled_from(["digits", "full", "ABC"]) | TEXT,
    priority=st.integers(0, 2) | INT32,
    timeout_ms=st.none() | st.integers(1, 10_000) | INT32,
)
CROPS = st.lists(
    st.builds(
        pb.Crop, id=TEXT | st.integers(120, 140).map("x".__mul__), content=mutated(st.sampled_from(IMAGES))
    ),
    max_size=6,
)
REQUESTS = st.builds(pb.RecognizeRequest, crops=CROPS, options=st.none() | OPTIONS)
MESSAGES = st.builds(pb.RecognizeStreamRequest, crops=CROPS, options=st.none() | OPTIONS)
GOOD = [
    asking(plain("123456"), b"", charset="digits", top_k=2, timeout_ms=5000).SerializeToString(),
    asking(*IMAGES[:3]).SerializeToString(),
    pb.RecognizeStreamRequest(crops=[pb.Crop(id="a", content=plain())]).SerializeToString(),
]
METADATA = st.lists(
    st.tuples(
        st.sampled_from(["x-request-id", "traceparent", "x-api-key", "authorization"]),
        st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=60),
    ),
    max_size=3,
)


@pytest.fixture(scope="module")
def background() -> Iterator[Background]:
    with Background() as background:
        yield background


@pytest.fixture(scope="module")
def target(background: Background) -> Iterator[RpcService]:
    target: RpcService = background.run(opened(RpcService))
    yield target
    background.run(target.stop())


@pytest.fixture(scope="module")
def channel(target: RpcService) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(f"127.0.0.1:{target.port}") as channel:
        yield channel


@pytest.fixture(autouse=True)
def nothing_is_left(background: Background, target: RpcService, channel: grpc.Channel) -> Iterator[None]:
    yield
    background.run(Front.until_idle(target))
    answer = pb.RecognizeResponse.FromString(call(channel, "Recognize", asking(plain()).SerializeToString()))
    assert [told(result) for result in answer.results] == ["ABCDEF"]


def call(channel: grpc.Channel, method: str, message: bytes, **more: Any) -> bytes:
    """The answer's bytes, or b"" where the call is refused as it may be."""
    unary: Any = channel.unary_unary(f"/{SERVICE}/{method}")
    try:
        answer: bytes = unary(message, timeout=PATIENCE, **more)
    except grpc.RpcError as error:
        return refused(error)
    return answer


def refused(error: Any) -> bytes:
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT, (error.code(), error.details())
    return b""


def stream(channel: grpc.Channel, messages: Sequence[bytes]) -> list[pb.Result]:
    """The results up to the stream's end, which is a good one or a refusal."""
    opened_: Any = channel.stream_stream(
        f"/{SERVICE}/RecognizeStream", response_deserializer=pb.RecognizeStreamResponse.FromString
    )
    results: list[pb.Result] = []
    try:
        for response in opened_(iter(messages), timeout=PATIENCE):
            results += response.results
    except grpc.RpcError as error:
        refused(error)
    return results


def judge(results: Sequence[pb.Result]) -> None:
    for result in results:
        assert result.HasField("recognition") or told(result) != "internal"


@given(st.sampled_from(["Recognize", "GetModel"]), mutated(st.sampled_from(GOOD)), METADATA)
@settings(FUZZ)
def test_mutated_messages(
    channel: grpc.Channel, method: str, message: bytes, metadata: list[tuple[str, str]]
) -> None:
    answer = call(channel, method, message, metadata=metadata)
    if method == "Recognize":
        judge(pb.RecognizeResponse.FromString(answer).results)


@given(REQUESTS)
@settings(FUZZ)
def test_any_values(channel: grpc.Channel, request_: pb.RecognizeRequest) -> None:
    answer = pb.RecognizeResponse.FromString(call(channel, "Recognize", request_.SerializeToString()))
    assert len(answer.results) in (0, len(request_.crops))
    judge(answer.results)


@given(
    st.lists(
        mutated(st.sampled_from(GOOD)) | MESSAGES.map(pb.RecognizeStreamRequest.SerializeToString), max_size=5
    )
)
@settings(FUZZ)
def test_mutated_streams(channel: grpc.Channel, messages: list[bytes]) -> None:
    judge(stream(channel, messages))


@given(st.lists(CROPS, max_size=5))
@settings(FUZZ)
def test_every_crop_of_a_stream_is_answered_once(
    channel: grpc.Channel, messages: list[list[pb.Crop]]
) -> None:
    parts = [crops[:4] for crops in messages]
    sent = [pb.RecognizeStreamRequest(crops=crops).SerializeToString() for crops in parts]
    ids = [
        crop.id or str(position) for position, crop in enumerate(crop for crops in parts for crop in crops)
    ]
    results = stream(channel, sent)
    assert sorted(result.id for result in results) == sorted(each[:128] for each in ids)
    judge(results)
