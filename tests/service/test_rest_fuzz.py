"""Malformed requests over HTTP: each has its answer in time, none is a fault of ours, and nothing is left of any."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import requests
import schemathesis
from hypothesis import given, settings
from hypothesis import strategies as st
from schemathesis import Case, GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from clip4str_service.images import MEDIA_TYPES
from clip4str_service.options import Options
from clip4str_service.schemas import RecognizeAnswer, ResponseProblemBody
from tests.service.front import PATIENCE, Front
from tests.service.fuzzing import FORM, IMAGES, JSON, Background, RestPort, mutated, opened
from tests.service.pixel_worker import plain
from tests.service.rest_service import PNG, said

pytestmark = pytest.mark.timeout(3600)

FUZZ = settings.get_profile("fuzz")
REFUSALS = {400, 413, 415, 422, 504}  # 504: options may leave no time

FORMS = [("application/json", JSON), ("multipart/form-data; boundary=b", FORM)]
FORMS += [(media_type, image) for media_type, image in zip(MEDIA_TYPES, IMAGES, strict=False)]

PRINTABLE = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=30).map(str.strip)
CONTENT_TYPES = st.sampled_from([form for form, _ in FORMS]) | st.builds(
    str.__add__, st.sampled_from(["", "multipart/form-data;", "application/json;"]), PRINTABLE
)
HEADERS = st.dictionaries(
    st.sampled_from(["content-encoding", "x-request-id", "traceparent", "authorization", "x-api-key"]),
    PRINTABLE,
    max_size=2,
)
NAMES = st.sampled_from([*Options.model_fields, "image"]) | st.text(max_size=8)
QUERIES = st.lists(st.tuples(NAMES, st.text(max_size=12) | st.integers().map(str)), max_size=3)


@pytest.fixture(scope="module")
def background() -> Iterator[Background]:
    with Background() as background:
        yield background


@pytest.fixture(scope="module")
def port(background: Background) -> Iterator[RestPort]:
    port: RestPort = background.run(opened(RestPort))
    yield port
    background.run(port.stop())


@pytest.fixture(scope="module")
def client(port: RestPort) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=port.url, timeout=PATIENCE) as client:
        yield client


@pytest.fixture(autouse=True)
def nothing_is_left(background: Background, port: RestPort, client: httpx.Client) -> Iterator[None]:
    yield
    background.run(Front.until_idle(port))
    assert said(client.post("/v1/recognize", content=plain(), headers=PNG)) == ["ABCDEF"]


def judge(response: httpx.Response) -> None:
    if response.status_code == 200:
        results = RecognizeAnswer.model_validate_json(response.content).results
        assert not any("internal" in result.model_dump_json() for result in results)
        return
    assert response.status_code in REFUSALS, (response.status_code, response.text)
    assert ResponseProblemBody.model_validate_json(response.content).status == response.status_code


@given(
    st.sampled_from(FORMS).flatmap(
        lambda form: st.tuples(st.just(form[0]) | CONTENT_TYPES, mutated(st.just(form[1])))
    ),
    HEADERS,
    QUERIES | st.just([]),
    st.booleans(),
)
@settings(FUZZ)
def test_mutated_bodies(
    client: httpx.Client,
    form: tuple[str, bytes],
    headers: dict[str, str],
    query: list[tuple[str, str | int | float | bool | None]],
    chunked: bool,
) -> None:
    content_type, content = form
    pieces = [content[start : start + 100] for start in range(0, len(content), 100)]
    response = client.post(
        "/v1/recognize",
        content=iter(pieces) if chunked else content,
        headers={"content-type": content_type, **headers},
        params=httpx.QueryParams(query),
    )
    judge(response)


def test_requests_that_the_document_describes_or_forbids(port: RestPort) -> None:
    schema = schemathesis.openapi.from_dict(port.app.openapi())
    session = requests.Session()

    @given(st.one_of([schema.as_strategy(generation_mode=mode) for mode in GenerationMode]))
    @settings(FUZZ)
    def send(case: Case[Any]) -> None:
        response = case.call(base_url=port.url, session=session, timeout=PATIENCE)
        assert response.status_code in {200, *REFUSALS}, response.text
        checks = [status_code_conformance, content_type_conformance, response_schema_conformance]
        case.validate_response(response, checks=checks)

    with session:
        send()
