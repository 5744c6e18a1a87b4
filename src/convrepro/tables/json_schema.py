"""The schema of a table's YAML as JSON Schema, by which editors complete keys and mark mistakes.

It follows from the dataclasses in `schema`. `parse` checks more, such as what two keys have to do with each other.
`python -m convrepro.tables.json_schema` writes it to `reproductions/table.schema.json`.
"""

import inspect
import json
import types
from dataclasses import MISSING, fields
from decimal import Decimal
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from convrepro.config.paths import REPRODUCTIONS
from convrepro.tables.parse import BASES, CONFIDENCES, EPOCHS, PRINTED
from convrepro.tables.schema import (
    CAUSES,
    COUNTING_RULES,
    RUN_METRICS,
    UNITS,
    Claim,
    Counted,
    NotMeasured,
    Published,
    Reduction,
    Row,
    Share,
    Source,
    Table,
    Trained,
)

FILE = "table.schema.json"
JSON = {str: "string", int: "integer", bool: "boolean", Decimal: "number", types.NoneType: "null"}
CHOICES: dict[tuple[type, str], tuple[str, ...]] = {
    (Published, "confidence"): CONFIDENCES,
    (Published, "cause"): tuple(CAUSES),
    (Trained, "run_metric"): RUN_METRICS,
    (Trained, "epoch"): EPOCHS,
    (Counted, "unit"): tuple(UNITS),
    (Counted, "count"): COUNTING_RULES,
    (Counted, "printed"): PRINTED,
    (Reduction, "printed"): PRINTED,
    (Reduction, "from"): BASES,
    (Share, "printed"): PRINTED,
    (Share, "from"): BASES,
}
"""The texts that a key of a dataclass may have."""

METRICS: dict[type, str] = {
    Trained: "tol",
    Counted: "count",
    Reduction: "reduction_of",
    Share: "share_of",
    NotMeasured: "not_measured",
}
"""The kinds of metrics, and the key that makes a metric one of the kind."""

#: Keys with a schema of their own.
NESTED: dict[str, Any] = {
    "source": {"$ref": "#/$defs/Source"},
    "metrics": {
        "type": "object",
        "minProperties": 1,
        "additionalProperties": {"anyOf": [{"$ref": f"#/$defs/{kind.__name__}"} for kind in METRICS]},
    },
    "rows": {"type": "array", "minItems": 1, "items": {"$ref": "#/$defs/Row"}},
    "claims": {"type": "array", "items": {"$ref": "#/$defs/Claim"}},
    "published": {"type": "object", "additionalProperties": {"$ref": "#/$defs/Published"}},
}


def json_schema() -> dict[str, Any]:
    """The schema of a table's file."""
    parts = {kind.__name__: _object(kind) for kind in (Source, *METRICS, Row, Published, Claim)}
    return {"$schema": "http://json-schema.org/draft-07/schema#", **_object(Table), "$defs": parts}


def _object(kind: Any) -> dict[str, Any]:
    """The schema of a mapping that becomes an instance of the dataclass; names come from where the mapping stands."""
    hints = get_type_hints(kind)
    own = {field.name.rstrip("_"): field for field in fields(kind) if field.name != "name"}
    needed = [key for key, field in own.items() if field.default is MISSING or key == METRICS.get(kind)]
    return {
        "description": inspect.cleandoc(kind.__doc__ or ""),
        "type": "object",
        "properties": {key: _value(kind, key, hints[field.name]) for key, field in own.items()},
        "required": [key for key in needed if key != "published"],  # of a row, nothing by default
        "additionalProperties": False,
    }


def _value(kind: type, key: str, hint: Any) -> dict[str, Any]:
    if key in NESTED and kind in (Table, Row):
        return NESTED[key]
    if choices := CHOICES.get((kind, key)):
        return {"enum": list(choices)}
    options = get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if get_origin(hint) is tuple:
        return {"type": "array", "items": {"type": JSON[get_args(hint)[0]]}}
    names = [JSON[option] for option in options]
    return {"type": names[0] if len(names) == 1 else names}


def write(root: Path = REPRODUCTIONS) -> Path:
    """Writes the schema under `root`; returns its path."""
    path = root / FILE
    path.write_text(json.dumps(json_schema(), indent=1) + "\n", encoding="utf-8")
    return path


if __name__ == "__main__":
    print(write())
