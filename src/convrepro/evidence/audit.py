"""The audit: recounts every published static value, and explains those that differ from the count.

A column of a table has one rule and one rounding. Where these do not give the printed digits, the audit tries every
other rule of the same kind with either rounding. It names those that give the printed digits, or the nearest one and
its distance.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction

from convrepro.complexity.rules import RULES, Count
from convrepro.tables import (
    UNITS,
    Counted,
    Published,
    Relative,
    Row,
    Table,
    format_exact,
    judge,
    percentage,
)

USUAL = ("macs", "conv_fc", "params")
"""The usual counting rules: multiply-accumulates of all layers that have any, and all parameters."""

GROUPS = {
    "exact": "Exact: the table's rule is a usual one, and rounding gives the printed digits.",
    "own rule": (
        "Exact under the paper's own rule: the whole column of the table follows one rule, or one rounding (cut "
        "instead of rounded), that is not the usual one."
    ),
    "convention": (
        "Printed by another convention than the rest of its column: another rule or rounding gives the printed digits."
    ),
    "misprint": "Misprint: the printed digits are wrong; the arithmetic is given.",
    "unexplained": "Not reproducible from what is public: no rule gives the printed digits.",
    "recalled": "Recalled: known only from recollection, so that a difference would say nothing about the paper.",
    "not checkable": "Not checkable here: the value is of another work's network, which the table quotes.",
}
"""The groups into which the audit sorts the published values, with their meaning."""

CountRow = Callable[[Table, Row], Count]
Static = Counted | Relative


@dataclass(frozen=True)
class Finding:
    """The audit's finding on one published static value.

    Attributes:
        group: one of `GROUPS`.
        ours: our value as the metric prints it; "" where it is not counted.
        nearest: the other rules and roundings that give the printed digits, or else the nearest one.
    """

    table: Table
    row: Row
    metric: Static
    published: Published
    group: str
    ours: str = ""
    nearest: str = ""


def audit(tables: list[Table], count_row: CountRow) -> list[Finding]:
    """Audits the tables; the findings are in the order of tables, rows and columns.

    `count_row(table, row)` returns the layers that the row's counts are of.
    """
    return [finding for table in tables for row in table.rows for finding in _row(table, row, count_row)]


def _row(table: Table, row: Row, count_row: CountRow) -> Iterator[Finding]:
    for name, published in row.published.items():
        metric = table.metrics[name]
        if isinstance(metric, Static) and published.value is not None:
            yield _examine(table, row, metric, published, count_row)


def counted_metric(table: Table, metric: Static) -> Counted:
    """The metric whose counts `metric` shows: itself or, for a percentage, the metric that it is of."""
    if isinstance(metric, Counted):
        return metric
    counted = table.metrics[metric.of]
    if not isinstance(counted, Counted):
        raise TypeError(f"{table.name}: {metric.name} is a percentage of {metric.of}, which is not a counted metric")
    return counted


def _examine(table: Table, row: Row, metric: Static, published: Published, count_row: CountRow) -> Finding:
    facts = (table, row, metric, published)
    if row.quoted:
        return Finding(*facts, "not checkable" if published.decides else "recalled")
    counted = counted_metric(table, metric)
    needed = {row.id, metric.base_row} if isinstance(metric, Relative) else {row.id}
    recount = _Recount(metric, counted, row.id, {r.id: count_row(table, r) for r in table.rows if r.id in needed})
    statics = {id_: {counted.name: Fraction(count.total(counted.count))} for id_, count in recount.counts.items()}
    cell = judge(table, row, metric, statics, {})
    if not published.decides:
        return Finding(*facts, "recalled", cell.ours)
    if cell.verdict == "static-ok":
        return Finding(*facts, "exact" if recount.is_usual() else "own rule", cell.ours)
    return Finding(*facts, published.cause or "unexplained", cell.ours, recount.nearest(published))


@dataclass(frozen=True)
class _Recount:
    """Recounts one value by other rules. `counts` are those of its row and, for a percentage, of the base row."""

    metric: Static
    counted: Counted
    row_id: str
    counts: dict[str, Count]

    def exact(self, rule: str) -> Fraction | None:
        """The exact value by `rule` in the metric's unit; None for a percentage whose base is 0."""
        values = {id_: Fraction(count.total(rule)) / UNITS[self.counted.unit] for id_, count in self.counts.items()}
        if not isinstance(self.metric, Relative):
            return values[self.row_id]
        base = values[self.metric.base_row]
        return percentage(self.metric, self.counted, values[self.row_id], base)

    def is_usual(self) -> bool:
        """Whether the table's rule is a usual one and rounding gives the same digits as the table's rounding."""
        exact, metric = self.exact(self.counted.count), self.metric
        if exact is None:
            return False
        rounded, printed = (format_exact(exact, metric.decimals, how) for how in ("round", metric.printed))
        return self.counted.count in USUAL and rounded == printed

    def nearest(self, published: Published) -> str:
        """The rules and roundings that give the printed digits; where none does, the nearest with its distance."""
        if published.value is None:
            return ""
        wanted = Fraction(published.value)
        fits: list[str] = []
        figures: dict[str, Fraction] = {}
        for rule, of in ((name, rule.of) for name, rule in RULES.items()):
            exact = self.exact(rule) if of == RULES[self.counted.count].of else None
            if exact is None:
                continue
            figures[rule] = exact
            words = [
                word
                for printed, word in (("round", "rounded"), ("floor", "cut"))
                if wanted in map(Fraction, _printings(exact, self.metric.decimals, printed, published))
            ]
            fits += [f"{rule} {' or '.join(words)}"] if words else []
        if fits:
            return "; ".join(fits)
        rule, exact = min(figures.items(), key=lambda figure: abs(figure[1] - wanted))
        distance = f" ({float(100 * (exact - wanted) / wanted):+.2f} %)" if wanted else ""
        return f"nearest: {rule}, {format_exact(exact, self.metric.decimals, 'round')}{distance}"


def _printings(exact: Fraction, decimals: int, printed: str, published: Published) -> Iterator[str]:
    """Yields `exact` with the metric's decimals, and with the precision of the published number.

    That number may have fewer decimals than the metric, or be printed to the hundreds, for example.
    """
    text = str(published.value)
    yield format_exact(exact, decimals, printed)
    yield format_exact(exact, len(text.partition(".")[2]), printed)
    zeros = len(text) - len(text.rstrip("0")) if "." not in text else 0
    if zeros:
        yield format_exact(exact / 10**zeros, 0, printed) + "0" * zeros
