"""What is known about operators in networks: the record `reproductions/coverage.json`, and its page.

A record holds the configuration of the `operators`, the `environments` in which cells were obtained, by key, and the
`networks`: family, parameters, image size (C, H, W), MACs, and for each operator a cell with its `outcome` and its
environment's key. A cell that `works` has the number of layers `replaced`, and the MACs then; one that is `refused` or
a `crash` has the `reason`.
"""

import json
from pathlib import Path
from typing import Any

from convrepro.config.paths import REPRODUCTIONS
from convrepro.errors import ConvReproError
from convrepro.runs.storage import write_json

SCHEMA = 1
RECORD = REPRODUCTIONS / "coverage.json"

OUTCOMES = WORKS, NOTHING, REFUSED, CRASH = "works", "nothing to replace", "refused", "crash"


Cell = dict[str, Any]
Record = dict[str, Any]


def read_record(path: Path = RECORD) -> Record:
    """The record in `path`; raises ConvReproError where there is none of this version."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["schema"] == SCHEMA:
            return record
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConvReproError(f"{path} cannot be read as a record of coverage: {error!r}") from error
    raise ConvReproError(f"{path} is not a record of coverage in this version (schema {SCHEMA}); move it away")


def new_record() -> Record:
    """A record of nothing."""
    return {"schema": SCHEMA, "timm": None, "smallest": {}, "operators": {}, "environments": {}, "networks": {}}


def write_record(path: Path, record: Record) -> None:
    """Write the record in a fixed order, without environments of which no cell is left."""
    networks = sorted(record["networks"].items(), key=lambda item: (item[1]["family"], item[0]))
    used = {cell["environment"] for _, cell in cells(record)}
    tidy = {
        "environments": {key: told for key, told in record["environments"].items() if key in used},
        "operators": dict(sorted(record["operators"].items())),
        "networks": {name: entry | {"cells": dict(sorted(entry["cells"].items()))} for name, entry in networks},
    }
    write_json(path, record | tidy)


def crashes(record: Record) -> list[str]:
    """What broke, one line a cell."""
    return [
        f"{name} {conv}: {cell['reason']}"
        for name, entry in record["networks"].items()
        for conv, cell in entry["cells"].items()
        if cell["outcome"] == CRASH
    ]


def cells(record: Record) -> list[tuple[str, Cell]]:
    return [(conv, cell) for entry in record["networks"].values() for conv, cell in entry["cells"].items()]
