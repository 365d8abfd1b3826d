"""How values.yaml is read, and that what is made of it is what is committed."""

import json

import pytest

from helm.chart_values import ValuesError, read_values
from helm.generate import CHART, generated
from helm.schema import values_schema

TEXT = """\
# Of nothing in particular.

# A number
# of things.
# @schema {minimum: 1}
count: 2
# What is run.
image:
  # A kind.
  # @schema {enum: [a, b]}
  kind: a
  # A digest.
  digest: ""
# Some labels.
# @schema {additionalProperties: {type: string}}
labels: {}
# Some secrets.
# @schema {items: {kubernetes: core.v1.LocalObjectReference}}
secrets: []
"""


def test_comments_belong_to_the_key_below() -> None:
    count, image, labels, secrets = read_values(TEXT)
    assert (count.text, count.default, count.limits) == ("A number of things.", 2, {"minimum": 1})
    assert [each.name for each in image.below()] == ["image.kind", "image.digest"]
    assert image.children[0].limits == {"enum": ["a", "b"]}
    assert (labels.children, secrets.default) == ((), [])


def test_schema_knows_every_key_and_no_other() -> None:
    schema = values_schema(read_values(TEXT))
    assert schema["additionalProperties"] is False
    assert schema["required"] == ["count", "image", "labels", "secrets"]
    properties = schema["properties"]
    assert properties["count"] == {"description": "A number of things.", "type": "integer", "minimum": 1}
    assert properties["image"]["additionalProperties"] is False
    assert properties["image"]["properties"]["kind"] == {
        "description": "A kind.",
        "type": "string",
        "enum": ["a", "b"],
    }
    assert properties["secrets"]["items"] == {"$ref": "#/$defs/io.k8s.api.core.v1.LocalObjectReference"}
    assert list(schema["$defs"]) == ["io.k8s.api.core.v1.LocalObjectReference"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- 1", "expected a mapping"),
        ("a: 1", "a: say above it what it is for"),
        ("# A\na: {}", "a: an empty mapping needs @schema"),
        ("# A\na:\n  # B\n  b: []", "a.b: an empty list needs @schema"),
        ("# @schema [1]\na: 1", "a: @schema must hold a mapping"),
        ("# A\n# @schema {kubernetes: core.v1.Nothing}\na: {}", "io.k8s.api.core.v1.Nothing: Kubernetes"),
    ],
)
def test_unclear_values_are_refused(text: str, message: str) -> None:
    with pytest.raises(ValuesError, match=message):
        values_schema(read_values(text))


def test_no_object_of_the_schema_takes_unknown_keys() -> None:
    def objects(schema: object) -> list[dict[str, object]]:
        if isinstance(schema, list):
            return [found for each in schema for found in objects(each)]
        if not isinstance(schema, dict):
            return []
        own = [schema] if isinstance(schema.get("properties"), dict) else []
        return own + [found for each in schema.values() for found in objects(each)]

    schema = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))
    assert all(each.get("additionalProperties") is False for each in objects(schema))


def test_committed_files_are_fresh() -> None:
    for path, text in generated(CHART).items():
        assert path.read_text(encoding="utf-8") == text
