"""Writes the tables of the documentation that the code knows: `python docs/generate.py`. A test finds stale ones."""

from __future__ import annotations

import re
from pathlib import Path

from janus_train.config import config_schema
from matris_model import PRESETS, count_parameters

DOCS = Path(__file__).parent
PUBLISHED = {"S": "1.09B / 0.19B", "M": "2.47B / 0.56B", "L": "11.5B / 2.89B"}  # arXiv 2604.15821


def sizes_table() -> str:
    """Presets with their total and active parameters."""
    lines = ["| preset | parameters | active for an atom | published |", "|---|---|---|---|"]
    for name, config in PRESETS.items():
        counted = count_parameters(config)
        total, active = _short(counted["parameters_total"]), _short(counted["parameters_active"])
        lines.append(f"| `{name}` | {total} | {active} | {PUBLISHED.get(name, '–')} |")
    return "\n".join(lines)


def config_table() -> str:
    """Every key of the configuration with its default and meaning."""
    schema = config_schema()
    lines = ["| key | default | meaning |", "|---|---|---|"]
    for section, reference in schema["properties"].items():
        lines += _rows(f"{section}.", _definition(schema, reference), schema)
    return "\n".join(lines)


def filled(text: str) -> str:
    """The text with the content of every `<!-- name -->` … `<!-- end -->` block made anew."""
    makers = {"sizes": sizes_table, "config": config_table}

    def fill(match: re.Match[str]) -> str:
        return f"<!-- {match[1]} -->\n{makers[match[1]]()}\n<!-- end -->"

    return re.sub(r"<!-- (sizes|config) -->.*?<!-- end -->", fill, text, flags=re.DOTALL)


def _rows(prefix: str, definition: dict, schema: dict) -> list[str]:
    rows = []
    for name, field in definition["properties"].items():
        inner = _definition(schema, field)
        if "properties" in inner:
            rows += _rows(f"{prefix}{name}.", inner, schema)
        else:
            default = "null" if field.get("default") is None else str(field["default"])
            rows.append(f"| `{prefix}{name}` | `{default}` | {field.get('description', '')} |")
    return rows


def _definition(schema: dict, field: dict) -> dict:
    reference = field.get("$ref") or next((part["$ref"] for part in field.get("allOf", ()) if "$ref" in part), None)
    return schema["$defs"][reference.rsplit("/", 1)[-1]] if reference else field


def _short(count: int) -> str:
    return f"{count / 1e9:.2f}B" if count >= 1e9 else f"{count / 1e6:.2f}M"


if __name__ == "__main__":
    for page in DOCS.glob("*.md"):
        page.write_text(filled(page.read_text()))
