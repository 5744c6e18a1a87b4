"""Writes a table's finished runs into a W&B project from the local record: `result.json` files and collected evidence.

The record is local and W&B is a view, so a project that was deleted, or a new one, can be filled again. A run gets the
id, configuration, history and summary that it was trained under. A run that the project has as a whole is left alone;
where the project has a part of it, the rest is sent.
"""

import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convrepro.config.compose import compose_config
from convrepro.config.strict import set_aside
from convrepro.errors import ConvReproError
from convrepro.evidence.store import load_evidence, load_proxies
from convrepro.runs.identity import Identity, former_digest
from convrepro.runs.result import FILE, read_result
from convrepro.tables import Table
from convrepro.tracking.logger import LOGGED, replay
from convrepro.tracking.sync import Server, There, whole

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Regenerated:
    """The names of the runs that were written, and of those that the project had."""

    written: tuple[str, ...]
    present: tuple[str, ...]

    def __str__(self) -> str:
        return f"{len(self.written)} runs written, {len(self.present)} were there"


def regenerate(table: Table, runs: Path, server: Server, echo: Callable[[str], None] = print) -> Regenerated:
    """Write what the project lacks of the table's finished runs: those in `runs`, else those of the evidence.

    Raises ConvReproError where a run cannot be written. The runs before it are in the project then, and the next call
    goes on after them.
    """
    there = server.runs(table.name)
    written, present = [], []
    for identity, result in records(table, runs).items():
        name = f"{identity.name} ({identity.budget})"
        if whole(there.get(identity.run_id, There()), result):
            present.append(name)
            continue
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.filterwarnings("error", "W&B")  # a failure of W&B is an error here, not a warning
            replay(server.cfg, identity, Path(folder), result, table)
        server.projects.add(server.cfg["project"])
        echo(f"  {name}")
        written.append(name)
    return Regenerated(tuple(written), tuple(present))


def records(table: Table, runs: Path) -> dict[Identity, Record]:
    """Return the table's finished runs: from the folders in `runs`, and from the evidence where no folder has them.

    A `result.json` that cannot be read is set aside with a warning.
    """
    local = dict(_local(table, runs))
    return dict(sorted({**dict(_collected(table)), **local}.items(), key=lambda item: _order(table, item[0])))


def _local(table: Table, runs: Path) -> Iterator[tuple[Identity, Record]]:
    for path in runs.glob(f"{table.name}/*/*/{FILE}"):
        try:
            result = read_result(path.parent)
        except ConvReproError as error:
            set_aside(error)
            continue
        if result and result["status"] == "done" and result["table"] and result["row"]:
            yield Identity(result["table"], result["row"], result["seed"], result["budget"]), result


def _collected(table: Table) -> Iterator[tuple[Identity, Record]]:
    for results in (load_evidence(table)[1], *load_proxies(table).values()):
        for row in table.to_run:
            for seed, result in results.get(row.id, {}).items():
                extra = result["overrides"][len(table.overrides(row)) :]
                former = row.id + (f"+{former_digest(extra)}" if extra else "")
                identity = Identity(table.name, result.get("row") or former, seed, result["budget"])
                yield identity, _whole(identity, result)


def _order(table: Table, identity: Identity) -> tuple[Any, ...]:
    rows = [row.id for row in table.rows]
    row = identity.row.partition("+")[0]
    return rows.index(row) if row in rows else len(rows), identity.row, identity.budget, identity.seed


def _whole(identity: Identity, run: Record) -> dict[str, Any]:
    """Return a collected run in the form of its `result.json`, with its configuration composed again.

    The evidence keeps one of the curves, `val/top1`; the others are None.
    """
    cfg = compose_config([*run["overrides"], f"budget={identity.budget}", f"seed={identity.seed}"])
    curve = enumerate(map(float, run["history"]["val/top1"].split()))
    history = [{**dict.fromkeys(LOGGED), "epoch": epoch, "val/top1": value} for epoch, value in curve]
    config = cfg.model_dump() | {"table": identity.table, "row": identity.row}
    return {**run, "table": identity.table, "row": identity.row, "config": config, "history": history}
