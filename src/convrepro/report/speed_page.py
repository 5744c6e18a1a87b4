"""Writes the page `reproductions/SPEED.md`: the time that operators with fewer operations save."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from convrepro.config.paths import REPRODUCTIONS
from convrepro.evidence.speed_record import (
    FOLDER,
    MODES,
    OPERATORS,
    PLOT_FILE,
    Goal,
    Loading,
    Record,
    Speed,
    Spread,
    grid,
    merged,
    records,
    spread,
)
from convrepro.tables.markdown import bullet, escaped, markdown_grid

PAGE = "SPEED.md"
OPERATORS_TITLE = "Operators in one network"
OWN = "common/"
"""What the names of tables begin with that are no paper's."""

WHERE = {"train": "a training step", "inference": "inference", "exported": "inference in onnxruntime"}

INTRODUCTION = """# Speed

This page shows how much time operators with fewer multiply-accumulates (MACs) save. Candidate and baseline run in turns
in one process, in an order that is reversed from round to round. A ratio is the candidate's time divided by the
baseline's, the median over the rounds; it is below 1 where the candidate is faster. Where there are several records,
the ratio is their median, with the lowest and the highest in parentheses. `realised` is the speed-up as a share of the
speed-up that the MACs promise. A training step is forward, backward and SGD. Inference uses the folded form
(`convrepro.models.export.fuse`) of both networks, in torch and, exported to ONNX, in onnxruntime. On other hardware
the order may differ: `convrepro bench all` measures it there. What was measured on a GPU is in [GPU.md](GPU.md)."""


def render(found: Sequence[Record]) -> str:
    """Renders the page from the records (see `speed_record.records`)."""
    parts = [INTRODUCTION, f"![Time against MACs]({PLOT_FILE})"]
    for section in sections(merged(found)):
        parts.append(f"## {section.title}")
        table = "\n".join(markdown_grid(grid(section.speeds, section.column)))
        of_operators = section.title == OPERATORS_TITLE
        parts += [_about(section.speeds), table, _slower(section.speeds)] if of_operators else [table]
    if goals := _goals(found):
        parts += ["## Goals", GOALS, "\n".join(goals)]
        if profiles := _profiles(found):
            parts += [PROFILES, "\n".join(profiles)]
    if loading := _loading(found):
        parts += ["## Reading photographs", LOADING, "\n".join(loading)]
    parts += ["## Where this was measured", *_places(found)]
    return "\n\n".join(parts) + "\n"


class Section(NamedTuple):
    """A table of the page: its title, the title of its first column, and its lines."""

    title: str
    column: str
    speeds: list[Speed]


def sections(measured: Sequence[Speed]) -> list[Section]:
    """The tables of the page: operators in one network, the fastest first; networks of papers; rows of our own tables.

    Those without a line are left out.
    """
    operators = sorted((s for s in measured if s.group == OPERATORS), key=_first_ratio)
    rows = [s for s in measured if s.group != OPERATORS]
    found = (
        Section(OPERATORS_TITLE, "operator", operators),
        Section("Networks of the papers", "row", [s for s in rows if not s.group.startswith(OWN)]),
        Section("All operators under one protocol", "row", [s for s in rows if s.group.startswith(OWN)]),
    )
    return [section for section in found if section.speeds]


def _first_ratio(speed: Speed) -> float:
    """The ratio in the first mode that was measured; infinite where none was."""
    return next((ratio.median for ratio in speed.ratios.values()), math.inf)


GOALS = """The bounds are from a study of what can be reached on such a machine; they are set in
`tests/bench/operators.py` and `tests/bench/suite.py`. A ratio is that of the candidate's time to the baseline's, or of
sizes in bytes or of rates where the name says so. It has three decimals, or more where they are needed to show on which
side of the bound it is; zeros at the end are left out. `python tests/bench/goals.py` measures the goals."""

LOADING = """The rate is that of images that `data=imagenet` decodes, crops to 224x224, flips and normalises, without a
network. The images are JPEGs as large as those of ImageNet, and copies of them that were resized to a shorter side of
256. Each process has one thread. `python tests/bench/loading.py` measures the rates."""


def _about(operators: Sequence[Speed]) -> str:
    batch = operators[0].batch_size
    return f"VGG-16 for CIFAR-10, batches of {batch}, float32, channels_last, against the same network, dense:"


