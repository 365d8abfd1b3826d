"""Makes the chart's values.schema.json and README.md: `python helm/generate.py [--check]`.

With --check nothing is written: exit code 1 when a committed file is not what values.yaml and the service's settings
give.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

# Of a program's own modules, Python finds only those beside it.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from clip4str_service.settings import Settings
from helm.chart_values import Value, ValuesError, read_values
from helm.schema import settings_schema, values_schema

CHART = Path(__file__).resolve().parent / "clip4str"

_BEGIN, _END = "<!-- values: begin, made by helm/generate.py -->", "<!-- values: end -->"


def generated(chart: Path) -> dict[Path, str]:
    """The files and what they should hold. Raises ValuesError."""
    values = read_values((chart / "values.yaml").read_text(encoding="utf-8"))
    schema = json.dumps(values_schema(values), indent=1, ensure_ascii=False)
    readme = chart / "README.md"
    return {
        chart / "values.schema.json": f"{schema}\n",
        readme: _between(readme.read_text(encoding="utf-8"), _tables(values)),
    }


def _between(document: str, tables: str) -> str:
    before, begin, rest = document.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not begin or not end:
        raise ValuesError(f"README.md: expected the lines {_BEGIN} and {_END}")
    return f"{before}{begin}\n\n{tables}\n{end}{after}"


def _tables(values: Sequence[Value]) -> str:
    alone = [value for value in values if not value.children]
    parts = [_table("", alone)]
    parts.extend(_table(value.name, value.below(), value.text) for value in values if value.children)
    parts.append(_settings_table())
    return "\n".join(parts)


def _table(title: str, values: Iterable[Value], text: str = "") -> str:
    rows = [f"| `{value.name}` | {_shown(value)} | {_meaning(value)} |" for value in values]
    head = [f"### {title}", "", *([text, ""] if text else [])] if title else []
    return "\n".join([*head, "| value | default | |", "|---|---|---|", *rows, ""])


def _settings_table() -> str:
    rows = []
    for name, schema in settings_schema().items():
        default = Settings.model_fields[name].default
        if name == "host":
            shown = "`0.0.0.0`"
        elif isinstance(default, tuple):
            shown = f"`{','.join(default)}`"
        elif isinstance(default, int | float | str):
            shown = f"`{default}`"
        else:
            shown = ""
        rows.append(f"| `settings.{name}` | {shown} | {_cell(schema['description'])} |")
    head = ["### settings", "", "The default is the service's; with `gpu.count` the devices are those."]
    return "\n".join([*head, "", "| value | default | |", "|---|---|---|", *rows, ""])


def _meaning(value: Value) -> str:
    limits = value.limits
    return _cell(" ".join(part for part in (value.text, _choices(limits)) if part))


def _choices(limits: Mapping[str, Any]) -> str:
    return f"One of {', '.join(f'`{each}`' for each in limits['enum'])}." if "enum" in limits else ""


def _shown(value: Value) -> str:
    default = value.default
    if value.children or default == "":
        return ""
    return f"`{_cell(default if isinstance(default, str) else json.dumps(default))}`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def main() -> int:
    """Runs the command line; returns its exit code."""
    parser = argparse.ArgumentParser(description="Make the chart's schema and README.")
    parser.add_argument("--check", action="store_true", help="write nothing; fail when a file is stale")
    check = parser.parse_args().check
    try:
        wanted = generated(CHART)
    except (ValuesError, OSError) as error:
        sys.stderr.write(f"generate: {error}\n")
        return 2
    stale = [
        path for path, text in wanted.items() if not path.exists() or path.read_text(encoding="utf-8") != text
    ]
    if check:
        for path in stale:
            sys.stderr.write(f"generate: {path.name} is stale: run python helm/generate.py and commit\n")
        return 1 if stale else 0
    for path in stale:
        path.write_text(wanted[path], encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
