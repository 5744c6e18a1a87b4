"""The JSON Schema of tables, and the validator of just the words that it uses."""

import json
from decimal import Decimal
from typing import Any

import pytest
import yaml

from convrepro.config.paths import REPRODUCTIONS
from convrepro.tables import list_tables
from convrepro.tables.json_schema import FILE, json_schema
from convrepro.tables.load import _Loader
from support.small_table import SMALL

pytestmark = pytest.mark.unit

SCHEMA = json.loads((REPRODUCTIONS / FILE).read_text())
TYPES = {
    "string": str,
    "integer": int,
    "boolean": bool,
    "number": (int, Decimal),
    "null": type(None),
    "array": list,
    "object": dict,
}
WORDS = {"type", "properties", "required", "additionalProperties", "items", "enum", "anyOf", "$ref", "minItems"}
WORDS |= {"minProperties", "description", "$schema", "$defs"}


def is_a(value: Any, name: str) -> bool:
    return isinstance(value, TYPES[name]) and (name == "boolean" or not isinstance(value, bool))


def mistakes(value: Any, schema: dict[str, Any], place: str = "") -> list[str]:
    assert set(schema) <= WORDS
    if "$ref" in schema:
        return mistakes(value, SCHEMA["$defs"][schema["$ref"].rpartition("/")[2]], place)
    if "anyOf" in schema:
        found = [mistakes(value, option, place) for option in schema["anyOf"]]
        return [] if [] in found else min(found, key=len)
    if "enum" in schema:
        return [] if value in schema["enum"] else [f"{place}: {value}"]
    names = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    if not any(is_a(value, name) for name in names):
        return [f"{place}: {value} is no {names}"]
    found = []
    if isinstance(value, dict):
        own, others = schema.get("properties", {}), schema["additionalProperties"]
        found += [f"{place}: {key} is missing" for key in schema.get("required", ()) if key not in value]
        for key, item in value.items():
            if key not in own and others is False:
                found.append(f"{place}: {key} is unknown")
            else:
                found += mistakes(item, own.get(key, others), f"{place}.{key}")
    if isinstance(value, list):
        found += [text for n, item in enumerate(value) for text in mistakes(item, schema["items"], f"{place}[{n}]")]
    return found


def test_the_committed_schema_is_up_to_date():
    assert json_schema() == SCHEMA, "run `python -m convrepro.tables.json_schema`"


@pytest.mark.parametrize("name", list_tables())
def test_every_table_keeps_to_the_schema(name):
    content = yaml.load((REPRODUCTIONS / f"{name}.yaml").read_text(encoding="utf-8"), _Loader)
    assert mistakes(content, SCHEMA) == []


@pytest.mark.parametrize(
    ("old", "new", "mistake"),
    [
        ("title: A small table", "titel: A small table", "titel is unknown"),
        ("confidence: found", "confidence: sure", ".published.top1.confidence: sure"),
        ("count: conv_fc", "count: macss", "macss"),
        ("seeds: [0, 1]", "seeds: [0, one]", ".seeds[1]: one is no"),
        ("quoted: true", "quoted: 1", ".quoted: 1 is no"),
        ("    label: Plain\n", "", "label is missing"),
    ],
)
def test_the_schema_marks_mistakes(old, new, mistake):
    assert mistakes(yaml.load(SMALL, _Loader), SCHEMA) == []
    assert any(mistake in text for text in mistakes(yaml.load(SMALL.replace(old, new, 1), _Loader), SCHEMA))
