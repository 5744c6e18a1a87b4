"""Reads and writes the record of coverage, `reproductions/coverage.json`: which operator works in which network.

A record holds the configuration of the `operators`, the `environments` in which cells were obtained, by key, and the
`networks`: family, parameters, image size (C, H, W), MACs, and for each operator a cell with its `outcome` and the key
of its environment. A cell whose outcome is `works` has the number of layers that were `replaced` and the MACs of the
network with them; a cell that is `refused` or a `crash` has the `reason`.
"""

from pathlib import Path
from typing import Any

from convrepro.config.paths import REPRODUCTIONS
from convrepro.evidence.records import read_versioned
from convrepro.runs.storage import write_json

SCHEMA = 1
RECORD = REPRODUCTIONS / "coverage.json"

OUTCOMES = WORKS, NOTHING, REFUSED, CRASH = "works", "nothing to replace", "refused", "crash"

Cell = dict[str, Any]
Record = dict[str, Any]


def read_record(path: Path = RECORD) -> Record:
    """Reads the record in `path`; raises ConvReproError where it is missing or of another version."""
    return read_versioned(path, SCHEMA, "a record of coverage")


def new_record() -> Record:
    """An empty record."""
    return {"schema": SCHEMA, "timm": None, "smallest": {}, "operators": {}, "environments": {}, "networks": {}}


def write_record(path: Path, record: Record) -> None:
    """Writes the record in a fixed order, without the environments that no cell names any more."""
    networks = sorted(record["networks"].items(), key=lambda item: (item[1]["family"], item[0]))
    used = {cell["environment"] for _, cell in cells(record)}
    tidy = {
        "environments": {key: facts for key, facts in record["environments"].items() if key in used},
        "operators": dict(sorted(record["operators"].items())),
        "networks": {name: entry | {"cells": dict(sorted(entry["cells"].items()))} for name, entry in networks},
    }
    write_json(path, record | tidy)


def crashes(record: Record) -> list[str]:
    """One line for each cell that crashed: network, operator and reason."""
    return [
        f"{name} {conv}: {cell['reason']}"
        for name, entry in record["networks"].items()
        for conv, cell in entry["cells"].items()
        if cell["outcome"] == CRASH
    ]


def cells(record: Record) -> list[tuple[str, Cell]]:
    """All cells of the record, each with the name of its operator."""
    return [(conv, cell) for entry in record["networks"].values() for conv, cell in entry["cells"].items()]
