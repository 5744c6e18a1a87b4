"""What records of the bench say of operators and headline networks: `reproductions/speed/*.json`, one a run.

Of several records of the same baseline, setting and device the median counts, and their lowest and highest value are
told beside it.
"""

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from convrepro.config.paths import REPRODUCTIONS
from convrepro.errors import ConvReproError
from convrepro.tables.markdown import markdown_grid

FOLDER = "speed"
PLOT_FILE = "speed.svg"
OPERATORS = "operators"
MODES = {"train": "training step", "inference": "inference", "exported": "inference in onnxruntime"}


@dataclass(frozen=True)
class Spread:
    """Median, lowest and highest of a figure over the records."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        if self.low == self.high:
            return f"{self.median:.2f}"
        return f"{self.median:.2f} ({self.low:.2f} to {self.high:.2f})"


@dataclass(frozen=True)
class Timed:
    """What was timed, and how and where: repetitions have all of it in common."""

    group: str
    name: str
    baseline: str
    batch_size: int
    threads: int
    channels_last: bool
    device: str

    @property
    def setting(self) -> str:
        """How and where, in words."""
        layout = "channels_last" if self.channels_last else "channels first"
        return f"batches of {self.batch_size}, {self.threads} threads, {layout}, {self.device}"


@dataclass(frozen=True)
class Speed(Timed):
    """An entry over its records: time of the candidate over the baseline's by mode, and milliseconds an image.

    A mode that no record has is in neither.
    """

    macs_ratio: float
    ratios: Mapping[str, Spread]
    milliseconds: Mapping[str, float]

    def realised(self, mode: str) -> float:
        """The measured speed-up as a share of the speed-up by MACs."""
        return self.macs_ratio / self.ratios[mode].median


def records(folder: Path = REPRODUCTIONS / FOLDER) -> list[dict[str, Any]]:
    """The committed records, by name; raises ConvReproError for a file that is none."""
    found = []
    for path in sorted(folder.glob("*.json")):
        try:
            found.append(json.loads(path.read_text(encoding="utf-8")))
        except ValueError as error:
            raise ConvReproError(f"{path} cannot be read as a record of times: {error}") from error
    return found


def merged(found: Sequence[Mapping[str, Any]]) -> list[Speed]:
    """The entries of all records with the spread over repetitions, in the order in which they were first timed."""
    timings: dict[Timed, list[Mapping[str, Any]]] = {}
    for record in found:
        for timing in record.get("timings", ()):
            timings.setdefault(_timed(record, timing), []).append(timing)
    return [_merge(timed, several) for timed, several in timings.items()]


def _timed(record: Mapping[str, Any], timing: Mapping[str, Any]) -> Timed:
    return Timed(
        group=timing.get("group", record["what"]),
        name=timing["name"],
        baseline=timing["baseline"],
        batch_size=timing["batch_size"],
        threads=record["environment"]["threads"],
        channels_last=record["setting"]["channels_last"],
        device=record["environment"]["device"],
    )


def _merge(timed: Timed, timings: Sequence[Mapping[str, Any]]) -> Speed:
    ratios, milliseconds = {}, {}
    for mode in MODES:
        if measured := [timing["ratios"][mode] for timing in timings if mode in timing["ratios"]]:
            ratios[mode] = spread(ratio["median"] for ratio in measured)
            milliseconds[mode] = 1000 / timed.batch_size * statistics.median(ratio["seconds"] for ratio in measured)
    return Speed(**asdict(timed), macs_ratio=timings[-1]["macs_ratio"], ratios=ratios, milliseconds=milliseconds)


def spread(values: Iterable[float]) -> Spread:
    """Median, lowest and highest."""
    listed = sorted(values)
    return Spread(statistics.median(listed), listed[0], listed[-1])


def of_table(name: str, found: Sequence[Speed]) -> list[Speed]:
    """The entries that are rows of the table."""
    return [speed for speed in found if speed.group == name]


def grid(found: Sequence[Speed], title: str) -> list[str]:
    """Times as the lines of a markdown table: shares of the baseline's, and milliseconds an image.

    What was timed in several settings has its setting beside its name.
    """
    modes = [mode for mode in MODES if any(mode in speed.ratios for speed in found)]
    names = [speed.name if speed.group == OPERATORS else f"{speed.group}: {speed.name}" for speed in found]
    header = [("", title), ("", "against"), ("MACs", "x")]
    header += [(MODES[mode], word) for mode in modes for word in ("time x", "realised", "ms/image")]
    lines = []
    for name, speed in zip(names, found, strict=True):
        told = name if names.count(name) == 1 else f"{name} ({speed.setting})"
        line = [told, speed.baseline, f"{speed.macs_ratio:.3f}"]
        for mode in modes:
            line += _cells(speed, mode)
        lines.append(line)
    return markdown_grid((header, lines))


def _cells(speed: Speed, mode: str) -> list[str]:
    if mode not in speed.ratios:
        return [""] * 3
    return [str(speed.ratios[mode]), f"{100 * speed.realised(mode):.0f} %", f"{speed.milliseconds[mode]:.3g}"]
