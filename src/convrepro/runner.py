"""Runs a paper's table: each row and seed by the same `train` line that a person would type."""

import shlex
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convrepro import train
from convrepro.config import compose_config
from convrepro.errors import ConvReproError
from convrepro.identity import Identity, digest, scientific
from convrepro.tables import Row, Table

Results = dict[str, dict[int, dict[str, Any]]]


@dataclass(frozen=True)
class Job:
    """One (row, seed): its folder and the overrides of its `convrepro train` line."""

    row: Row
    identity: Identity
    folder: Path
    overrides: list[str]

    @property
    def line(self) -> str:
        return "convrepro train " + shlex.join(self.overrides)


def plan(
    table: Table, *, budget: str, rows: Sequence[str], seeds: Sequence[int], extra: Sequence[str], runs: Path
) -> list[Job]:
    """The jobs of `rows` (all where empty) and `seeds`, rows that others start from first.

    Overrides in `extra` that change what is computed give the rows folders of their own. Raises ConvReproError for
    a row that the table lacks or only quotes.
    """
    variant = f"~{digest(scientific(extra))}" if scientific(extra) else ""
    chosen = _in_order(table, rows)
    jobs = []
    for seed in seeds:
        for row in chosen:
            identity = Identity(table.name, row.id + variant, seed, budget)
            overrides = [*table.overrides(row), *extra, f"table={table.name}", f"row={identity.row}", f"seed={seed}"]
            overrides += [f"budget={budget}", f"runs={runs}"]
            if row.weights_from:
                source = Identity(table.name, row.weights_from + variant, seed, budget).folder(runs)
                overrides.append(f"weights={source / train.LAST}")
            jobs.append(Job(row, identity, identity.folder(runs), overrides))
    return jobs


def _in_order(table: Table, rows: Sequence[str]) -> list[Row]:
    runnable = {row.id: row for row in table.to_run}
    if not runnable:
        others = sorted({row.same_as for row in table.rows if row.same_as})
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


def validate(jobs: Sequence[Job]) -> None:
    """Compose each row, build its network and look for its data, so that a bad row stops the table before it starts."""
    seen = set()
    for job in jobs:
        if job.row.id in seen:
            continue
        seen.add(job.row.id)
        try:
            cfg = compose_config([o for o in job.overrides if not o.startswith("weights=")])
            train.check(cfg)
        except ConvReproError as error:
            raise ConvReproError(f"{job.identity.table}, row {job.row.id}: {error}") from error


def run_jobs(jobs: Sequence[Job], echo: Callable[[str], None]) -> tuple[Results, dict[str, str]]:
    """Run each job; returns results by row and seed, and failures by name. A failed row does not stop the rest."""
    results: Results = {}
    failures: dict[str, str] = {}
    for number, job in enumerate(jobs, 1):
        echo(f"[{number}/{len(jobs)}] {job.line}")
        try:
            result = train.run(compose_config(job.overrides), job.overrides, echo)
            results.setdefault(job.row.id, {})[job.identity.seed] = result
        except ConvReproError as error:
            failures[job.identity.name] = str(error)
        except Exception as error:
            job.folder.mkdir(parents=True, exist_ok=True)
            (job.folder / "error.txt").write_text(traceback.format_exc())
            failures[job.identity.name] = f"{type(error).__name__}: {error} (traceback in {job.folder / 'error.txt'})"
        if job.identity.name in failures:
            echo(f"  failed: {failures[job.identity.name]}")
    return results, failures
