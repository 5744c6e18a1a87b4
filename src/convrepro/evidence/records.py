"""Reads the versioned JSON records that commands write under `reproductions`."""

import json
from pathlib import Path
from typing import Any

from convrepro.errors import ConvReproError


def read_versioned(path: Path, schema: int, kind: str) -> dict[str, Any]:
    """Reads a record whose key "schema" is `schema`; `kind` names it in messages, such as "a record of coverage".

    Raises ConvReproError where the file cannot be read, is not JSON, or is a record of another version.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConvReproError(f"{path} cannot be read as {kind}: {error}") from error
    version = content.get("schema") if isinstance(content, dict) else None
    if version != schema:
        given = "has no schema" if version is None else f"has schema {version!r}"
        raise ConvReproError(f"{path} {given}, but {kind} must have schema {schema}; move the file away")
    return content
