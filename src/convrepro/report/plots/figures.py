"""What there is to draw of a table, as plain data: points, pairs and curves with their marks. Draws nothing."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from math import floor, log10
from typing import ClassVar

from convrepro.complexity.rules import RULES
from convrepro.tables import UNITS, Cell, Counted, Metric, Results, Row, Statics, Table, Trained, judge
from convrepro.tables.verdict import count, standing

PUBLISHED, RECALLED, QUOTED, OURS, PARTIAL = "published", "recalled", "quoted", "ours", "partial"
EXACT, OFF = "exact", "off"

MIN_PAIRS = 4
"""Fewest rows with a cost that are drawn against it."""
MIN_COSTS = 5
"""Fewest published costs that are drawn against ours."""
PANEL = 6
"""Most learning curves in one panel."""


@dataclass(frozen=True)
class Dot:
    """A point; `error` is the standard deviation of y over seeds, `mark` the kind of value that it is."""

    x: float
    y: float
    mark: str
    error: float = 0.0


@dataclass(frozen=True)
class Pair:
    """A row's published and own value, either of which may be missing. `recalled` labels bear a `~`."""

    label: str
    published: Dot | None
    ours: Dot | None


@dataclass(frozen=True)
class Figure:
    """What every figure has: the table's name and title (for all tables together "" and a title)."""

    kind: ClassVar[str]
    table: str
    title: str

    @property
    def digest(self) -> str:
        """Sixteen hexadecimal digits that change where anything drawn changes."""
        return hashlib.sha256(repr(self).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Accuracy(Figure):
    """A trained metric against a cost, by data set (`panels`: name and rows).

    `prefix` is what the labels of the rows that are run leave out.
    """

    kind = "accuracy"
    cost: str
    value: str
    prefix: str
    panels: tuple[tuple[str, tuple[Pair, ...]], ...]


@dataclass(frozen=True)
class AccuracyByRow(Figure):
    """A trained metric row by row (the dots' x), where the rows do not differ enough in cost."""

    kind = "accuracy"
    value: str
    pairs: tuple[Pair, ...]


@dataclass(frozen=True)
class Cost:
    """One published cost (x) and ours (y), both in units of one; `label` tells of a difference."""

    dot: Dot
    label: str = ""


@dataclass(frozen=True)
class Costs(Figure):
    """Every published cost against the recomputed one, by what is counted (`panels`: operations, parameters).

    Labelled are those that differ by at least the share `label_from`.
    """

    kind = "costs"
    label_from: float
    panels: tuple[tuple[str, tuple[Cost, ...]], ...]


@dataclass(frozen=True)
class Curve:
    """A row's metric after each epoch: mean, lowest and highest of its seeds."""

    label: str
    seeds: int
    mean: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


@dataclass(frozen=True)
class Panel:
    """Curves on common axes; `title` is what their labels leave out."""

    title: str
    curves: tuple[Curve, ...]


@dataclass(frozen=True)
class Curves(Figure):
    """Learning curves of the runs at the paper's budget."""

    kind = "curves"
    value: str
    panels: tuple[Panel, ...]


def figures(table: Table, statics: Statics, results: Results) -> list[Figure]:
    """The figures for which the table has the data: accuracy, costs, learning curves."""
    found = (_accuracy(table, statics, results), costs([(table, statics)], table.title), _curves(table, results))
    return [figure for figure in found if figure]


def costs(counted: Iterable[tuple[Table, Statics]], title: str, label_from: float = 0.0) -> Costs | None:
    """Published against recomputed costs of one table, or of several; None where there are too few."""
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
    """What is counted, and a point, for each published cost that is recomputed."""
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


def _accuracy(table: Table, statics: Statics, results: Results) -> Accuracy | AccuracyByRow | None:
    metric = next((m for m in table.metrics.values() if isinstance(m, Trained)), None)
    if metric is None:
        return None
    for cost in _cost_metrics(table):
        found = {row.id: _against_cost(table, row, metric, cost, statics, results) for row in table.rows}
        pairs = {row_id: pair for row_id, pair in found.items() if pair.published or pair.ours}
        if len(pairs) >= MIN_PAIRS and 2 * len({_x(pair) for pair in pairs.values()}) >= len(pairs):
            return _by_data(table, metric, cost, pairs)
    pairs = {row.id: _by_row(table, row, metric, results) for row in table.rows}
    if not any(pair.ours for pair in pairs.values()):
        return None
    drawn = tuple(pair for pair in pairs.values() if pair.published or pair.ours)
    return AccuracyByRow(table.name, table.title, _named(metric), drawn)


def _by_data(table: Table, metric: Trained, cost: Counted, pairs: Mapping[str, Pair]) -> Accuracy:
    """A panel for each data set; quoted rows, of which it is not known, have one where there are several."""
    prefix = common_prefix([pair.label for row_id, pair in pairs.items() if not table.row(row_id).quoted])
    known = {table.settings(row).get("data", "") for row in table.rows if not row.quoted}
    panels: dict[str, list[Pair]] = {}
    for row_id, pair in pairs.items():
        row = table.row(row_id)
        data = "quoted" if row.quoted else table.settings(row).get("data", "")
        short = replace(pair, label=pair.label.removeprefix(prefix))
        panels.setdefault(data if len(known) > 1 else "", []).append(short)
    rule = "" if cost.count == cost.name else f", counted by {cost.count}"
    grouped = tuple((data, tuple(members)) for data, members in panels.items())
    return Accuracy(table.name, table.title, _named(cost) + rule, _named(metric), prefix, grouped)


def _cost_metrics(table: Table) -> list[Counted]:
    """Operations before parameters and bits."""
    counted = [m for m in table.metrics.values() if isinstance(m, Counted)]
    return sorted(counted, key=lambda m: RULES[m.count].of != "operations")


def _against_cost(table: Table, row: Row, metric: Trained, cost: Counted, statics: Statics, results: Results) -> Pair:
    cost_cell, cell = judge(table, row, cost, statics, results), judge(table, row, metric, statics, results)
    counted = count(table, row, cost, statics) if cost_cell.ours else None
    printed = cost_cell.published.value if cost_cell.published else None
    published = ours = None
    if cell.published and (printed is not None or counted is not None):
        mark = _published_mark(row, cell, *((cost_cell,) if printed is not None else ()))
        published = Dot(_float(counted if printed is None else printed), float(cell.published.value), mark)
    if _is_measured(cell) and counted is not None:
        ours = Dot(_float(counted), float(cell.ours), _ours_mark(cell), float(cell.spread or 0))
    return Pair(row.label, published, ours)


def _by_row(table: Table, row: Row, metric: Trained, results: Results) -> Pair:
    cell = judge(table, row, metric, {}, results)
    published = ours = None
    if cell.published:
        published = Dot(float(cell.published.value), 0.0, _published_mark(row, cell))
    if _is_measured(cell):
        ours = Dot(float(cell.ours), 0.0, _ours_mark(cell), float(cell.spread or 0))
    return Pair(row.label, published, ours)


def _published_mark(row: Row, *cells: Cell) -> str:
    if not all(cell.published.decides for cell in cells):
        return RECALLED
    return QUOTED if row.quoted else PUBLISHED


def _is_measured(cell: Cell) -> bool:
    return bool(cell.runs) and cell.verdict not in ("proxy", "smoke")


def _ours_mark(cell: Cell) -> str:
    return PARTIAL if cell.verdict == "partial" else OURS


def _curves(table: Table, results: Results) -> Curves | None:
    """The validation accuracy of each epoch, which is what the evidence keeps."""
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
    """Over the epochs that all of the row's seeds have; None for a row that does not train."""
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


def common_prefix(labels: Sequence[str]) -> str:
    """The words that at least three labels all begin with; "" where they say nothing, or are all that one says."""
    first, last = (min(labels), max(labels)) if len(labels) > 2 else ("", "")
    shared = "".join(letter for letter, _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False)))
    end = max((shared.rfind(mark) for mark in (" ", "_")), default=-1)
    prefix = shared[: end + 1]
    tells = any(letter.isalpha() for letter in prefix)
    return prefix if tells and all(len(label) > len(prefix) for label in labels) else ""


def _named(metric: Metric) -> str:
    return metric.name if metric.unit == "1" else f"{metric.name} ({metric.unit})"


def _percent(share: float) -> str:
    """A difference to two digits: 0.00123 -> (+0.12 %)."""
    return f"({100 * share:+.{max(0, 1 - floor(log10(abs(100 * share))))}f} %)"


def _x(pair: Pair) -> float:
    return (pair.published or pair.ours).x


def _float(value: object) -> float:
    """Ten significant digits, so that a figure's digest does not depend on the last bit."""
    return float(f"{float(value):.10g}")
