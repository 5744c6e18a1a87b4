"""Reads the records of runs on a GPU, `reproductions/gpu/*.json`, which the scripts in `tests/gpu` wrote."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convrepro.config.paths import REPRODUCTIONS
from convrepro.errors import ConvReproError
from convrepro.evidence.records import read_versioned

SCHEMA = 1
FOLDER = "gpu"
KIND = "a record of a run on a GPU"
CORRECTNESS, SPEED = "correctness", "speed"
NOT_REACHED = "not reached"


@dataclass(frozen=True)
class GpuRecord:
    """One file: a run of one script. `cases` holds what each case found, by its name; `notes` are for the reader."""

    path: Path
    what: str
    time: str
    commit: str
    environment: Mapping[str, Any]
    cases: Mapping[str, Mapping[str, Any]]
    notes: tuple[str, ...] = ()

    def finished(self, start: str) -> dict[str, Mapping[str, Any]]:
        """The cases whose name begins with `start`, without those that have an error."""
        return {name: case for name, case in self.cases.items() if name.startswith(start) and "error" not in case}


def records(folder: Path = REPRODUCTIONS / FOLDER) -> list[GpuRecord]:
    """Reads all records in `folder`, ordered by file name; raises ConvReproError for a file that is not a record."""
    return [_read(path) for path in sorted(folder.glob("*.json"))]


def _read(path: Path) -> GpuRecord:
    content = read_versioned(path, SCHEMA, KIND)
    for key, kind in (("what", str), ("time", str), ("commit", str), ("environment", dict), ("cases", dict)):
        if not isinstance(content.get(key), kind):
            raise ConvReproError(f"{path} cannot be read as {KIND}: {key!r} is missing or not a {kind.__name__}")
    if content["what"] not in (CORRECTNESS, SPEED):
        raise ConvReproError(f"{path} has what={content['what']!r}; valid: {CORRECTNESS}, {SPEED}")
    for name, case in content["cases"].items():
        if not isinstance(case, dict):
            raise ConvReproError(f"{path} cannot be read as {KIND}: the case {name!r} is not a dict")
    words = {key: content[key] for key in ("what", "time", "commit", "environment", "cases")}
    notes = content.get("notes", [])
    if not isinstance(notes, list):
        raise ConvReproError(f"{path} cannot be read as {KIND}: 'notes' is not a list")
    return GpuRecord(path, **words, notes=tuple(map(str, notes)))
