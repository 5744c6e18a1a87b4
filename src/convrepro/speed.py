"""The suite of `convrepro bench all`: each operator in one network, and headline networks of the papers."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from convrepro.bench import Setting, Timing, compare
from convrepro.config import compose_config
from convrepro.errors import ConvReproError
from convrepro.paths import REPRODUCTIONS
from convrepro.speed_record import OPERATORS
from convrepro.tables import load_table

SUITE = REPRODUCTIONS / "bench.yaml"


@dataclass(frozen=True)
class Entry:
    """A network and the one that it is timed against, by their overrides, with batches of `batch_size` images.

    group: `operators`, or the table `paper/name` whose rows they are.
    """

    group: str
    name: str
    overrides: tuple[str, ...]
    baseline: str
    baseline_overrides: tuple[str, ...]
    batch_size: int


def suite(path: Path = SUITE) -> list[Entry]:
    """The entries of a suite; raises ConvReproError for a row that a table does not run."""
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    operators = content[OPERATORS]
    base = tuple(operators["base"])
    entries = [
        Entry(OPERATORS, name, (*base, *words.split()), "standard", base, operators["batch_size"])
        for name, words in operators["rows"].items()
    ]
    for name, networks in content["networks"].items():
        table = load_table(name)
        runnable = {row.id: row for row in table.rows if not row.quoted}
        for pair in networks["against"].items():
            if unknown := [row for row in pair if row not in runnable]:
                raise ConvReproError(f"{path}: {name} runs no row {unknown[0]!r}; valid: {', '.join(runnable)}")
            own, other = (tuple(table.overrides(runnable[row])) for row in pair)
            entries.append(Entry(name, pair[0], own, pair[1], other, networks["batch_size"]))
    return entries


def run_suite(setting: Setting, pattern: str, watch: Callable[[Timing], None]) -> list[dict[str, Any]]:
    """Time the entries whose `group/name` contains `pattern`, each with its own batch size; JSON-ready."""
    found = []
    for entry in suite():
        if pattern not in f"{entry.group}/{entry.name}":
            continue
        configurations = (compose_config(words) for words in (entry.overrides, entry.baseline_overrides))
        own, other = configurations
        timing = compare(entry.name, own, entry.baseline, other, replace(setting, batch_size=entry.batch_size))
        watch(timing)
        found.append({"group": entry.group, "batch_size": entry.batch_size, **timing.as_json()})
    return found
