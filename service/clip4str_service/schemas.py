"""The JSON of REST: what a request may hold, what an answer holds, and how each is written.

The models of answers document them in OpenAPI; answers themselves are written straight from the readings.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson
from pydantic import BaseModel, ConfigDict, Field

from clip4str_service.engine import Answer
from clip4str_service.errors import ServiceError
from clip4str_service.options import MAX_ID_LENGTH, Detail, Options
from clip4str_service.readings import BranchReading, ModelInfo, Reading
from clip4str_service.settings import MAX_CROPS


class _Schema(BaseModel):
    model_config = ConfigDict(extra="forbid")


class CropBody(_Schema):
    """One crop of a JSON request."""

    id: str | None = Field(
        None, max_length=MAX_ID_LENGTH, description="names the crop in its result; its position when absent"
    )
    content: str = Field(description="the encoded image, in base64 (RFC 4648, padded, no line breaks)")


class RecognizeBody(_Schema):
    """A JSON request."""

    crops: list[CropBody] = Field(max_length=MAX_CROPS)
    options: Options = Options()


class AlternativeBody(_Schema):
    """Another character for a place."""

    text: str
    confidence: float


class CharacterBody(_Schema):
    """One character of a word, and the probability of it at its place."""

    text: str
    confidence: float
    alternatives: list[AlternativeBody]


class BranchBody(_Schema):
    """What one branch read. `characters` is left out with `detail=text`."""

    text: str
    confidence: float
    eos_confidence: float
    characters: list[CharacterBody] = []


class BranchesBody(_Schema):
    """What both branches read."""

    visual: BranchBody
    cross_modal: BranchBody


class RecognitionBody(_Schema):
    """What was read in one crop. Confidences are probabilities from 0 to 1, uncalibrated."""

    id: str
    text: str
    confidence: float
    agreement: bool
    truncated: bool
    branches: BranchesBody


class ViolationBody(_Schema):
    """A field of the request that is wrong, and why."""

    field: str
    detail: str


class ProblemBody(_Schema):
    """An error (RFC 9457). `code` is what a program should look at."""

    type: str
    title: str
    status: int
    code: str
    detail: str
    errors: list[ViolationBody] = []
    retry_after_ms: int | None = None


class ResponseProblemBody(ProblemBody):
    """An error of a whole request."""

    request_id: str


class FailureBody(_Schema):
    """Why one crop was not read."""

    id: str
    error: ProblemBody


class ModelNameBody(_Schema):
    """What read the crops."""

    name: str
    revision: str


class TimingBody(_Schema):
    """Where the request's time went, in milliseconds: the slowest crop's time in each stage."""

    decode_ms: float
    queue_ms: float
    inference_ms: float


class RecognizeAnswer(_Schema):
    """One result for each crop, in order."""

    model: ModelNameBody
    results: list[RecognitionBody | FailureBody]
    timing: TimingBody


class ImageSizeBody(_Schema):
    """Pixels."""

    height: int
    width: int


class ModelBody(_Schema):
    """A loaded model."""

    name: str
    revision: str
    variant: str
    dtype: str
    device: str
    charset: str
    max_length: int
    image_size: ImageSizeBody
    parameters: int


class ModelsAnswer(_Schema):
    """The loaded models: one."""

    models: list[ModelBody]


def recognize_json(ids: Sequence[str], answer: Answer, detail: Detail) -> bytes:
    """A RecognizeAnswer."""
    results = [
        {"id": crop_id, "error": problem(outcome)}
        if isinstance(outcome, ServiceError)
        else _recognition(crop_id, outcome, detail)
        for crop_id, outcome in zip(ids, answer.outcomes, strict=True)
    ]
    model = {"name": answer.model.name, "revision": answer.model.revision}
    return orjson.dumps({"model": model, "results": results, "timing": answer.timing._asdict()})


def models_json(model: ModelInfo) -> bytes:
    """A ModelsAnswer."""
    height, width = model.image_size
    fields = {name: getattr(model, name) for name in ModelBody.model_fields}
    return orjson.dumps({"models": [{**fields, "image_size": {"height": height, "width": width}}]})


def problem(error: ServiceError) -> dict[str, Any]:
    """A ProblemBody."""
    body: dict[str, Any] = {
        "type": f"urn:clip4str:error:{error.code}",
        "title": error.title,
        "status": error.http_status,
        "code": error.code,
        "detail": error.detail,
    }
    if error.violations:
        body["errors"] = [{"field": each.field, "detail": each.description} for each in error.violations]
    if error.retry_after_ms is not None:
        body["retry_after_ms"] = error.retry_after_ms
    return body


def _recognition(crop_id: str, reading: Reading, detail: Detail) -> dict[str, Any]:
    """A RecognitionBody; the branches are written by orjson as they are: their fields are the contract's."""
    return {
        "id": crop_id,
        "text": reading.text,
        "confidence": reading.confidence,
        "agreement": reading.agreement,
        "truncated": reading.truncated,
        "branches": {
            "visual": _branch(reading.visual, detail),
            "cross_modal": _branch(reading.cross_modal, detail),
        },
    }


def _branch(branch: BranchReading, detail: Detail) -> BranchReading | dict[str, Any]:
    if detail is Detail.CHARACTERS:
        return branch
    return {"text": branch.text, "confidence": branch.confidence, "eos_confidence": branch.eos_confidence}
