"""The record of a run: `result.json` in its folder, written whole or not at all."""

import json
import math
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from convrepro.errors import ConvReproError

SCHEMA = 1
FILE = "result.json"
LAST = "last.ckpt"
#: What a file is named while it is being written.
PART = ".part"


class TornResult(ConvReproError):
    """A `result.json` that is no JSON, as a damaged disk leaves it."""


def write_whole(path: Path, content: bytes | memoryview, keep: Path | None = None) -> None:
    """Write `content` so that a reader or a crash never meets half a file; what cannot be written leaves nothing.

    What was at `path` goes to `keep`, where given. Raises ConvReproError with the path and the reason.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}{PART}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if keep and path.exists():
            os.replace(path, keep)
        os.replace(part, path)
        sync_folder(path.parent)
    except OSError as error:
        with suppress(OSError):
            part.unlink()
        raise ConvReproError(f"{path} cannot be written ({error.strerror})") from error


def sync_folder(folder: Path) -> None:
    """Have the names of the files in `folder` on disk before going on."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, content: Any) -> None:
    """`write_whole` of `content` as indented JSON."""
    write_whole(path, (json.dumps(content, indent=1, sort_keys=False) + "\n").encode())


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
