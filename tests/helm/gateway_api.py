"""The parts of the Gateway API's HTTPRoute and GRPCRoute (v1) that the chart may use, as strict JSON schemas.

No Python package holds the API's own definitions. These were written by its reference and hold the chart to names,
types and formats; what they do not know they refuse.
"""

from __future__ import annotations

from typing import Any

_NAME = {"type": "string", "pattern": r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", "maxLength": 63}
_HOSTNAME = {
    "type": "string",
    "pattern": r"^(\*\.)?[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$",
    "maxLength": 253,
}
_PORT = {"type": "integer", "minimum": 1, "maximum": 65535}
_DURATION = {"type": "string", "pattern": r"^([0-9]{1,5}(h|m|s|ms)){1,4}$"}


def _object(required: tuple[str, ...], **properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "additionalProperties": False,
        "required": list(required),
        "properties": properties,
    }


def _list(items: dict[str, Any], most: int) -> dict[str, Any]:
    return {"type": "array", "items": items, "minItems": 1, "maxItems": most}


_PARENT = _object(("name",), namespace=_NAME, name=_NAME, sectionName=_HOSTNAME, port=_PORT)
_BACKEND = _object(("name", "port"), name=_NAME, port=_PORT)
_METADATA = _object(
    ("name", "namespace", "labels"),
    name=_NAME,
    namespace=_NAME,
    labels={"type": "object", "additionalProperties": {"type": "string"}},
)
_PATH = _object(
    ("type", "value"),
    type={"enum": ["Exact", "PathPrefix"]},
    value={"type": "string", "pattern": "^/", "maxLength": 1024},
)
_METHOD = _object(
    ("service",),
    service={"type": "string", "pattern": r"^[A-Za-z_][A-Za-z_0-9]*(\.[A-Za-z_][A-Za-z_0-9]*)*$"},
)


def _route(kind: str, rule: dict[str, Any]) -> dict[str, Any]:
    return _object(
        ("apiVersion", "kind", "metadata", "spec"),
        apiVersion={"const": "gateway.networking.k8s.io/v1"},
        kind={"const": kind},
        metadata=_METADATA,
        spec=_object(
            ("parentRefs", "rules"),
            parentRefs=_list(_PARENT, 32),
            hostnames=_list(_HOSTNAME, 16),
            rules=_list(rule, 16),
        ),
    )


ROUTES = {
    "HTTPRoute": _route(
        "HTTPRoute",
        _object(
            ("matches", "backendRefs"),
            matches=_list(_object(("path",), path=_PATH), 64),
            timeouts=_object((), request=_DURATION, backendRequest=_DURATION),
            backendRefs=_list(_BACKEND, 16),
        ),
    ),
    "GRPCRoute": _route(
        "GRPCRoute",
        _object(
            ("matches", "backendRefs"),
            matches=_list(_object(("method",), method=_METHOD), 64),
            backendRefs=_list(_BACKEND, 16),
        ),
    ),
}