def _slower(operators: Sequence[Speed]) -> str:
    slower = {
        mode: [speed.name for speed in operators if mode in speed.ratios and speed.ratios[mode].median > 1]
        for mode in MODES
    }
    parts = [f"in {WHERE[mode]}: {escaped(', '.join(names))}" for mode, names in slower.items() if names]
    if not parts:
        return "No operator is slower than the layers that it replaces."
    return f"**Slower than the layers that they replace**, {'; '.join(parts)}."


def _goals(found: Sequence[Record]) -> list[str]:
    lines = []
    for name, (ratio, bound, several) in _judged(found).items():
        met = "met" if ratio.median <= bound else "missed"
        lines.append([name, several[-1]["baseline"], f"{bound:g}", _digits(ratio, bound), str(len(several)), met])
    header = [
        ("", "what"),
        ("", "against"),
        ("ratio", "at most"),
        ("ratio", "measured"),
        ("ratio", "records"),
        ("", ""),
    ]
    return markdown_grid((header, lines)) if lines else []


def _digits(ratio: Spread, bound: float) -> str:
    """The ratio with enough decimals to show on which side of `bound` its median is."""
    decimals = next(n for n in range(3, 20) if (round(ratio.median, n) <= bound) == (ratio.median <= bound))
    lowest_to_highest = f" ({round(ratio.low, 3)} to {round(ratio.high, 3)})" if ratio.low < ratio.high else ""
    return f"{round(ratio.median, decimals)}{lowest_to_highest}"


def _judged(found: Sequence[Record]) -> dict[str, tuple[Spread, float, list[Goal]]]:
    """The ratio over the records, the bound and the measurements of each goal, by its name."""
    measured: dict[str, list[Goal]] = {}
    for record in found:
        for goal in record.get("goals", ()):
            measured.setdefault(goal["name"], []).append(goal)
    return {
        name: (spread([goal["median"] for goal in several]), several[-1]["bound"], several)
        for name, several in measured.items()
    }


PROFILES = """For each goal that is missed, torch's profiler shows the milliseconds of one step in the operations that
take longest. Profiling slows them a little. A profile is of a single run, so that the order of candidate and reference
may differ from that of the medians above; the medians decide."""

LONGEST = 6


def _profiles(found: Sequence[Record]) -> list[str]:
    missed = {name for name, (ratio, bound, _) in _judged(found).items() if ratio.median > bound}
    profiles = {profile["name"]: profile for record in found for profile in record.get("profiles", ())}
    lines = []
    for name in [name for name in profiles if name in missed]:
        lines.append(bullet(name))
        for side, spent in (("candidate", profiles[name]["candidate"]), ("reference", profiles[name]["reference"])):
            longest = ", ".join(f"{operation} {spent[operation]:.0f}" for operation in list(spent)[:LONGEST])
            lines.append(f"  - {side}, {sum(spent.values()):.0f} ms: {escaped(longest)}")
    return lines


def _loading(found: Sequence[Record]) -> list[str]:
    lines = [
        [cell["stored"], f"{cell['bytes'] / 1000:.0f}", str(cell["workers"]), f"{cell['median']:.0f}", _range(cell)]
        for record in found
        for cell in record.get("loading", ())
    ]
    header = [("", "stored"), ("", "kB"), ("", "workers"), ("images/s", "median"), ("images/s", "range")]
    return markdown_grid((header, lines)) if lines else []


def _range(cell: Loading) -> str:
    return f"{cell['low']:.0f} to {cell['high']:.0f}"


def _places(found: Sequence[Record]) -> list[str]:
    """A line for each record."""
    lines = []
    for record in found:
        place = record["environment"]
        torch = (place.get("versions") or {}).get("torch")
        commit = f"{(place.get('commit') or 'unknown')[:8]}{' with changes' if place.get('dirty') else ''}"
        machine = f"{place['device']}, {place['threads']} threads, torch {torch}, commit {commit}"
        lines.append(bullet(f"{record['time']}, {record['what']}: {machine}"))
    return ["\n".join(lines)]


def write(root: Path = REPRODUCTIONS) -> Path:
    """Writes the page under `root`, from the records there; returns its path."""
    path = root / PAGE
    path.write_text(render(records(root / FOLDER)), encoding="utf-8")
    return path
