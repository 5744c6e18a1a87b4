"""The page `reproductions/SPEED.md`: what fewer operations are worth in time, on the machine that the records name."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from convrepro.config.paths import REPRODUCTIONS
from convrepro.evidence.speed_record import (
    FOLDER,
    MODES,
    OPERATORS,
    PLOT_FILE,
    Speed,
    Spread,
    grid,
    merged,
    records,
    spread,
)
from convrepro.tables.markdown import markdown_grid

PAGE = "SPEED.md"

WHERE = {"train": "a training step", "inference": "inference", "exported": "inference in onnxruntime"}

INTRODUCTION = """# Speed

What fewer multiply-accumulates (MACs) are worth in time. Candidate and baseline take turns in one process, in an order
that is reversed from round to round; a figure is the median over rounds of candidate's time / baseline's time, below 1
where the candidate is faster. Of several records it is their median, with the lowest and the highest in parentheses.
`realised` is the speed-up as a share of the one that MACs promise. A training step is forward, backward and SGD;
inference is of the folded form (`convrepro.models.export.fuse`) of both, in torch and, exported to ONNX, in
onnxruntime. Other hardware, above all a GPU, may order them otherwise: `convrepro bench all` measures it there."""


def render(found: Sequence[Mapping[str, Any]]) -> str:
    """The page from the records (see `speed.records`)."""
    timed = merged(found)
    operators = sorted((s for s in timed if s.group == OPERATORS), key=_quickness)
    networks = [s for s in timed if s.group != OPERATORS]
    parts = [INTRODUCTION, f"![Time against MACs]({PLOT_FILE})"]
    if operators:
        parts += ["## Operators in one network", _about(operators), "\n".join(grid(operators, "operator"))]
        parts += [_slower(operators)]
    if networks:
        parts += ["## Networks of the papers", "\n".join(grid(networks, "row"))]
    if goals := _goals(found):
        parts += ["## Goals", GOALS, "\n".join(goals)]
        if profiles := _profiles(found):
            parts += [PROFILES, "\n".join(profiles)]
    if loading := _loading(found):
        parts += ["## Reading photographs", LOADING, "\n".join(loading)]
    parts += ["## Where this was measured", *_places(found)]
    return "\n\n".join(parts) + "\n"


def _quickness(speed: Speed) -> float:
    """Its ratio in the first mode that it was timed in."""
    return next(iter(speed.ratios.values())).median


GOALS = """The bounds were taken from a study of what is within reach on such a machine; they stand in
`tests/bench/operators.py` and `tests/bench/suite.py`. A ratio is of the candidate's time to the baseline's, of sizes in
bytes, or of rates where it says so, with as many decimals, at least three, as show its side of the bound; zeros at the
end are left out. Measured by `python tests/bench/goals.py`."""


LOADING = """Images a second that `data=imagenet` decodes, crops to 224x224, flips and normalises, without a network;
JPEGs as large as ImageNet's, and a copy of them whose shorter side was brought to 256 once. One thread a process.
Measured by `python tests/bench/loading.py`."""


def _about(operators: Sequence[Speed]) -> str:
    batch = operators[0].batch_size
    return f"VGG-16 for CIFAR-10, batches of {batch}, float32, channels_last, against the same network, dense:"


def _slower(operators: Sequence[Speed]) -> str:
    slower = {
        mode: [speed.name for speed in operators if mode in speed.ratios and speed.ratios[mode].median > 1]
        for mode in MODES
    }
    told = [f"in {WHERE[mode]}: {', '.join(names)}" for mode, names in slower.items() if names]
    return f"**Slower than what they replace**, {'; '.join(told)}." if told else "None is slower than what it replaces."


def _goals(found: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = []
    for name, (ratio, bound, several) in _judged(found).items():
        met = "met" if ratio.median <= bound else "missed"
        lines.append([name, several[-1]["baseline"], f"{bound:g}", _told(ratio, bound), str(len(several)), met])
    header = [
        ("", "what"),
        ("", "against"),
        ("ratio", "at most"),
        ("ratio", "measured"),
        ("ratio", "records"),
        ("", ""),
    ]
    return markdown_grid((header, lines)) if lines else []


def _told(ratio: Spread, bound: float) -> str:
    """As a `Spread` tells itself, but close enough to see on which side of `bound` the median is."""
    decimals = next(n for n in range(3, 20) if (round(ratio.median, n) <= bound) == (ratio.median <= bound))
    lowest_to_highest = f" ({round(ratio.low, 3)} to {round(ratio.high, 3)})" if ratio.low < ratio.high else ""
    return f"{round(ratio.median, decimals)}{lowest_to_highest}"


def _judged(found: Sequence[Mapping[str, Any]]) -> dict[str, tuple[Spread, float, list[Mapping[str, Any]]]]:
    """Ratio over the records, bound and measurements of each goal by its name."""
    measured: dict[str, list[Mapping[str, Any]]] = {}
    for record in found:
        for goal in record.get("goals", ()):
            measured.setdefault(goal["name"], []).append(goal)
    return {
        name: (spread([goal["median"] for goal in several]), several[-1]["bound"], several)
        for name, several in measured.items()
    }


PROFILES = """Where the time of those that miss goes, by torch's profiler: milliseconds of one step in the operations
that take longest, which the profile itself slows a little. A profile is of one run: it may order candidate and
reference otherwise than the medians above do, and it is those that judge."""

LONGEST = 6


def _profiles(found: Sequence[Mapping[str, Any]]) -> list[str]:
    missed = {name for name, (ratio, bound, _) in _judged(found).items() if ratio.median > bound}
    profiles = {profile["name"]: profile for record in found for profile in record.get("profiles", ())}
    lines = []
    for name in [name for name in profiles if name in missed]:
        lines.append(f"- {name}")
        for side in ("candidate", "reference"):
            spent = profiles[name][side]
            longest = ", ".join(f"{operation} {spent[operation]:.0f}" for operation in list(spent)[:LONGEST])
            lines.append(f"  - {side}, {sum(spent.values()):.0f} ms: {longest}")
    return lines


def _loading(found: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = [
        [cell["stored"], f"{cell['bytes'] / 1000:.0f}", str(cell["workers"]), f"{cell['median']:.0f}", _range(cell)]
        for record in found
        for cell in record.get("loading", ())
    ]
    header = [("", "stored"), ("", "kB"), ("", "workers"), ("images/s", "median"), ("images/s", "range")]
    return markdown_grid((header, lines)) if lines else []


def _range(cell: Mapping[str, Any]) -> str:
    return f"{cell['low']:.0f} to {cell['high']:.0f}"


def _places(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line for each record."""
    lines = []
    for record in found:
        place = record["environment"]
        torch = (place.get("versions") or {}).get("torch")
        commit = f"{(place.get('commit') or 'unknown')[:8]}{' with changes' if place.get('dirty') else ''}"
        lines.append(
            f"- {record['time']}, {record['what']}: {place.get('device')}, {place.get('threads')} threads, "
            f"torch {torch}, commit {commit}"
        )
    return ["\n".join(lines)]


def write(root: Path = REPRODUCTIONS) -> Path:
    """Write the page beside the records; returns its path."""
    path = root / PAGE
    path.write_text(render(records(root / FOLDER)), encoding="utf-8")
    return path
