"""The record of a run: `result.json` in its folder, written whole or not at all."""

import json
import os
from pathlib import Path
from typing import Any

from convrepro.errors import ConvReproError

SCHEMA = 1
FILE = "result.json"
LAST = "last.ckpt"


def write_json(path: Path, content: Any) -> None:
    """Write `content` so that a reader or a crash never meets half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torn = path.with_name(f".{path.name}.{os.getpid()}")
    torn.write_text(json.dumps(content, indent=1, sort_keys=False) + "\n")
    os.replace(torn, path)


def read_result(folder: Path) -> dict[str, Any] | None:
    """The result in `folder`, or None where the run has not finished.

    Raises ConvReproError where the file cannot be read as a result.
    """
    path = folder / FILE
    if not path.exists():
        return None
    try:
        result = json.loads(path.read_text())
    except ValueError as error:
        raise ConvReproError(
            f"{path} is not JSON ({error}); move it away and the run continues from its checkpoint"
        ) from error
    if not isinstance(result, dict) or result.get("schema") != SCHEMA:
        raise ConvReproError(f"{path} is not a result of this version (schema {SCHEMA}); move it away")
    return result
