"""Reads the records of speed, `reproductions/speed/*.json`, one for each run of `convrepro bench`, and merges them.

Records that agree in baseline, setting and device are repetitions: their median counts, and is shown with their lowest
and highest value.
"""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, with_config
from typing_extensions import NotRequired, TypedDict

from convrepro.config.paths import REPRODUCTIONS
from convrepro.config.strict import ON_DISK, read_files
from convrepro.tables.markdown import Grid

SCHEMA = 1
FOLDER = "speed"
PLOT_FILE = "speed.svg"
OPERATORS = "operators"
MODES = {"train": "training step", "inference": "inference", "exported": "inference in onnxruntime"}

Positive = Annotated[float, Field(gt=0)]


@with_config(ON_DISK)
class Ratio(TypedDict):
    """The candidate's time divided by the baseline's, over the rounds, and the median seconds of the candidate."""

    median: Positive
    low: Positive
    high: Positive
    seconds: Positive


@with_config(ON_DISK)
class Timing(TypedDict):
    """A pair of networks, and its ratios by mode."""

    group: NotRequired[str]
    name: str
    baseline: str
    batch_size: Annotated[int, Field(gt=0)]
    macs_ratio: Positive
    ratios: dict[str, Ratio]


@with_config(ON_DISK)
class Setting(TypedDict):
    """How speeds were measured."""

    channels_last: bool


@with_config(ON_DISK)
class Goal(TypedDict):
    """A ratio that was aimed at, and the one that was measured."""

    name: str
    baseline: str
    bound: Positive
    median: Positive


@with_config(ON_DISK)
class Profile(TypedDict):
    """Milliseconds of one step by operation."""

    name: str
    candidate: dict[str, float]
    reference: dict[str, float]


@with_config(ON_DISK)
class Loading(TypedDict):
    """Images per second that so many processes read."""

    stored: str
    bytes: float
    workers: int
    median: float
    low: float
    high: float


@with_config(ON_DISK)
class Place(TypedDict):
    """The machine that was measured, and the code."""

    device: str
    threads: int
    commit: NotRequired[str | None]
    dirty: NotRequired[bool | None]
    versions: NotRequired[dict[str, str | None] | None]


@with_config(ON_DISK)
class Record(TypedDict):
    """One file: what a run of `convrepro bench`, or of a script in `tests/bench`, measured."""

    schema: Literal[1]
    what: str
    time: str
    setting: Setting
    environment: Place
    timings: NotRequired[list[Timing]]
    goals: NotRequired[list[Goal]]
    profiles: NotRequired[list[Profile]]
    loading: NotRequired[list[Loading]]


@dataclass(frozen=True)
class Spread:
    """Median, lowest and highest value of a figure over the records."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        if self.low == self.high:
            return f"{self.median:.2f}"
        return f"{self.median:.2f} ({self.low:.2f} to {self.high:.2f})"


@dataclass(frozen=True)
class Subject:
    """What was measured, in which setting, and on which device. Repetitions agree in all of these."""

    group: str
    name: str
    baseline: str
    batch_size: int
    threads: int
    channels_last: bool
    device: str

    @property
    def setting(self) -> str:
        """Setting and device in words."""
        layout = "channels_last" if self.channels_last else "channels first"
        return f"batches of {self.batch_size}, {self.threads} threads, {layout}, {self.device}"


@dataclass(frozen=True)
class Speed(Subject):
    """The speed of a subject over all of its records.

    `ratios` holds the candidate's time divided by the baseline's, `milliseconds` the candidate's time for one image,
    both by mode. A mode that no record has is missing from both.
    """

    macs_ratio: float
    ratios: Mapping[str, Spread]
    milliseconds: Mapping[str, float]

    def realised(self, mode: str) -> float:
        """The measured speed-up as a share of the speed-up that the MACs promise."""
        return self.macs_ratio / self.ratios[mode].median


def records(folder: Path = REPRODUCTIONS / FOLDER) -> list[Record]:
    """Reads all records in `folder`, ordered by file name; a damaged one is set aside with a warning."""
    return [record for _, record in read_files(Record, sorted(folder.glob("*.json")))]


def merged(found: Sequence[Record]) -> list[Speed]:
    """Merges the repetitions in the records; the order is that in which the subjects were first measured."""
    timings: dict[Subject, list[Timing]] = {}
    for record in found:
        for timing in record.get("timings", ()):
            timings.setdefault(_subject(record, timing), []).append(timing)
    return [_merge(subject, several) for subject, several in timings.items()]


def _subject(record: Record, timing: Timing) -> Subject:
    return Subject(
        group=timing.get("group", record["what"]),
        name=timing["name"],
        baseline=timing["baseline"],
        batch_size=timing["batch_size"],
        threads=record["environment"]["threads"],
        channels_last=record["setting"]["channels_last"],
        device=record["environment"]["device"],
    )


def _merge(subject: Subject, timings: Sequence[Timing]) -> Speed:
    ratios, milliseconds = {}, {}
    for mode in MODES:
        if measured := [timing["ratios"][mode] for timing in timings if mode in timing["ratios"]]:
            ratios[mode] = spread(ratio["median"] for ratio in measured)
            milliseconds[mode] = 1000 / subject.batch_size * statistics.median(ratio["seconds"] for ratio in measured)
    return Speed(**asdict(subject), macs_ratio=timings[-1]["macs_ratio"], ratios=ratios, milliseconds=milliseconds)


def spread(values: Iterable[float]) -> Spread:
    """Median, lowest and highest of `values`."""
    listed = sorted(values)
    return Spread(statistics.median(listed), listed[0], listed[-1])


def of_table(name: str, found: Sequence[Speed]) -> list[Speed]:
    """The speeds of the rows of the table `paper/name`."""
    return [speed for speed in found if speed.group == name]


def grid(found: Sequence[Speed], title: str) -> Grid:
    """Speeds as a table: times as shares of the baseline's, and milliseconds an image.

    A subject that was measured in several settings has the setting beside its name, one of several tables the table.
    """
    modes = [mode for mode in MODES if any(mode in speed.ratios for speed in found)]
    one_group = len({speed.group for speed in found}) == 1
    names = [speed.name if one_group else f"{speed.group}: {speed.name}" for speed in found]
    header = [("", title), ("", "against"), ("MACs", "x")]
    header += [(MODES[mode], word) for mode in modes for word in ("time x", "realised", "ms/image")]
    lines = []
    for name, speed in zip(names, found, strict=True):
        label = name if names.count(name) == 1 else f"{name} ({speed.setting})"
        line = [label, speed.baseline, f"{speed.macs_ratio:.3f}"]
        for mode in modes:
            line += _cells(speed, mode)
        lines.append(line)
    return header, lines


def _cells(speed: Speed, mode: str) -> list[str]:
    if mode not in speed.ratios:
        return [""] * 3
    return [str(speed.ratios[mode]), f"{100 * speed.realised(mode):.0f} %", f"{speed.milliseconds[mode]:.3g}"]
