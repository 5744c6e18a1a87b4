"""The frozen record of a submission: the request, and a manifest with one line for each run.

A submission is a folder `runs/<paper>/<table>/.slurm/<number>/` with `request.json`, `manifest.jsonl`, the job scripts
and `logs/`. Request and manifest are data; nothing in them is executed.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from convrepro.errors import ConvReproError
from convrepro.runs.storage import write_json, write_whole

FOLDER = ".slurm"
MANIFEST = "manifest.jsonl"
REQUEST = "request.json"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One run, as `convrepro task` executes it.

    Attributes:
        row: the row as it names the run folder. Where overrides were added for all rows, it has their digest as suffix.
        source: the folder of the run whose weights this run starts from.
        commit, dirty: of the source tree that submitted the run.
    """

    index: int
    table: str
    row: str
    seed: int
    budget: str
    overrides: tuple[str, ...]
    run_id: str
    folder: str
    source: str | None
    commit: str | None
    dirty: bool | None

    @property
    def name(self) -> str:
        return f"{self.table}/{self.row}/{self.seed}"


@dataclass(frozen=True, kw_only=True)
class Request:
    """The arguments of a `submit` command, so that `status` and `resubmit` need not be given them again.

    `runs` holds (row, seed) of all selected runs, also of those that were finished or queued already.
    """

    table: str
    budget: str
    runs: tuple[tuple[str, int], ...]
    overrides: tuple[str, ...]
    flags: tuple[str, ...]


@dataclass(frozen=True)
class Submission:
    """A submission on disk."""

    folder: Path

    @property
    def number(self) -> int:
        return int(self.folder.name)

    @property
    def manifest(self) -> Path:
        return self.folder / MANIFEST

    @cached_property
    def request(self) -> Request:
        path = self.folder / REQUEST
        return _strict(Request, _json(_text(path), str(path)), str(path))

    @cached_property
    def entries(self) -> list[Entry]:
        return read_manifest(self.manifest)

    def log(self, script: str, position: int | str) -> Path:
        """The log file of the task at `position` of the array that `script` submits."""
        return self.folder / "logs" / f"{Path(script).stem}_{position}.log"


def home(runs: Path, table: str) -> Path:
    """The folder of all submissions of a table."""
    return runs / table / FOLDER


def submissions(place: Path) -> list[Submission]:
    """The submissions in a table's `home`, the oldest first, without those that were never completed."""
    numbered = [p for p in place.glob("*") if p.name.isdigit() and (p / MANIFEST).exists() and (p / REQUEST).exists()]
    return [Submission(p) for p in sorted(numbered, key=lambda p: int(p.name))]


def next_number(place: Path) -> int:
    """The number of the next submission in `place`."""
    return 1 + max((int(p.name) for p in place.glob("*") if p.name.isdigit()), default=0)


def write(submission: Submission, request: Request, entries: list[Entry]) -> None:
    """Writes request and manifest into the submission's folder; an interruption leaves no incomplete file."""
    write_json(submission.folder / REQUEST, asdict(request))
    write_whole(submission.manifest, "".join(json.dumps(asdict(entry)) + "\n" for entry in entries).encode())


def read_manifest(path: Path) -> list[Entry]:
    """Reads the runs of a manifest.

    Raises ConvReproError, with file and line, for a line that is not JSON, a missing or unknown key, and a value of
    another type.
    """
    entries = []
    for number, line in enumerate(_text(path).splitlines()):
        place = f"{path}, line {number + 1}"
        entry = _strict(Entry, _json(line, place), place)
        if entry.index != number:
            raise ConvReproError(f"{place}: index {entry.index} must be {number}")
        entries.append(entry)
    return entries


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConvReproError(f"{path} cannot be read: {error}") from error


def _json(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise ConvReproError(f"{place}: this is not JSON ({error})") from error


def _strict(kind: type, values: Any, place: str) -> Any:
    """Returns `values` as the dataclass `kind`; raises ConvReproError unless keys and types are those of its fields."""
    names = [field.name for field in fields(kind)]
    if not isinstance(values, Mapping) or set(values) != set(names):
        odd = set(values) ^ set(names) if isinstance(values, Mapping) else {type(values).__name__}
        raise ConvReproError(f"{place}: unknown or missing key {sorted(odd)[0]!r}; the keys are {', '.join(names)}")
    types_of = get_type_hints(kind)
    for name, value in values.items():
        if not _fits(value, types_of[name]):
            raise ConvReproError(f"{place}: {name}={value!r} must be {types_of[name]}")
    return kind(**{name: _frozen(value) for name, value in values.items()})


def _fits(value: Any, wanted: Any) -> bool:
    if get_origin(wanted) is tuple:
        items = get_args(wanted)
        if not isinstance(value, list):
            return False
        if items[-1] is Ellipsis:
            return all(_fits(item, items[0]) for item in value)
        return len(value) == len(items) and all(map(_fits, value, items))
    if isinstance(wanted, UnionType):
        return any(_fits(value, option) for option in get_args(wanted))
    return type(value) is wanted


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, list) else value
