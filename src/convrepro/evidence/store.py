"""The evidence of a table: what is kept of it, and how it is read."""

import json
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

from convrepro.config.paths import REPRODUCTIONS
from convrepro.errors import ConvReproError
from convrepro.tables import (
    Results,
    Statics,
    Table,
    settings,
)

SCHEMA = 1


Run = dict[str, Any]


def evidence_path(table: str, root: Path = REPRODUCTIONS) -> Path:
    """Where the evidence of the table `paper/name` is kept."""
    paper, name = table.split("/")
    return root / paper / "results" / f"{name}.json"


def read_rows(table: str, root: Path) -> dict[str, dict[str, Any]]:
    path = evidence_path(table, root)
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text())
        if content["schema"] == SCHEMA and content["table"] == table:
            return content["rows"]
    except (ValueError, KeyError, TypeError) as error:
        raise ConvReproError(f"{path} cannot be read as evidence: {error!r}") from error
    raise ConvReproError(f"{path} is not the evidence of {table} in this version (schema {SCHEMA})")


def _current(table: Table, root: Path) -> dict[str, dict[str, Any]]:
    """The evidence by row, with the runs of rows that are another table's. Raises where it is out of date."""
    rows: dict[str, dict[str, Any]] = {}
    read: dict[str, dict[str, dict[str, Any]]] = {}
    for row in table.rows:
        owner, _, row_id = row.same_as.rpartition("/") if row.same_as else (table.name, "", row.id)
        for part, origin, key in (("counts", table.name, row.id), ("runs", owner, row_id), ("proxies", owner, row_id)):
            if origin not in read:
                read[origin] = read_rows(origin, root)
            entry = read[origin].get(key, {})
            if entry and settings(entry["overrides"]) != table.settings(row):
                raise ConvReproError(
                    f"{evidence_path(origin, root)}: row {key} is {' '.join(entry['overrides'])}, but by now "
                    f"{' '.join(table.overrides(row))}; `convrepro collect {origin}` drops it"
                )
            rows.setdefault(row.id, {})[part] = entry.get(part, {})
    return rows


def load_evidence(table: Table, root: Path = REPRODUCTIONS) -> tuple[Statics, Results]:
    """Our counts and the runs at the paper's budget that the table's evidence holds; both empty where there is none.

    A count by another rule than the metric has by now, or by one that is not told, is left out.
    Raises ConvReproError where a row has other overrides by now than when it was run.
    """
    rows = _current(table, root)
    statics = {row: _counted(table, parts["counts"]) for row, parts in rows.items()}
    return statics, {row: _by_seed(parts["runs"]) for row, parts in rows.items()}


def _counted(table: Table, counts: Mapping[str, Any]) -> dict[str, Fraction]:
    return {
        name: Fraction(counts[name][metric.count])
        for name, metric in table.metrics.items()
        if isinstance(counts.get(name), Mapping) and metric.count in counts[name]
    }


def load_proxies(table: Table, root: Path = REPRODUCTIONS) -> dict[str, Results]:
    """The runs that are compared with nothing, by what makes them a proxy."""
    proxies: dict[str, dict[str, Mapping[int, Run]]] = {}
    for row, entry in _current(table, root).items():
        for label, runs in entry["proxies"].items():
            proxies.setdefault(label, {})[row] = _by_seed(runs)
    return dict(sorted(proxies.items()))


def _by_seed(runs: Mapping[str, Run]) -> dict[int, Run]:
    return {int(seed): run for seed, run in runs.items()}
