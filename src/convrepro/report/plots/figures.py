"""Makes the figures of a table, as far as there is enough data."""

from collections.abc import Iterable, Iterator, Sequence
from math import floor, log10

from convrepro.complexity.rules import RULES
from convrepro.evidence.speed_record import Speed
from convrepro.report.plots.accuracy import accuracy, by_time
from convrepro.report.plots.kinds import EXACT, OFF, RECALLED, Cost, Costs, Curve, Curves, Dot, Figure, Panel
from convrepro.report.plots.labels import common_prefix
from convrepro.tables import UNITS, Counted, Results, Row, Statics, Table, Trained, judge
from convrepro.tables.verdict import standing

MIN_COSTS = 5
"""The least number of published costs for a plot of published against recomputed costs."""
PANEL = 6
"""The largest number of learning curves in one panel."""


def figures(table: Table, statics: Statics, results: Results, timed: Sequence[Speed] = ()) -> list[Figure]:
    """The figures of a table for which there is enough data: accuracy by cost, bits, time; costs; learning curves.

    `timed` are the speeds of the table's rows (`speed_record.of_table`).
    """
    found = (
        *accuracy(table, statics, results),
        by_time(table, results, timed),
        costs([(table, statics)], table.title),
        _curves(table, results),
    )
    return [figure for figure in found if figure]


def costs(counted: Iterable[tuple[Table, Statics]], title: str, label_from: float = 0.0) -> Costs | None:
    """The figure of published against recomputed costs of one or several tables; None where there are too few."""
    panels: dict[str, list[Cost]] = {}
    names = set()
    for table, statics in counted:
        names.add(table.name)
        for of, point in _cost_points(table, statics, label_from):
            panels.setdefault(of, []).append(point)
    if sum(map(len, panels.values())) < MIN_COSTS:
        return None
    name = names.pop() if len(names) == 1 else ""
    return Costs(name, title, label_from, tuple((of, tuple(panels[of])) for of in sorted(panels)))


def _cost_points(table: Table, statics: Statics, label_from: float) -> Iterator[tuple[str, Cost]]:
    """Yields the quantity and the point of each published cost that is recomputed."""
    for row in table.rows:
        for metric in (m for m in table.metrics.values() if isinstance(m, Counted)):
            cell = judge(table, row, metric, statics, {})
            if not (cell.published and cell.published.value and cell.ours):
                continue
            published, ours = float(cell.published.value), float(cell.ours)
            if not ours:
                continue
            mark = {"static-ok": EXACT, "static-off": OFF}.get(cell.verdict, RECALLED)
            label = ""
            if mark == OFF and abs(ours / published - 1) >= label_from:
                label = f"{row.label}:\n{cell.published.value}, ours {cell.ours} {_percent(ours / published - 1)}"
            dot = Dot(published * UNITS[metric.unit], ours * UNITS[metric.unit], mark)
            yield RULES[metric.count].of, Cost(dot, label)


def _curves(table: Table, results: Results) -> Curves | None:
    """The figure of the validation accuracy of each epoch, which is the curve that the evidence contains."""
    metric = next((m for m in table.metrics.values() if isinstance(m, Trained)), None)
    if metric is None:
        return None
    lines = [line for row in table.rows if (line := _curve(table, row, results))]
    if not lines:
        return None
    size = -(-len(lines) // -(-len(lines) // PANEL))
    panels = tuple(_panel(lines[i : i + size]) for i in range(0, len(lines), size))
    return Curves(table.name, table.title, "validation top-1 accuracy (%)", panels)


def _curve(table: Table, row: Row, results: Results) -> Curve | None:
    """The curve over the epochs that all seeds of the row have; None for a row without learning curves."""
    seeds = [
        [float(word) for word in ((run.get("history") or {}).get("val/top1") or "").split()]
        for seed, run in sorted(results.get(row.id, {}).items())
        if seed in table.seeds and standing(run, table, row) == "paper"
    ]
    epochs = list(zip(*seeds, strict=False))
    if len(epochs) < 2:
        return None
    means = tuple(round(sum(epoch) / len(epoch), 4) for epoch in epochs)
    return Curve(row.label, len(seeds), means, tuple(map(min, epochs)), tuple(map(max, epochs)))


def _panel(curves: Sequence[Curve]) -> Panel:
    prefix = common_prefix([curve.label for curve in curves])
    short = (Curve(c.label.removeprefix(prefix), c.seeds, c.mean, c.low, c.high) for c in curves)
    return Panel(prefix.rstrip(" ,:;-_("), tuple(short))


def _percent(share: float) -> str:
    """A difference with two digits, such as (+0.12 %) for 0.00123."""
    return f"({100 * share:+.{max(0, 1 - floor(log10(abs(100 * share))))}f} %)"
