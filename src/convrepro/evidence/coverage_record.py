"""Reads and writes the record of coverage, `reproductions/coverage.json`: which operator works in which network.

A record holds the configuration of the `operators`, the `environments` in which cells were obtained, by key, and the
`networks`: family, parameters, image size (C, H, W), MACs, and for each operator a cell with its `outcome` and the key
of its environment. A cell whose outcome is `works` has the number of layers that were `replaced` and the MACs of the
network with them; a cell that is `refused` or a `crash` has the `reason`, and one that is `refused` has `replaced` and
`macs` with `unfit=keep`, where layers are left that the operator can replace.
"""

from pathlib import Path
from typing import Final, Literal

from pydantic import with_config
from typing_extensions import NotRequired, TypedDict

from convrepro.config.paths import REPRODUCTIONS
from convrepro.config.strict import ON_DISK, read_file
from convrepro.runs.storage import write_json

SCHEMA: Final = 1
RECORD = REPRODUCTIONS / "coverage.json"

WORKS: Final = "works"
NOTHING: Final = "nothing to replace"
REFUSED: Final = "refused"
CRASH: Final = "crash"
Outcome = Literal["works", "nothing to replace", "refused", "crash"]
OUTCOMES: tuple[Outcome, ...] = (WORKS, NOTHING, REFUSED, CRASH)


@with_config(ON_DISK)
class Cell(TypedDict):
    """What an operator does in a network."""

    outcome: Outcome
    environment: NotRequired[str]
    replaced: NotRequired[int]
    macs: NotRequired[int]
    reason: NotRequired[str]


@with_config(ON_DISK)
class Facts(TypedDict):
    """What a network itself costs, and the image size (C, H, W) at which that is so; none of a network that crashes."""

    params: NotRequired[int]
    macs: NotRequired[int]
    input_size: NotRequired[list[int]]


@with_config(ON_DISK)
class Network(Facts):
    """A network, and its cells by operator."""

    family: str
    cells: dict[str, Cell]


@with_config(ON_DISK)
class Operator(TypedDict):
    """The configuration of an operator; its other keys are knobs."""

    name: str
    where: str


@with_config(ON_DISK)
class Place(TypedDict):
    """An environment in which cells were obtained."""

    commit: str | None
    dirty: bool | None
    versions: dict[str, str | None]
    device: str
    date: str


@with_config(ON_DISK)
class Record(TypedDict):
    """A record of coverage; `smallest` names the network of each family that version `timm` of timm has."""

    schema: Literal[1]
    timm: str | None
    smallest: dict[str, str]
    operators: dict[str, Operator]
    environments: dict[str, Place]
    networks: dict[str, Network]


def read_record(path: Path = RECORD) -> Record:
    """Reads the record in `path`; raises ConvReproError where it is missing, damaged or of another version."""
    return read_file(Record, path)


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
