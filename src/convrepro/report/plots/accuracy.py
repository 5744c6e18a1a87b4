"""The figures of accuracy: against a cost, against measured time, or row by row."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import SupportsFloat

from convrepro.complexity.rules import RULES
from convrepro.evidence.speed_record import MODES, Speed
from convrepro.report.plots.kinds import (
    DENSE,
    OURS,
    PARTIAL,
    PUBLISHED,
    QUOTED,
    RECALLED,
    Accuracy,
    AccuracyByBits,
    AccuracyByRow,
    AccuracyByTime,
    Dot,
    Pair,
)
from convrepro.report.plots.labels import common_prefix
from convrepro.tables import Cell, Counted, Metric, Results, Row, Statics, Table, Trained, judge
from convrepro.tables.verdict import count

MIN_PAIRS = 4
"""The least number of rows with a cost for a plot of accuracy against that cost."""
LETTERS = 300
"""The largest number of letters in the labels of a plot of accuracy; beyond it, the labels are ids of rows."""
MIN_DENSE = 3
"""The least number of standard networks of several widths for a line through them."""


def accuracy(table: Table, statics: Statics, results: Results) -> list[Accuracy | AccuracyByRow]:
    """The figures of the first trained metric: against a cost, or row by row where the rows hardly differ in any.

    Against operations, rows that need fewer bits than others with the same operations are left out: these make a figure
    against bits.
    """
    metric = next((m for m in table.metrics.values() if isinstance(m, Trained)), None)
    if metric is None:
        return []
    for cost in _cost_metrics(table):
        pairs = _pairs(table, metric, cost, statics, results)
        if len(pairs) >= MIN_PAIRS and 2 * len(set(_costs(pairs).values())) >= len(pairs):
            return _against(table, metric, cost, pairs, statics, results)
    rows = [_by_row(table, row, metric, results) for row in table.rows]
    if not any(pair.ours for pair in rows):
        return []
    drawn = tuple(pair for pair in rows if pair.published or pair.ours)
    return [AccuracyByRow(table.name, table.title, _named(metric), drawn)]


def _pairs(table: Table, metric: Trained, cost: Counted, statics: Statics, results: Results) -> dict[str, Pair]:
    found = {row.id: _against_cost(table, row, metric, cost, statics, results) for row in table.rows}
    return {row_id: pair for row_id, pair in found.items() if pair.labelled}


def _costs(pairs: Mapping[str, Pair]) -> dict[str, float]:
    """The cost beside which the label of each row is written."""
    return {row_id: dot.x for row_id, pair in pairs.items() if (dot := pair.labelled)}


def _against(
    table: Table, metric: Trained, cost: Counted, pairs: Mapping[str, Pair], statics: Statics, results: Results
) -> list[Accuracy | AccuracyByRow]:
    """The figure of `pairs` against `cost`, and the one against bits where there is one."""
    bits = next((m for m in _cost_metrics(table) if RULES[m.count].of == "bits"), None)
    if bits is None or RULES[cost.count].of != "operations":
        return [_by_data(Accuracy, table, metric, cost, pairs)]
    equal = _equal(_costs(pairs))
    alike = {k: pair for k, pair in _pairs(table, metric, bits, statics, results).items() if k in equal}
    needed = _costs(alike)
    if len(set(needed.values())) < MIN_PAIRS:
        return [_by_data(Accuracy, table, metric, cost, pairs)]
    lean = {row_id for row_id, number in needed.items() if number < max(needed.values())}
    rest = {row_id: pair for row_id, pair in pairs.items() if row_id not in lean}
    return [_by_data(Accuracy, table, metric, cost, rest), _by_data(AccuracyByBits, table, metric, bits, alike)]


def _equal(costs: Mapping[str, float]) -> set[str]:
    """The rows of the cost that most rows have."""
    (most, _), *_ = Counter(costs.values()).most_common()
    return {row_id for row_id, cost in costs.items() if cost == most}


def by_time(table: Table, results: Results, timed: Sequence[Speed]) -> AccuracyByTime | None:
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
            panels.append((words, tuple(_marked(table, pairs).values())))
    if not panels:
        return None
    return AccuracyByTime(table.name, table.title, "time / dense network's", _named(metric), "", tuple(panels))


def _by_data(kind: type[Accuracy], table: Table, metric: Trained, cost: Counted, pairs: Mapping[str, Pair]) -> Accuracy:
    """The figure with a panel for each data set, and one for quoted rows, whose data set is not known.

    Where all rows that are run have the same data set, there is a single panel.
    """
    pairs = _marked(table, pairs)
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
    return kind(table.name, table.title, _named(cost) + rule, _named(metric), prefix, grouped)


def _marked(table: Table, pairs: Mapping[str, Pair]) -> dict[str, Pair]:
    """The pairs with their dense ones marked as such, and with ids for labels where these are too much to read."""
    marked = {**pairs, **_dense(table, pairs)}
    labels = [pair.label for pair in marked.values() if pair.label]
    if sum(map(len, labels)) - len(labels) * len(common_prefix(labels)) <= LETTERS:
        return marked
    return {row_id: replace(pair, label=row_id if pair.label else "") for row_id, pair in marked.items()}


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


def _named(metric: Metric) -> str:
    return metric.name if metric.unit == "1" else f"{metric.name} ({metric.unit})"


def _rounded(value: SupportsFloat | None) -> float | None:
    """The value to ten significant digits, so that the digest of a figure does not depend on the last bit."""
    return None if value is None else float(f"{float(value):.10g}")
