"""The figures of a table as plain data: points, pairs and curves with their marks. The module `draw` draws them."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from math import floor, log10
from typing import ClassVar, SupportsFloat

from convrepro.complexity.rules import RULES
from convrepro.evidence.speed_record import MODES, Speed
from convrepro.tables import UNITS, Cell, Counted, Metric, Results, Row, Statics, Table, Trained, judge
from convrepro.tables.verdict import count, standing

PUBLISHED, RECALLED, QUOTED, OURS, PARTIAL = "published", "recalled", "quoted", "ours", "partial"
DENSE = "dense"
EXACT, OFF = "exact", "off"

MIN_PAIRS = 4
"""The least number of rows with a cost for a plot of accuracy against that cost."""
MIN_DENSE = 3
"""The least number of standard networks of several widths for a line through them."""
MIN_COSTS = 5
"""The least number of published costs for a plot of published against recomputed costs."""
PANEL = 6
"""The largest number of learning curves in one panel."""


@dataclass(frozen=True)
class Dot:
    """A point. `error` is the standard deviation of y over the seeds, and `mark` the kind of value."""

    x: float
    y: float
    mark: str
    error: float = 0.0


@dataclass(frozen=True)
class Pair:
    """The published value and our value of a row; either may be missing. One without a label has "" for it."""

    label: str
    published: Dot | None
    ours: Dot | None

    @property
    def labelled(self) -> Dot | None:
        """The dot beside which the label is written."""
        return self.published or self.ours


@dataclass(frozen=True)
class Figure:
    """A figure. `table` and `title` are those of its table; a figure of all tables has "" and a title of its own."""

    kind: ClassVar[str]
    table: str
    title: str

    @property
    def digest(self) -> str:
        """A digest of everything that is drawn, as sixteen hexadecimal digits."""
        return hashlib.sha256(repr(self).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Accuracy(Figure):
    """A trained metric against a cost, in a panel for each data set (`panels`: name and rows).

    `prefix` is the common beginning that is left out of the labels of the rows. Dots of the kind `DENSE` are those of
    networks with standard convolutions that differ in nothing but their widths; a line joins them.
    """

    kind = "accuracy"
    cost: str
    value: str
    prefix: str
    panels: tuple[tuple[str, tuple[Pair, ...]], ...]


@dataclass(frozen=True)
class AccuracyByTime(Accuracy):
    """A trained metric against the time of the network, as a share of the dense one's, in a panel for each mode."""

    kind = "time"


@dataclass(frozen=True)
class Trials(Figure):
    """The trials of a search: held-out top-1 in percent (y) against millions of MACs (x), and those of the front."""

    kind = "trials"
    dots: tuple[Dot, ...]
    front: tuple[tuple[str, Dot], ...]


@dataclass(frozen=True)
class AccuracyByRow(Figure):
    """A trained metric (x) row by row, for a table whose rows do not differ enough in cost."""

    kind = "accuracy"
    value: str
    pairs: tuple[Pair, ...]


@dataclass(frozen=True)
class Cost:
    """A published cost (x) and ours (y), both in units of one. `label` describes the difference, if it has a label."""

    dot: Dot
    label: str = ""


@dataclass(frozen=True)
class Costs(Figure):
    """Published costs against recomputed ones, in a panel for each quantity (operations, parameters).

    Costs that differ by at least the share `label_from` have labels.
    """

    kind = "costs"
    label_from: float
    panels: tuple[tuple[str, tuple[Cost, ...]], ...]


@dataclass(frozen=True)
class Curve:
    """The metric of a row after each epoch: mean, lowest and highest value over the seeds."""

    label: str
    seeds: int
    mean: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


@dataclass(frozen=True)
class Panel:
    """Curves on common axes. `title` is the common beginning that is left out of their labels."""

    title: str
    curves: tuple[Curve, ...]


@dataclass(frozen=True)
class Curves(Figure):
    """Learning curves of the runs at the paper's budget."""

    kind = "curves"
    x: ClassVar[str] = "epoch"
    y: ClassVar[str] = "top-1 (%)"
    value: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True)
class Searches(Curves):
    """The front of searches after each trial, a curve for each sampler."""

    kind = "searches"
    x = "trial"
    y = "hypervolume (%)"


