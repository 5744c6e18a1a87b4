"""The record of a run: `result.json` in its folder, written whole or not at all."""

import json
import math
from pathlib import Path
from typing import Any

from convrepro.errors import ConvReproError

SCHEMA = 1
FILE = "result.json"
LAST = "last.ckpt"


class TornResult(ConvReproError):
    """A `result.json` that is no JSON, as a damaged disk leaves it."""


def finite(value: Any) -> Any:
    """`value` with None for each number that JSON does not have: a loss may be infinite or not a number."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_result(folder: Path) -> dict[str, Any] | None:
    """The result in `folder`, or None where the run has not finished.

    Raises ConvReproError where the file is of another version, TornResult where it is no JSON.
    """
    path = folder / FILE
    if not path.exists():
        return None
    try:
        result = json.loads(path.read_text())
    except ValueError as error:
        raise TornResult(f"{path} is not JSON ({error})") from error
    if not isinstance(result, dict) or result.get("schema") != SCHEMA:
        raise ConvReproError(f"{path} is not a result of this version (schema {SCHEMA}); move it away")
    return result
