"""Reads a chart's values.yaml with its comments: what each value is for, its default, and what it may be.

The comment directly above a key describes it. A line `@schema {…}` in it holds JSON Schema keywords that the default
cannot tell, such as `enum`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

_SCHEMA = "@schema "


class ValuesError(Exception):
    """values.yaml is not what it should be; the message is one line with the key's name."""


@dataclass(frozen=True, slots=True)
class Value:
    """A key of values.yaml.

    Attributes:
        path: names from the top, such as `("image", "tag")`.
        text: its comment, in one line; may be empty.
        default: its value there.
        limits: what `@schema` says.
        children: of a mapping whose keys are fixed.
    """

    path: tuple[str, ...]
    text: str
    default: Any
    limits: Mapping[str, Any]
    children: tuple[Value, ...] = ()

    @property
    def name(self) -> str:
        """As users write it."""
        return ".".join(self.path)

    def below(self) -> Iterator[Value]:
        """Its keys and theirs, in the file's order."""
        for child in self.children:
            yield child
            yield from child.below()


def read_values(text: str) -> tuple[Value, ...]:
    """The keys at the top of values.yaml. Raises ValuesError."""
    root = yaml.compose(text)
    if not isinstance(root, yaml.MappingNode):
        raise ValuesError("values.yaml: expected a mapping")
    return _children((), root, yaml.safe_load(text), text.splitlines())


def _children(
    path: tuple[str, ...], node: yaml.MappingNode, defaults: Mapping[str, Any], lines: Sequence[str]
) -> tuple[Value, ...]:
    values = []
    for key, value in node.value:
        below = (*path, str(key.value))
        text, limits = _comment(below, lines, key.start_mark.line)
        default = defaults[key.value]
        if not text:
            raise ValuesError(f"{'.'.join(below)}: say above it what it is for")
        if isinstance(default, dict) and not limits:
            children = _children(below, value, default, lines)
            if not children:
                raise ValuesError(f"{'.'.join(below)}: an empty mapping needs @schema: what may it hold?")
        else:
            children = ()
        if default == [] and not limits:
            raise ValuesError(f"{'.'.join(below)}: an empty list needs @schema: what may it hold?")
        values.append(Value(below, text, default, limits, children))
    return tuple(values)


def _comment(path: tuple[str, ...], lines: Sequence[str], key_line: int) -> tuple[str, dict[str, Any]]:
    first = key_line
    while first and lines[first - 1].lstrip().startswith("#"):
        first -= 1
    said, limits = [], dict[str, Any]()
    for line in lines[first:key_line]:
        words = line.strip().removeprefix("#").strip()
        if words.startswith(_SCHEMA):
            parsed = yaml.safe_load(words.removeprefix(_SCHEMA))
            if not isinstance(parsed, dict):
                raise ValuesError(f"{'.'.join(path)}: @schema must hold a mapping")
            limits.update(parsed)
        else:
            said.append(words)
    return " ".join(said).strip(), limits
