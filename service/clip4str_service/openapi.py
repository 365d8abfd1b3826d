"""What the OpenAPI document says beyond what FastAPI sees: the three body forms, the options, the errors."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from clip4str_service.bodies import FORM, IMAGE_FIELD, JSON
from clip4str_service.errors import ServiceError
from clip4str_service.images import MEDIA_TYPES
from clip4str_service.schemas import RecognizeBody, ResponseProblemBody

_COMPONENTS = "#/components/schemas/{model}"
_BINARY = {"type": "string", "format": "binary"}

_REQUEST = RecognizeBody.model_json_schema(ref_template=_COMPONENTS)
_PROBLEM = ResponseProblemBody.model_json_schema(ref_template=_COMPONENTS)
_DEFINITIONS: dict[str, Any] = {
    **_REQUEST.pop("$defs"),
    **_PROBLEM.pop("$defs"),
    "RecognizeBody": _REQUEST,
    "ResponseProblemBody": _PROBLEM,
}
_OPTIONS: dict[str, Any] = _DEFINITIONS["Options"]["properties"]


def _reference(model: str) -> dict[str, str]:
    return {"$ref": _COMPONENTS.format(model=model)}


RECOGNIZE: dict[str, Any] = {
    "parameters": [
        {
            "name": name,
            "in": "query",
            "required": False,
            "description": f"{schema.get('description', '')} (image bodies only)",
            "schema": {key: value for key, value in schema.items() if key != "description"},
        }
        for name, schema in _OPTIONS.items()
    ],
    "requestBody": {
        "required": True,
        "content": {
            **{media_type: {"schema": _BINARY} for media_type in MEDIA_TYPES},
            FORM: {
                "schema": {
                    "type": "object",
                    "required": [IMAGE_FIELD],
                    "additionalProperties": False,
                    "properties": {
                        IMAGE_FIELD: {"type": "array", "minItems": 1, "items": _BINARY},
                        **_OPTIONS,
                    },
                }
            },
            JSON: {"schema": _reference("RecognizeBody")},
        },
    },
}
"""The parts of the recognize operation that its endpoint, which reads the body itself, does not declare."""


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The `responses` of an operation that may fail with these HTTP statuses."""
    return {
        status: {
            "description": " / ".join(_titles(status)),
            "content": {"application/problem+json": {"schema": _reference("ResponseProblemBody")}},
        }
        for status in statuses
    }


def _titles(status: int) -> list[str]:
    return [f"{kind.code}: {kind.title}" for kind in _leaves(ServiceError) if kind.http_status == status]


def _leaves(kind: type[ServiceError]) -> list[type[ServiceError]]:
    below = [leaf for child in kind.__subclasses__() for leaf in _leaves(child)]
    return below or [kind]


def describe(app: FastAPI) -> None:
    """Makes the application's OpenAPI document hold the schemas that only requests use."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = get_openapi(
                title=app.title, version=app.version, description=app.description, routes=app.routes
            )
            document["components"]["schemas"].update(_DEFINITIONS)
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]  # how FastAPI wants its document extended
