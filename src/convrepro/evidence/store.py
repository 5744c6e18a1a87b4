"""The evidence of a table: what is kept of it, and how it is read."""

from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import Field, with_config
from typing_extensions import NotRequired, TypedDict

from convrepro.config.paths import REPRODUCTIONS
from convrepro.config.scientific import alike
from convrepro.config.strict import ON_DISK, read_file, set_aside
from convrepro.errors import ConvReproError
from convrepro.runs.result import Config, Environment, Exact, Metrics, Override, Time
from convrepro.tables import Results, Statics, Table

SCHEMA: Final = 1

#: The validation top-1 of each epoch, such as "97.00 98.62".
Curve = Annotated[str, Field(pattern=r"^(\d{1,3}\.\d+( \d{1,3}\.\d+)*)?$")]
History = TypedDict("History", {"val/top1": NotRequired[Curve]})
with_config(ON_DISK)(History)
Seed = Annotated[str, Field(pattern=r"^\d+$")]


@with_config(ON_DISK)
class Run(TypedDict):
    """What evidence keeps of a run. `row` names the run's folder; evidence of older versions does not have it."""

    budget: str
    config: Config
    counts: NotRequired[dict[str, Exact] | None]
    environment: Environment
    history: History
    metrics: Metrics
    overrides: list[Override]
    row: NotRequired[str | None]
    seed: int
    static: dict[str, int]
    status: Literal["done"]
    time: NotRequired[Time | None]


@with_config(ON_DISK)
class Entry(TypedDict):
    """The evidence of a row: counts by metric and rule, runs by seed, and proxies by label and seed.

    `layers`: patterns of the layers that the counts are of, where they are not of the whole network. Older versions
    kept a count without its rule.
    """

    overrides: list[Override]
    layers: NotRequired[str]
    counts: NotRequired[dict[str, dict[str, Exact] | Exact]]
    runs: NotRequired[dict[Seed, Run]]
    proxies: NotRequired[dict[str, dict[Seed, Run]]]


@with_config(ON_DISK)
class Evidence(TypedDict):
    """A file of evidence; `table` is the table that it is of, `rows` its entries by row."""

    schema: Literal[1]
    table: str
    rows: dict[str, Entry]


def evidence_path(table: str, root: Path = REPRODUCTIONS) -> Path:
    """Where the evidence of the table `paper/name` is kept."""
    paper, name = table.split("/")
    return root / paper / "results" / f"{name}.json"


def read_rows(table: str, root: Path) -> dict[str, Entry]:
    """The evidence of a table by row; empty where there is none. Raises ConvReproError for a file that is damaged."""
    path = evidence_path(table, root)
    if not path.exists():
        return {}
    evidence = read_file(Evidence, path)
    if evidence["table"] != table:
        raise ConvReproError(f"{path}: table={evidence['table']} must be {table}")
    return evidence["rows"]


def _served(table: str, root: Path) -> dict[str, Entry]:
    """`read_rows`, without what is damaged."""
    try:
        return read_rows(table, root)
    except ConvReproError as error:
        set_aside(error)
        return {}


def _current(table: Table, root: Path) -> dict[str, dict[str, Any]]:
    """The evidence by row, with the runs of rows that are another table's. Raises where it is out of date."""
    rows: dict[str, dict[str, Any]] = {}
    read: dict[str, dict[str, Entry]] = {}
    for row in table.rows:
        owner, _, row_id = row.same_as.rpartition("/") if row.same_as else (table.name, "", row.id)
        for part, origin, key in (("counts", table.name, row.id), ("runs", owner, row_id), ("proxies", owner, row_id)):
            if origin not in read:
                read[origin] = _served(origin, root)
            entry = read[origin].get(key)
            holds = entry is None or alike(entry["overrides"], table.overrides(row))
            if entry and part == "counts" and not (holds and entry.get("layers", "") == row.layers):
                entry = None  # counted anew by `convrepro collect`; nothing is lost
            elif entry and not holds and entry.get(part):
                raise ConvReproError(
                    f"{evidence_path(origin, root)}: row {key} is {' '.join(entry['overrides'])}, but by now "
                    f"{' '.join(table.overrides(row))}; `convrepro collect {origin}` drops it"
                )
            rows.setdefault(row.id, {})[part] = entry.get(part, {}) if entry else {}
    return rows


def load_evidence(table: Table, root: Path = REPRODUCTIONS) -> tuple[Statics, Results]:
    """Our counts and the runs at the paper's budget that the table's evidence holds; both empty where there is none.

    A count of a row with other overrides or layers by now is left out, and one by another rule than the metric has by
    now, or by an unnamed rule. A damaged file is set aside with a warning. Raises ConvReproError where a row has other
    overrides by now than when it was run.
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
