"""A study on disk: `study.json`, which says what is searched, and a folder for each trial.

Any number of workers share it. A trial belongs to the worker that holds the kernel's lock on its folder, and the lock
ends with the worker, however that ends. What a worker left running is taken over by the next one that looks, and its
run continues from its checkpoint: a kill loses no trial that has ended.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import with_config
from typing_extensions import TypedDict

from convrepro.config.scientific import differences
from convrepro.config.strict import ON_DISK, read_file, text_of
from convrepro.errors import Busy, ConvReproError
from convrepro.runs.folder import busy, hold
from convrepro.runs.storage import PART, exclusive, write_json
from convrepro.search.trial import Trial, folder_name, path_of

STUDY = "study.json"


@with_config(ON_DISK)
class Identity(TypedDict):
    """What a study searches; the same command has the same identity, and its trials can be compared."""

    schema: Literal[1]
    protocol: str
    settings: dict[str, Any]


class Taken(ConvReproError):
    """A trial that another worker was faster to claim."""

    def __init__(self) -> None:
        super().__init__("another worker has this trial")


@dataclass(frozen=True)
class Study:
    """A study in its folder."""

    folder: Path

    def open(self, identity: Identity) -> None:
        """Writes what is searched, where the study is new. Raises ConvReproError where it is another search's."""
        path = self.folder / STUDY
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with exclusive(self.folder / ".study.lock"):
                if not path.exists():
                    write_json(path, identity)
                    return
                was = read_file(Identity, path)
        except OSError as error:
            raise ConvReproError(f"{self.folder} cannot be written ({error.strerror})") from error
        for key, before, after in differences(was["settings"], dict(identity["settings"])):
            raise ConvReproError(
                f"{self.folder} is another search: its {key} was {text_of(before)} and is {text_of(after)}; give this "
                "one a name of its own by --name"
            )
        if was["protocol"] != identity["protocol"]:
            raise ConvReproError(
                f"{self.folder} is another search: its recipe, budget or data differ; give this one a name of its own "
                "by --name"
            )

    @property
    def place(self) -> Path:
        return self.folder / "trials"

    def trials(self) -> list[Trial]:
        """All trials in the order of their numbers. Raises ConvReproError for a file that cannot be read."""
        found: list[Trial] = []
        while (path := path_of(self.place, len(found))).exists():
            found.append(read_file(Trial, path))
        return found

    def write(self, trial: Trial) -> None:
        """Writes a trial that this worker holds."""
        write_json(path_of(self.place, trial["number"]), trial)

    @contextmanager
    def claimed(self, trial: Trial) -> Iterator[None]:
        """Holds a new trial, which is written with its number. Raises Taken where another worker has the number."""
        path = path_of(self.place, trial["number"])
        if path.exists():
            raise Taken
        with _held(path.parent):
            _create(path, trial)
            yield

    @contextmanager
    def taken_over(self, number: int) -> Iterator[Trial]:
        """Holds a trial whose worker is gone. Raises Taken where another worker took it over, or it has ended."""
        path = path_of(self.place, number)
        with _held(path.parent):
            trial = read_file(Trial, path)
            if trial["state"] != "running":
                raise Taken
            yield trial

    def abandoned(self, trials: list[Trial]) -> list[int]:
        """The numbers of the trials that are running by their record, and that no worker holds."""
        running = [trial["number"] for trial in trials if trial["state"] == "running"]
        return [number for number in running if not busy(self.place / folder_name(number))]


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Holds the folder of a trial. Raises Taken where another worker holds it."""
    with ExitStack() as stack:
        try:
            stack.enter_context(hold(folder))
        except Busy:
            raise Taken from None
        yield


def _create(path: Path, trial: Mapping[str, Any]) -> None:
    """Writes a file that must not exist, whole. Raises Taken where it exists."""
    whole = path.with_name(f".claim.{os.getpid()}{PART}")
    write_json(whole, trial)
    try:
        os.link(whole, path)
    except FileExistsError:
        raise Taken from None
    finally:
        with suppress(OSError):
            whole.unlink()
