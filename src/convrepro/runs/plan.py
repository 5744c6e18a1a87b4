"""Which runs a paper's table needs: each row and seed as the `train` line that a person would type."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from convrepro.config.compose import compose_config
from convrepro.config.overrides import key_of, quoted
from convrepro.config.schema import RunConfig
from convrepro.config.scientific import scientific
from convrepro.errors import ConvReproError
from convrepro.runs.identity import Identity, former_digest, named
from convrepro.runs.protocol import short
from convrepro.runs.result import LAST
from convrepro.tables import Row, Table

#: What a plan sets itself, and how to choose it.
OWN = {
    "budget": "choose by --budget",
    "seed": "choose by --seeds",
    "row": "choose by --rows",
    "table": "the table is the command's first word",
}


@dataclass(frozen=True)
class Job:
    """One (row, seed): its folder and the overrides of its `convrepro train` line.

    source: the folder of the run whose weights this one starts from, if any.
    """

    table: Table
    row: Row
    identity: Identity
    folder: Path
    overrides: list[str]
    source: Path | None = None

    @property
    def line(self) -> str:
        return "convrepro train " + shlex.join(self.overrides)


def plan(
    table: Table, *, budget: str, rows: Sequence[str], seeds: Sequence[int], extra: Sequence[str], runs: Path
) -> list[Job]:
    """The jobs of `rows` (all where empty) and `seeds`, rows that others start from first.

    Overrides in `extra` that change what is computed give the rows folders of their own. Raises ConvReproError for
    a row that the table lacks or only quotes, and for an override of what the plan itself sets.
    """
    for override in extra:
        if (key := key_of(override)) in OWN:
            raise ConvReproError(f"{override} has no effect on a table's runs; {OWN[key]}")
    chosen = _in_order(table, rows)
    names = {row.id: _named(table, row, budget, extra, runs) for row in chosen}
    jobs = []
    for seed in seeds:
        for row in chosen:
            identity = Identity(table.name, names[row.id], seed, budget)
            overrides = [*table.overrides(row), *extra, f"table={table.name}", f"row={quoted(identity.row)}"]
            overrides += [f"seed={seed}", f"budget={budget}", f"runs={quoted(runs)}"]
            source = None
            if row.weights_from:
                source = Identity(table.name, names[row.weights_from], seed, budget).folder(runs)
                overrides.append(f"weights={quoted(source / LAST)}")
            jobs.append(Job(table, row, identity, identity.folder(runs), overrides, source))
    return jobs


def variant(row: RunConfig, run: RunConfig, *, from_row: bool = False) -> str:
    """What the name of a run adds to that of its row: a digest of its settings, "" where they are the row's.

    The precision does not count, for a row may be run in any; neither do starting weights that come `from_row`.
    """
    own, settings = ({**scientific(cfg), "trainer": None} for cfg in (row, run))
    if not from_row and run.weights != row.weights:
        settings["weights"] = run.weights
    return "" if own == settings else f"+{short(settings)}"


def _named(table: Table, row: Row, budget: str, extra: Sequence[str], runs: Path) -> str:
    """The name of a row's runs; one that an older version gave stays where there are such runs."""
    if not extra:
        return row.id
    try:
        own, run = (compose_config([*table.overrides(row), f"budget={budget}", *more]) for more in ((), extra))
    except ConvReproError as error:
        raise ConvReproError(f"{table.name}, row {row.id}: {error}") from error
    name = row.id + variant(own, run)
    former = f"{row.id}+{former_digest(named(extra))}"
    return former if name != row.id and (runs / table.name / former).exists() else name


def _in_order(table: Table, rows: Sequence[str]) -> list[Row]:
    runnable = {row.id: row for row in table.to_run}
    if not runnable:
        others = sorted({row.same_as for row in table.rows if row.same_as})
        if not others:
            raise ConvReproError(f"{table.name} has nothing to train; `convrepro count {table.name}` does all of it")
        raise ConvReproError(f"{table.name} has no runs of its own; its rows are those of {', '.join(others)}")
    unknown = [row for row in rows if row not in runnable]
    if unknown:
        raise ConvReproError(f"{table.name} has no row {unknown[0]!r} to run; valid: {', '.join(runnable)}")
    order: dict[str, Row] = {}

    def visit(row: Row) -> None:
        if row.weights_from:
            visit(runnable[row.weights_from])
        order.setdefault(row.id, row)

    for row in runnable.values():
        if not rows or row.id in rows:
            visit(row)
    return list(order.values())