def figures(table: Table, statics: Statics, results: Results, timed: Sequence[Speed] = ()) -> list[Figure]:
    """The figures of a table for which there is enough data: accuracy by cost and by time, costs, learning curves.

    `timed` are the speeds of the table's rows (`speed_record.of_table`).
    """
    found = (
        _accuracy(table, statics, results),
        _by_time(table, results, timed),
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


def _accuracy(table: Table, statics: Statics, results: Results) -> Accuracy | AccuracyByRow | None:
    metric = next((m for m in table.metrics.values() if isinstance(m, Trained)), None)
    if metric is None:
        return None
    for cost in _cost_metrics(table):
        found = {row.id: _against_cost(table, row, metric, cost, statics, results) for row in table.rows}
        pairs = {row_id: pair for row_id, pair in found.items() if pair.published or pair.ours}
        different = {dot.x for pair in pairs.values() if (dot := pair.labelled)}
        if len(pairs) >= MIN_PAIRS and 2 * len(different) >= len(pairs):
            return _by_data(table, metric, cost, pairs)
    pairs = {row.id: _by_row(table, row, metric, results) for row in table.rows}
    if not any(pair.ours for pair in pairs.values()):
        return None
    drawn = tuple(pair for pair in pairs.values() if pair.published or pair.ours)
    return AccuracyByRow(table.name, table.title, _named(metric), drawn)


def _by_time(table: Table, results: Results, timed: Sequence[Speed]) -> AccuracyByTime | None:
    """The figure of our accuracies by measured time; the network that is a baseline takes its own time once."""
    metric = next((m for m in table.metrics.values() if isinstance(m, Trained)), None)
    if metric is None:
        return None
    panels = []
    for mode, words in MODES.items():
        times = {s.baseline: 1.0 for s in timed if mode in s.ratios}
        times |= {s.name: round(s.ratios[mode].median, 4) for s in timed if mode in s.ratios}
        pairs = {
            row.id: Pair(row.label, None, replace(ours, x=times[row.id], y=ours.x))
            for row in table.rows
            if row.id in times and (ours := _by_row(table, row, metric, results).ours)
        }
        if len(pairs) >= MIN_PAIRS:
            panels.append((words, tuple({**pairs, **_dense(table, pairs)}.values())))
    if not panels:
        return None
    return AccuracyByTime(table.name, table.title, "time / dense network's", _named(metric), "", tuple(panels))


def _by_data(table: Table, metric: Trained, cost: Counted, pairs: Mapping[str, Pair]) -> Accuracy:
    """The figure with a panel for each data set, and one for quoted rows, whose data set is not known.

    Where all rows that are run have the same data set, there is a single panel.
    """
    pairs = {**pairs, **_dense(table, pairs)}
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


def _dense(table: Table, pairs: Mapping[str, Pair]) -> dict[str, Pair]:
    """The standard network and its narrower or wider forms, as dots of that kind; none where they are fewer than three.

    They are the largest group of our rows with standard convolutions whose settings differ in `model_args` alone. They
    have no label of their own where nothing is published for them.
    """
    groups: dict[frozenset[tuple[str, str]], dict[str, Pair]] = {}
    for row_id, pair in pairs.items():
        row = table.row(row_id)
        settings = table.settings(row)
        if pair.ours and pair.ours.mark == OURS and settings.get("conv") == "standard" and not row.weights_from:
            alike = frozenset((k, v) for k, v in settings.items() if not k.startswith("model_args."))
            label = pair.label if pair.published else ""
            groups.setdefault(alike, {})[row_id] = replace(pair, label=label, ours=replace(pair.ours, mark=DENSE))
    largest = max(groups.values(), key=len, default={})
    return largest if len(largest) >= MIN_DENSE else {}


def _cost_metrics(table: Table) -> list[Counted]:
    """The counted metrics: those of operations first, then those of parameters and bits."""
    counted = [m for m in table.metrics.values() if isinstance(m, Counted)]
    return sorted(counted, key=lambda m: RULES[m.count].of != "operations")


def _against_cost(table: Table, row: Row, metric: Trained, cost: Counted, statics: Statics, results: Results) -> Pair:
    cost_cell, cell = judge(table, row, cost, statics, results), judge(table, row, metric, statics, results)
    counted = count(table, row, cost, statics) if cost_cell.ours else None
    own_cost, printed_cost, value = _rounded(counted), _rounded(_printed(cost_cell)), _printed(cell)
    published_cost = own_cost if printed_cost is None else printed_cost
    published = ours = None
    if value is not None and published_cost is not None:
        mark = _published_mark(row, cell, *((cost_cell,) if printed_cost is not None else ()))
        published = Dot(published_cost, value, mark)
    if _is_measured(cell) and own_cost is not None:
        ours = Dot(own_cost, float(cell.ours), _ours_mark(cell), float(cell.spread or 0))
    return Pair(row.label, published, ours)


def _by_row(table: Table, row: Row, metric: Trained, results: Results) -> Pair:
    cell = judge(table, row, metric, {}, results)
    published = ours = None
    if (value := _printed(cell)) is not None:
        published = Dot(value, 0.0, _published_mark(row, cell))
    if _is_measured(cell):
        ours = Dot(float(cell.ours), 0.0, _ours_mark(cell), float(cell.spread or 0))
    return Pair(row.label, published, ours)


def _printed(cell: Cell) -> float | None:
    """The published value of a cell; None where there is none."""
    return None if cell.published is None or cell.published.value is None else float(cell.published.value)


def _published_mark(row: Row, *cells: Cell) -> str:
    if not all(cell.published and cell.published.decides for cell in cells):
        return RECALLED
    return QUOTED if row.quoted else PUBLISHED


def _is_measured(cell: Cell) -> bool:
    return bool(cell.runs) and cell.verdict not in ("proxy", "smoke")


def _ours_mark(cell: Cell) -> str:
    return PARTIAL if cell.verdict == "partial" else OURS


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


def common_prefix(labels: Sequence[str]) -> str:
    """The words with which all of at least three labels begin.

    Returns "" where the words have no letters, and where one of the labels consists of nothing else.
    """
    first, last = (min(labels), max(labels)) if len(labels) > 2 else ("", "")
    shared = "".join(letter for letter, _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False)))
    end = max((shared.rfind(mark) for mark in (" ", "_")), default=-1)
    prefix = shared[: end + 1]
    has_letters = any(letter.isalpha() for letter in prefix)
    return prefix if has_letters and all(len(label) > len(prefix) for label in labels) else ""


def _named(metric: Metric) -> str:
    return metric.name if metric.unit == "1" else f"{metric.name} ({metric.unit})"


def _percent(share: float) -> str:
    """A difference with two digits, such as (+0.12 %) for 0.00123."""
    return f"({100 * share:+.{max(0, 1 - floor(log10(abs(100 * share))))}f} %)"


def _rounded(value: SupportsFloat | None) -> float | None:
    """The value to ten significant digits, so that the digest of a figure does not depend on the last bit."""
    return None if value is None else float(f"{float(value):.10g}")
