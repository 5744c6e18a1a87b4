"""Reads the records of runs on a GPU, `reproductions/gpu/*.json`, which the scripts in `tests/gpu` wrote."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, with_config
from typing_extensions import NotRequired, TypedDict

from convrepro.config.paths import REPRODUCTIONS
from convrepro.config.strict import ON_DISK, read_files

FOLDER = "gpu"
CORRECTNESS, SPEED, TRAINING, EVIDENCE = "correctness", "speed", "training", "evidence"
CANDIDATES = "candidates"
NOT_REACHED = "not reached"


@with_config(ON_DISK)
class Timed(TypedDict):
    """Milliseconds by network, and their ratio to those of dense."""

    ms: dict[str, float]
    ratio: dict[str, float]


@with_config(ON_DISK)
class Case(TypedDict):
    """What one case found: an error, how exact it was, how fast, or where the time went (name, microseconds, calls).

    Of a candidate: the fastest form of the `library`, and the `best` of the candidate's tiles, by their names in `ms`.
    Of training: images per second by loop; waits of the host in so many steps, by line of code; how far the losses of a
    run that was killed differ from an unbroken run's; the epochs that a row's run has reached.
    """

    error: NotRequired[str]
    worst: NotRequired[float]
    limit: NotRequired[Annotated[float, Field(gt=0)]]
    mac_ratio: NotRequired[float]
    forward: NotRequired[Timed]
    training: NotRequired[Timed]
    ms: NotRequired[dict[str, float]]
    ratio: NotRequired[dict[str, float]]
    kernels: NotRequired[list[tuple[str, float, int]] | dict[str, Any]]
    library: NotRequired[str]
    best: NotRequired[str]
    images_per_second: NotRequired[dict[str, Annotated[float, Field(gt=0)]]]
    batch: NotRequired[int]
    syncs: NotRequired[int]
    steps: NotRequired[int]
    where: NotRequired[dict[str, int]]
    killed_at: NotRequired[int]
    difference: NotRequired[float]
    equal: NotRequired[bool]
    top1: NotRequired[dict[str, float]]
    epoch: NotRequired[int]
    epochs: NotRequired[int]


@with_config(ON_DISK)
class Place(TypedDict):
    """The GPU and the versions of the libraries."""

    name: str
    torch: str
    cudnn: int
    triton: str
    driver: NotRequired[str | None]


@with_config(ON_DISK)
class Content(TypedDict):
    """What a file holds."""

    schema: Literal[1]
    what: Literal["correctness", "speed", "training", "evidence", "candidates"]
    time: str
    commit: str
    environment: Place
    cases: dict[str, Case]
    notes: NotRequired[list[str]]
    data: NotRequired[str]
    skipped: NotRequired[str]


@dataclass(frozen=True)
class GpuRecord:
    """One file: a run of one script. `cases` holds what each case found, by its name; `notes` are for the reader.

    `data` names the images of a script that trains, `skipped` says why it did not run.
    """

    path: Path
    what: str
    time: str
    commit: str
    environment: Place
    cases: Mapping[str, Case]
    notes: tuple[str, ...] = ()
    data: str | None = None
    skipped: str | None = None

    def finished(self, start: str) -> dict[str, Case]:
        """The cases whose name begins with `start`, without those that have an error."""
        return {name: case for name, case in self.cases.items() if name.startswith(start) and "error" not in case}


def records(folder: Path = REPRODUCTIONS / FOLDER) -> list[GpuRecord]:
    """Reads all records in `folder`, ordered by file name; a damaged one is set aside with a warning."""
    found = read_files(Content, sorted(folder.glob("*.json")))
    return [
        GpuRecord(
            path,
            what=content["what"],
            time=content["time"],
            commit=content["commit"],
            environment=content["environment"],
            cases=content["cases"],
            notes=tuple(content.get("notes", ())),
            data=content.get("data"),
            skipped=content.get("skipped"),
        )
        for path, content in found
    ]
