"""Which runs a paper's table needs: each row and seed as the `train` line that a person would type."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convrepro.config import plugins
from convrepro.config.compose import choices, compose_config
from convrepro.config.nearest import nearest
from convrepro.config.overrides import key_of, quoted, shown
from convrepro.config.schema import RunConfig
from convrepro.config.scientific import differences, scientific
from convrepro.config.secrets import refuse_secrets
from convrepro.config.strict import text_of
from convrepro.errors import ConvReproError
from convrepro.runs.identity import Identity, former_digest, named
from convrepro.runs.protocol import short
from convrepro.runs.result import LAST
from convrepro.tables import Row, Table

#: What a plan sets itself, and how to choose it.
OWN = {
    "budget": "choose by --budget",
    "budget.name": "choose by --budget",
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
        return "convrepro train " + shlex.join([*self.overrides, *plugins.words()])


def plan(
    table: Table, *, budget: str, rows: Sequence[str], seeds: Sequence[int], extra: Sequence[str], runs: Path
) -> list[Job]:
    """The jobs of `rows` (all where empty) and `seeds`, rows that others start from first.

    Overrides in `extra` that change what is computed give the rows folders of their own. Raises ConvReproError for
    a row that the table lacks or only quotes, and for an override of what the plan itself sets: starting weights, too,
    for a row that takes another's.
    """
    refuse_secrets(extra)
    for override in extra:
        if (key := key_of(override)) in OWN:
            raise ConvReproError(f"{override} has no effect on a table's runs; {OWN[key]}")
    chosen = _in_order(table, rows)
    starting = next((row for row in chosen if row.weights_from), None)
    if starting and (weights := [text for text in extra if key_of(text) == "weights"]):
        reason = f"which starts from the weights of row {starting.weights_from}; choose other rows by --rows"
        raise ConvReproError(f"{shown(weights[-1])} has no effect on row {starting.id}, {reason}")
    refuse_secrets([f"table={table.name}", f"runs={runs}", *([f"row={e.id}", *table.overrides(e)] for e in chosen)])
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
    settings = _compared(run)
    if not from_row and run.weights != row.weights:
        settings["weights"] = run.weights
    return "" if _compared(row) == settings else f"+{short(settings)}"


def check_row(run: RunConfig, table: Table, overrides: Sequence[str]) -> None:
    """Raises ConvReproError unless `run` is what its `row` names: a row of `table`, or a variant of one by its digest.

    A row that starts from another's weights must start from that row's, at the same seed and budget. `overrides` are
    those of the run: names of an older version depend on their text.
    """
    name = str(run.row)
    row = _runnable(table, [name.partition("+")[0]])[0]
    budget = run.budget.name if run.budget.name in choices("budget") else "paper"
    own = compose_config([*table.overrides(row), f"budget={budget}"])
    right = row.id + variant(own, run, from_row=bool(row.weights_from))
    place = Identity(table.name, row.weights_from, run.seed, run.budget.name)
    if row.weights_from and not _starts_from(run.weights, place, plain=name == row.id):
        raise ConvReproError(
            f"row {row.id} of {table.name} starts from {place.folder(Path(run.runs)) / LAST}, not from "
            f"weights={text_of(run.weights)}; leave table= and row= out, or let `convrepro run {table.name}` train both"
        )
    added = named(overrides)[len(named(table.overrides(row))) : -1 if row.weights_from else None]
    if name == right or (right != row.id and name == f"{row.id}+{former_digest(added)}"):
        return
    differing = [*differences(_compared(own), _compared(run)), ("weights", own.weights, run.weights)]
    key, wanted, given = differing[0]
    reason = f"it has {key}={text_of(given)}, the row {text_of(wanted)}" if right != row.id else "it is the row itself"
    raise ConvReproError(
        f"row={name} of {table.name} does not name this run: {reason}; write row={right}, or leave table= and row= out"
    )


def _compared(cfg: RunConfig) -> dict[str, Any]:
    return {**scientific(cfg), "trainer": None}


def _starts_from(weights: str | None, place: Identity, *, plain: bool) -> bool:
    """Whether `weights` are the last checkpoint of the run `place`; unless `plain`, of a variant of it."""
    paper, table, row, run, file = ("", "", "", "", "", *Path(weights or "").parts)[-5:]
    named_so = row if plain else row.partition("+")[0]
    return (f"{paper}/{table}", named_so, run, file) == (place.table, place.row, place.folder(Path()).name, LAST)


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


def _runnable(table: Table, rows: Sequence[str]) -> list[Row]:
    """The rows of these names; all that can be run where `rows` is empty."""
    runnable = {row.id: row for row in table.to_run}
    if not runnable:
        others = sorted({row.same_as for row in table.rows if row.same_as})
        if not others:
            raise ConvReproError(f"{table.name} has nothing to train; `convrepro count {table.name}` does all of it")
        raise ConvReproError(f"{table.name} has no runs of its own; its rows are those of {', '.join(others)}")
    unknown = [row for row in rows if row not in runnable]
    if unknown:
        hint = nearest(unknown[0], list(runnable), f"convrepro show {table.name}")
        raise ConvReproError(f"{table.name} has no row {shown(unknown[0])} to run; {hint}")
    return [runnable[name] for name in rows or runnable]


def _in_order(table: Table, rows: Sequence[str]) -> list[Row]:
    """The chosen rows in the order of the table, each after the row whose weights it starts from."""
    chosen = _runnable(table, rows)
    runnable = {row.id: row for row in table.to_run}
    order: dict[str, Row] = {}

    def visit(row: Row) -> None:
        if row.weights_from:
            visit(runnable[row.weights_from])
        order.setdefault(row.id, row)

    for row in runnable.values():
        if row in chosen:
            visit(row)
    return list(order.values())
