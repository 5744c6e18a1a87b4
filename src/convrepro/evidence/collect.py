"""Collects finished runs into a table's evidence, and rejects those that do not count.

`reproductions/<paper>/results/<table>.json` holds, for each row: the overrides that it stands for, our `counts` by
metric and rule, `runs` at the paper's budget by seed, and `proxies` (fewer epochs, or other data) by label and seed. A
run keeps its commit, versions, device, time, metrics, counts and the validation top-1 of each epoch. No path of a
machine is in it.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any, cast

from convrepro.config.compose import choices, compose_config
from convrepro.config.paths import REPRODUCTIONS
from convrepro.config.scientific import alike, differences, scientific
from convrepro.config.strict import text_of
from convrepro.errors import ConvReproError, visible
from convrepro.evidence.store import SCHEMA, Run, evidence_path, read_rows
from convrepro.runs.result import FILE, Environment, Result, read_result
from convrepro.runs.storage import exclusive, write_json
from convrepro.tables import (
    Row,
    Statics,
    Table,
    Trained,
    data_name,
    measured,
)

ENVIRONMENT = ("commit", "dirty", "versions", "device", "threads", "precision")


@dataclass(frozen=True)
class Collected:
    """What `collect` took and what it refused, by run folder, with the reason."""

    path: Path
    accepted: tuple[str, ...]
    proxies: tuple[str, ...]
    refused: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        lines = [f"{self.path}: {len(self.accepted)} runs, {len(self.proxies)} proxies, {len(self.refused)} refused"]
        lines += [f"  run      {name}" for name in self.accepted]
        lines += [f"  proxy    {name}" for name in self.proxies]
        lines += [f"  refused  {name}: {reason}" for name, reason in self.refused]
        return "\n".join(map(visible, lines))


class _Refused(Exception):
    """A run that is no evidence; the message is the reason."""


def collect(table: Table, runs: Path, statics: Statics, root: Path = REPRODUCTIONS) -> Collected:
    """Gather runs/<paper>/<table>/<row>/<budget>-seed<k>/result.json into the table's evidence.

    Earlier evidence stays, unless its row has other overrides by now or the same run is there anew. A run counts where
    it is done, of a clean and known commit, with the protocol that the row has by now, the table's seeds and the row's
    starting weights; budget `proxy` and other data go to the proxies. Everything else is rejected and reported. Two
    processes that collect at once take turns.
    """
    path = evidence_path(table.name, root)
    with exclusive(path.with_name(f".{path.name}.lock")):
        return _collect(table, runs, statics, root)


def _collect(table: Table, runs: Path, statics: Statics, root: Path) -> Collected:
    rows = {row.id: _entry(table, row, statics) for row in table.rows if not row.quoted}
    taken: set[Path] = set()
    accepted: list[str] = []
    proxies: list[str] = []
    refused = _keep_earlier(table, rows, root)
    for folder in sorted(runs.glob(f"{table.name}/*/*"), key=lambda f: (_depth(table, f.parent.name), f.parts)):
        if not folder.is_dir() or folder.parent.name.startswith("."):
            continue
        name = f"{folder.parent.name}/{folder.name}"
        try:
            row, label, result = _examine(table, folder)
            if row.weights_from:
                _check_source(row, label, folder, result, rows[row.weights_from], taken)
        except _Refused as reason:
            refused.append((name, str(reason)))
            continue
        place = rows[row.id]["proxies"].setdefault(label, {}) if label else rows[row.id]["runs"]
        place[str(result["seed"])] = _compact(result)
        taken.add(folder)
        (proxies if label else accepted).append(f"{name} ({label})" if label else name)
    path = evidence_path(table.name, root)
    kept = {row_id: {key: value for key, value in row.items() if value} for row_id, row in rows.items()}
    write_json(path, _sorted({"schema": SCHEMA, "table": table.name, "rows": kept}))
    return Collected(path, tuple(accepted), tuple(proxies), tuple(refused))


def _sorted(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _sorted(value[key]) for key in sorted(value)}
    return value


def _entry(table: Table, row: Row, statics: Statics) -> dict[str, Any]:
    """What there is of a row before its runs."""
    counts = {name: {table.metrics[name].count: str(Fraction(n))} for name, n in statics.get(row.id, {}).items()}
    layers = {"layers": row.layers} if row.layers else {}
    return {"overrides": list(table.overrides(row)), **layers, "counts": counts, "runs": {}, "proxies": {}}


def _depth(table: Table, folder: str) -> int:
    """How many rows' weights a row's run needs, so that those are examined first."""
    row = next((r for r in table.rows if r.id == folder.split("+")[0]), None)
    return 1 + _depth(table, row.weights_from) if row and row.weights_from else 0


def _keep_earlier(table: Table, rows: dict[str, dict[str, Any]], root: Path) -> list[tuple[str, str]]:
    """Put the evidence that is there already into `rows`; returns what no longer holds."""
    refused = []
    for row_id, earlier in read_rows(table.name, root).items():
        row, runs = rows.get(row_id), {part: earlier.get(part, {}) for part in ("runs", "proxies")}
        if row and alike(earlier["overrides"], row["overrides"]):
            row |= runs
            if not row["counts"] and earlier.get("layers") == row.get("layers"):
                row["counts"] = earlier.get("counts", {})
        elif any(runs.values()):
            was = f"the row was {' '.join(earlier['overrides'])} then"
            refused.append((f"{row_id} (earlier evidence)", was if row else "the table has no such row to run by now"))
    return refused


def _examine(table: Table, folder: Path) -> tuple[Row, str, Result]:
    """The row, the proxy label ("" for the paper's protocol) and the result in a folder; raises _Refused."""
    row_id = folder.parent.name.partition("+")[0]
    row = next((r for r in table.to_run if r.id == row_id), None)
    if row is None:
        raise _Refused(f"the table has no row {row_id!r} with runs of its own")
    named = re.fullmatch(r"(\w+)-seed(\d+)", folder.name)
    if not named:
        raise _Refused("the folder is not called <budget>-seed<number>")
    budget, seed = named[1], int(named[2])
    if budget not in ("paper", "proxy"):
        raise _Refused(f"budget {budget} is no evidence")
    result = _readable(folder)
    told = (result.get("table"), result.get("row"), result.get("budget"), result.get("seed"))
    if told != (table.name, folder.parent.name, budget, seed):
        raise _Refused(f"the folder's name and the record disagree: {told}")
    _check_origin(result)
    label = _label(table, row, result)
    if not label and seed not in table.seeds:
        raise _Refused(f"seed {seed} is not one of the table's: {list(table.seeds)}")
    wanted = [m for m in table.metrics.values() if isinstance(m, Trained)]
    if lacking := [m.name for m in wanted if measured(result, m) is None]:
        raise _Refused(f"it has no finite {lacking[0]}")
    weights, own = (result.get("config") or {}).get("weights"), table.settings(row).get("weights")
    if not row.weights_from and weights != own:
        raise _Refused(f"it did not start from {own}" if own else "it started from weights, which the row does not")
    return row, label, result


def _check_source(
    row: Row, label: str, folder: Path, result: Result, entry: Mapping[str, Any], taken: set[Path]
) -> None:
    """Refuse a run that did not start from evidence: a run that is `taken`, or an earlier one whose folder is gone.

    The runs may have been copied here, so that the place that the record names need not be on this machine. A variant
    of the row, by its digest, starts from a variant of the row that it names, whose digest is another.
    """
    named = Path(result["config"].get("weights") or "").parent
    name = named.parent.name
    variants = "+" in folder.parent.name and name.partition("+")[0] == row.weights_from
    source = folder.parents[1] / (name if variants else row.weights_from) / folder.name
    told = "/".join(source.parts[-4:])
    elsewhere = named.exists() and source.exists() and named.resolve() != source.resolve()
    if named.parts[-4:] != source.parts[-4:] or elsewhere:
        raise _Refused(f"it did not start from the weights of {told}")
    known = (entry["proxies"].get(label, {}) if label else entry["runs"]).get(str(result["seed"]))
    recorded = known and (known.get("row") or row.weights_from)
    if recorded != source.parent.name or (source.exists() and source not in taken):
        raise _Refused(f"it started from {told}, which is no evidence itself")


def _readable(folder: Path) -> Result:
    try:
        result = read_result(folder)
    except ConvReproError as error:
        raise _Refused(str(error).replace(str(folder / FILE), FILE)) from error
    if result is None:
        raise _Refused(f"not finished: there is no {FILE}")
    if result.get("status") != "done":
        raise _Refused(f"not finished: status {result.get('status')!r}")
    return result


def _check_origin(result: Result) -> None:
    environment = result.get("environment") or {}
    if not re.fullmatch(r"[0-9a-f]{7,64}", str(environment.get("commit"))):
        raise _Refused(f"its commit is not known: {environment.get('commit')!r}")
    if environment.get("dirty") is not False:
        raise _Refused("its source tree had uncommitted changes")


def _label(table: Table, row: Row, result: Result) -> str:
    """What makes the run a proxy; "" for the row's own protocol at the paper's budget.

    The row may be run in any precision, which its evidence records, and on other data, which makes it a proxy.
    """
    config, budget = result.get("config") or {}, result["budget"]
    data = data_name(result)
    if not data:
        raise _Refused("its data set is not known")
    differing = list(differences(_protocol((*table.overrides(row), f"budget={budget}")), scientific(config)))
    for key, wanted, was in differing:
        if key.split(".")[0] not in ("data", "trainer"):
            raise _Refused(f"its protocol is not the row's: {key} was {text_of(was)}, the row has {text_of(wanted)}")
    if budget == "paper" and not any(key.startswith("data.") for key, _, _ in differing):
        return ""
    changes = differences(_data(data), scientific(config)["data"], "data")
    return ", ".join([data, *(f"{key}={text_of(was)}" for key, _, was in changes), f"budget {budget}"])


@cache
def _protocol(overrides: tuple[str, ...]) -> dict[str, Any]:
    """What overrides stand for by now."""
    return scientific(compose_config(overrides))


def _data(name: str) -> dict[str, Any]:
    """The settings of a data set as its file has them; empty for a name that no file has."""
    known = (_protocol((f"data={choice}",))["data"] for choice in choices("data"))
    return next((data for data in known if data["name"] == name), {})


def _place(environment: Mapping[str, Any]) -> dict[str, Any]:
    others = {"plugins": environment["plugins"]} if environment.get("plugins") else {}
    return {key: environment.get(key) for key in ENVIRONMENT} | others


def _compact(result: Result) -> Run:
    """What is kept of a run: enough to judge it and to repeat it."""
    curve = [top1 for line in result["history"] if (top1 := line.get("val/top1")) is not None]
    environment = result.get("environment") or {}
    return {
        "budget": result["budget"],
        "config": {"data": {"name": data_name(result)}},
        "counts": result.get("counts"),
        "environment": cast(Environment, _place(environment)),
        "history": {"val/top1": " ".join(f"{value:.2f}" for value in curve)},
        "metrics": result["metrics"],
        "overrides": result["overrides"],
        "row": result["row"],
        "seed": result["seed"],
        "static": result["static"],
        "status": "done",
        "time": result.get("time"),
    }
