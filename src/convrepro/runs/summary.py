"""What the summary of a W&B run holds, as a function of the run's result alone: what a dashboard compares."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

from convrepro.tables import Metric, Row, Table, Trained, judge, measured, standing
from convrepro.tables.verdict import NONE

#: A result's static columns -> the counting rule of each.
STATIC = {
    "macs": "conv_fc",
    "params": "params",
    "multiplications": "multiplications",
    "shifts": "shifts",
    "weight_bits": "weight_bits",
}
NOT_COMPARED = "not compared"


def rules_of(table: Table | None) -> tuple[str, ...]:
    """The counting rules of the metrics that a run of the table is compared by; none without a table.

    A result's `counts` holds the exact number by each, as text.
    """
    return tuple(dict.fromkeys(m.count for m in table.metrics.values() if m.count)) if table else ()


def last_and_best(history: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """A result's `metrics`: those of the last epoch, and of the epoch with the best top-1."""

    def pick(line: Mapping[str, Any]) -> dict[str, Any]:
        return {"epoch": line["epoch"], **{key: line[f"val/{key}"] for key in ("top1", "top5", "loss")}}

    return {"last": pick(history[-1]), "best": pick(max(history, key=lambda line: line["val/top1"]))}


def summary(result: Mapping[str, Any], table: Table | None) -> dict[str, Any]:
    """Key -> value, for a finished run or, without `metrics` and `status`, for one that starts; `table` is the run's.

    `last/*` and `best/*` (the epoch of the best top-1; epochs count from 1), `static/*` by the rules that
    `static/convention` names, `multiplications_left` (the share of the MACs that still multiply), `images_per_second`
    in training, and for each metric of the run's table `ours/*`, `published/*`, `delta/*` and `verdict/*` in the
    metric's unit.

    A verdict is that of this seed alone, by the tolerance of the table. Only a run that the table may be judged by has
    one (the paper's budget, the row's own overrides and data); the others' is `not compared`.
    """
    found = {**_measures(result.get("metrics") or {}), **_costs(result["static"]), **_comparison(result, table)}
    found["images_per_second"] = (result.get("time") or {}).get("images_per_second")
    return {key: value for key, value in found.items() if value is not None}


def numbered(history: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The history as loggers show it: its epochs count from 1, as in the terminal. On record they count from 0."""
    return [{**line, "epoch": line["epoch"] + 1} for line in history]


def so_far(history: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The part of `summary` that a history of at least one epoch, as it is on record, tells."""
    return _measures(last_and_best(history))


def _measures(metrics: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    found = {f"{when}/{key}": value for when in metrics for key, value in metrics[when].items()}
    for key in ("last/epoch", "best/epoch"):
        if found.get(key) is not None:  # an evaluation has none
            found[key] += 1
    return found


def _costs(static: Mapping[str, int]) -> dict[str, Any]:
    costs: dict[str, Any] = {f"static/{name}": value for name, value in static.items()}
    costs["static/convention"] = ", ".join(f"{name}: {STATIC[name]}" for name in STATIC if name in static)
    if static.get("macs") and "multiplications" in static:
        costs["multiplications_left"] = static["multiplications"] / static["macs"]
    return costs


def _comparison(result: Mapping[str, Any], table: Table | None) -> dict[str, Any]:
    own = str(result.get("row")).partition("+")[0]
    row = next((row for row in table.rows if row.id == own), None) if table else None
    if table is None or row is None:
        return {}
    comparable = standing(result, table, row) == "paper"
    cells: dict[str, Any] = {}
    for name, metric in table.metrics.items():
        cell = _cell(table, row, metric, result) if comparable else _measured(row, metric, result)
        cells |= {f"{kind}/{name}": value for kind, value in cell.items() if value is not None}
    return cells


def _measured(row: Row, metric: Metric, result: Mapping[str, Any]) -> dict[str, Any]:
    """The cell of a run that is not compared: the published value beside what it measured."""
    ours = measured(result, metric) if isinstance(metric, Trained) else None
    published = _published(row, metric)
    verdict = NOT_COMPARED if published is not None else None
    return {"ours": None if ours is None else float(ours), "published": published, "verdict": verdict}


def _cell(table: Table, row: Row, metric: Metric, result: Mapping[str, Any]) -> dict[str, Any]:
    of_rule = {rule: result["static"][name] for name, rule in STATIC.items() if name in result["static"]}
    of_rule |= {rule: Fraction(value) for rule, value in (result.get("counts") or {}).items()}
    statics = {row.id: {m.name: of_rule[m.count] for m in table.metrics.values() if m.count in of_rule}}
    alone = replace(table, seeds=(result["seed"],))
    cell = judge(alone, row, metric, statics, {row.id: {result["seed"]: result}})
    unknown = cell.verdict in (NONE, "not counted", "not run", "quoted")
    return {
        "ours": float(cell.ours) if cell.ours else None,
        "published": _published(row, metric),
        "delta": float(cell.delta) if cell.delta and not unknown else None,
        "verdict": None if cell.published is None else NOT_COMPARED if unknown else cell.verdict,
    }


def _published(row: Row, metric: Metric) -> float | None:
    published = row.published.get(metric.name)
    return None if published is None or published.value is None else float(published.value)
