"""Which runs a paper's table needs: each row and seed as the `train` line that a person would type."""

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from convrepro.errors import ConvReproError
from convrepro.runs.identity import Identity, digest, scientific
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
        if (key := override.lstrip("+~").split("=")[0]) in OWN:
            raise ConvReproError(f"{override} has no effect on a table's runs; {OWN[key]}")
    variant = f"+{digest(scientific(extra))}" if scientific(extra) else ""
    chosen = _in_order(table, rows)
    jobs = []
    for seed in seeds:
        for row in chosen:
            identity = Identity(table.name, row.id + variant, seed, budget)
            overrides = [*table.overrides(row), *extra, f"table={table.name}", f"row={_quoted(identity.row)}"]
            overrides += [f"seed={seed}", f"budget={budget}", f"runs={_quoted(runs)}"]
            source = None
            if row.weights_from:
                source = Identity(table.name, row.weights_from + variant, seed, budget).folder(runs)
                overrides.append(f"weights={_quoted(source / LAST)}")
            jobs.append(Job(row, identity, identity.folder(runs), overrides, source))
    return jobs


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


def _quoted(value: object) -> str:
    """`value` as Hydra's grammar takes it."""
    text = str(value)
    if re.fullmatch(r"[\w./+-]+", text, re.ASCII):
        return text
    return "'" + text.replace("'", r"\'") + "'"
