"""The frozen record of a submission: the request, and a manifest with one line for each run.

A submission is a folder `runs/<paper>/<table>/.slurm/<number>/` with `request.json`, `manifest.jsonl`, the job scripts
and `logs/`. Request and manifest are data; nothing in them is executed.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from convrepro.config.strict import Record, read_bytes, read_file, read_json
from convrepro.errors import ConvReproError
from convrepro.runs.storage import write_json, write_whole

FOLDER = ".slurm"
MANIFEST = "manifest.jsonl"
REQUEST = "request.json"
CANCELLED = "cancelled.json"


class Entry(Record):
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


class Request(Record):
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
        return read_file(Request, self.folder / REQUEST)

    @cached_property
    def entries(self) -> list[Entry]:
        return read_manifest(self.manifest)

    @property
    def cancelled(self) -> list[str]:
        """The folders of the runs that `cancel` took out of the queue."""
        path = self.folder / CANCELLED
        return read_file(list[str], path) if path.exists() else []

    def note_cancelled(self, folders: Iterable[Path]) -> None:
        """Remembers that these runs are taken out of the queue on purpose."""
        if added := sorted(str(folder) for folder in folders):
            write_json(self.folder / CANCELLED, sorted({*self.cancelled, *added}))

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
    write_json(submission.folder / REQUEST, request.model_dump())
    write_whole(submission.manifest, "".join(f"{entry.model_dump_json()}\n" for entry in entries).encode())


def read_manifest(path: Path) -> list[Entry]:
    """Reads the runs of a manifest.

    Raises ConvReproError, with file and line, for a line that is not JSON, a missing or unknown key, and a value of
    another type.
    """
    entries = []
    for number, line in enumerate(read_bytes(path).splitlines()):
        place = f"{path}, line {number + 1}"
        entry = read_json(Entry, line, place)
        if entry.index != number:
            raise ConvReproError(f"{place}: index {entry.index} must be {number}")
        entries.append(entry)
    return entries
