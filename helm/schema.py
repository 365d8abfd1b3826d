"""The JSON schema of the chart's values: strict, no unknown key anywhere.

Types come from the defaults, limits from `@schema`, settings from the service itself, and what is handed on to
Kubernetes from its own API, in the oldest version that the chart supports.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from importlib.resources import files
from typing import Any

from clip4str_service.settings import Settings
from helm.chart_values import Value, ValuesError

OLDEST_KUBERNETES = "1.30"

OWNED = frozenset({"model", "api_keys_file", "tls_cert_file", "tls_key_file", "tls_client_ca_file"})
"""Settings that have topics of their own in values.yaml."""

_PORTS = frozenset({"http_port", "grpc_port", "metrics_port"})
_FREE_PORT = "; 0 takes a free one"
_FROM_KUBERNETES = "io.k8s."
_API = "io.k8s.api."
_TYPES: Mapping[type, str] = {
    bool: "boolean",
    int: "integer",
    float: "number",
    str: "string",
    list: "array",
    dict: "object",
}
_ANNOTATIONS = ("title", "default", "description", "format")

# Of gateway.networking.k8s.io/v1; its types are no part of Kubernetes' own API.
_PARENT_REFERENCE = {
    "type": "object",
    "additionalProperties": False,
    "required": ["name"],
    "properties": {
        "group": {"type": "string"},
        "kind": {"type": "string"},
        "namespace": {"type": "string"},
        "name": {"type": "string", "minLength": 1},
        "sectionName": {"type": "string"},
        "port": {"type": "integer", "minimum": 1, "maximum": 65535},
    },
}


def values_schema(values: Iterable[Value]) -> dict[str, Any]:
    """The schema of all values. Raises ValuesError."""
    schema = _object(values)
    schema["properties"]["global"] = {"type": "object"}  # a parent chart's; Helm puts it in
    used = dict[str, Any]()
    _collect(schema, _kubernetes_definitions(), used)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Values of the clip4str chart",
        **schema,
        "$defs": dict(sorted(used.items())),
    }


def settings_schema() -> dict[str, dict[str, Any]]:
    """Of each setting that `settings` may hold, the schema of its value."""
    properties = Settings.model_json_schema()["properties"]
    return {name: _setting(name, found) for name, found in properties.items() if name not in OWNED}


def _setting(name: str, found: Mapping[str, Any]) -> dict[str, Any]:
    described = {"description": found["description"].removesuffix(_FREE_PORT)}
    if name == "devices":  # in the environment a text, whatever it is made into
        return {**described, "type": "string", "pattern": r"^(auto|(cpu|cuda(:\d+)?)(,(cpu|cuda(:\d+)?))*)$"}
    if name in _PORTS:  # known before the pod starts, and not one that only root may take
        return {**described, "type": "integer", "minimum": 1024, "maximum": 65535}
    chosen = next((each for each in found.get("anyOf", ()) if each.get("type") != "null"), found)
    return {**described, **{key: value for key, value in chosen.items() if key not in _ANNOTATIONS}}


def _object(values: Iterable[Value]) -> dict[str, Any]:
    properties = {value.path[-1]: _schema(value) for value in values}
    return {
        "type": "object",
        "additionalProperties": False,
        "required": sorted(properties),
        "properties": properties,
    }


def _schema(value: Value) -> dict[str, Any]:
    described = {"description": value.text} if value.text else {}
    if value.children:
        return {**described, **_object(value.children)}
    limits = dict(value.limits)
    if limits.pop("settings", False):
        return {
            **described,
            "type": "object",
            "additionalProperties": False,
            "properties": settings_schema(),
        }
    if "kubernetes" in limits or "gateway" in limits:
        return {**described, **_reference(limits)}
    if "items" in limits:
        limits["items"] = _reference(limits["items"])
    return {**described, "type": _TYPES[type(value.default)], **limits}


def _reference(limits: Mapping[str, Any]) -> dict[str, Any]:
    if "gateway" in limits:
        return dict(_PARENT_REFERENCE)
    if "kubernetes" in limits:
        name = limits["kubernetes"]
        package = _FROM_KUBERNETES if name.startswith("apimachinery.") else _API
        return {"$ref": f"#/$defs/{package}{name}"}
    return dict(limits)


def _kubernetes_definitions() -> dict[str, Any]:
    schemas = files("kubernetes_validate") / "kubernetes-json-schema"
    text = (schemas / f"v{OLDEST_KUBERNETES}.0-local-strict" / "_definitions.json").read_text("utf-8")
    definitions: dict[str, Any] = json.loads(text)["$defs"]
    return definitions


def _collect(schema: object, definitions: Mapping[str, Any], used: dict[str, Any]) -> None:
    """Adds to `used` the definitions that a schema refers to, and those that these refer to."""
    if isinstance(schema, list):
        for each in schema:
            _collect(each, definitions, used)
    elif isinstance(schema, dict):
        name = str(schema.get("$ref", "")).removeprefix("#/$defs/")
        if name and name not in used:
            if name not in definitions:
                raise ValuesError(f"{name}: Kubernetes {OLDEST_KUBERNETES} has no such type")
            used[name] = _bare(definitions[name])
            _collect(used[name], definitions, used)
        for each in schema.values():
            _collect(each, definitions, used)


def _bare(schema: Any) -> Any:
    """Without descriptions, which Kubernetes' own documentation has, and extensions."""
    if isinstance(schema, list):
        return [_bare(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: _bare(value)
        for key, value in schema.items()
        if not key.startswith("x-") and not (key == "description" and isinstance(value, str))
    }
