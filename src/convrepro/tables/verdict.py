"""Verdicts: pure functions of published values, counts, results and tolerances. All arithmetic is exact.

`Statics` maps row id -> metric -> exact number (int or Fraction) in raw units, by the metric's counting rule.
`Results` maps row id -> seed -> the content of a run's `result.json`.

Only runs at budget `paper`, on the data set that the table names, are compared with published values. Any other is
shown as what it is, `proxy` or `smoke`, and decides nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import floor, isfinite, sqrt
from statistics import stdev, variance
from struct import pack, unpack
from typing import Any, TypedDict

from convrepro.config.plugins import content
from convrepro.config.scientific import alike
from convrepro.tables.schema import (
    UNITS,
    Claim,
    Counted,
    Metric,
    NotMeasured,
    Published,
    Reduction,
    Relative,
    Row,
    Table,
    Trained,
)

Exact = int | Fraction
Statics = Mapping[str, Mapping[str, Exact]]
Results = Mapping[str, Mapping[int, Mapping[str, Any]]]

NONE = "-"


@dataclass(frozen=True)
class Cell:
    """One row's standing on one metric.

    verdict: `static-ok`, `static-off`, `not counted`; `not run`, `partial`, `reproduced`, `off`; `unverified` where the
    published value is recalled; `proxy`, `smoke`; `quoted` where it is shown only; `-` where nothing is published.
    ours: our figure as the metric prints it, "" where there is none. delta: ours minus published, "" where unknown.
    """

    published: Published | None
    verdict: str
    ours: str = ""
    delta: str = ""
    spread: str = ""
    runs: int = 0
    seeds: int = 0

    @property
    def text(self) -> str:
        if self.verdict == "partial":
            return f"partial {self.runs}/{self.seeds}"
        return f"off by {self.delta}" if self.verdict == "off" else self.verdict


@dataclass(frozen=True)
class ClaimVerdict:
    """A claim on our values and on the paper's: `holds`, `fails` or `unknown`, with left minus right.

    ours_error: standard error of our left minus right over the seeds that were run; "" for counts and for one seed.
    """

    claim: Claim
    ours: str
    ours_delta: str
    ours_error: str
    paper: str
    paper_delta: str
    recalled: bool


def format_exact(value: Exact, decimals: int, printed: str) -> str:
    """`value` cut towards minus infinity (`floor`) or rounded with halves up (`round`), without any float."""
    if not isinstance(value, int | Fraction):
        raise TypeError(f"{value!r} is not exact; give an int or a Fraction")
    digits = floor(Fraction(value) * 10**decimals + (Fraction(1, 2) if printed == "round" else 0))
    whole, part = divmod(abs(digits), 10**decimals)
    return f"{'-' if digits < 0 else ''}{whole}" + (f".{part:0{decimals}}" if decimals else "")


def signed(value: Exact, decimals: int) -> str:
    """A difference with its sign, halves away from zero; zero has none."""
    text = format_exact(value if value > 0 else -value, decimals, "round")
    if not Fraction(text):
        return text
    return ("+" if value > 0 else "-") + text


def standing(result: Mapping[str, Any], table: Table, row: Row) -> str:
    """What a run may be compared with: `paper`, `proxy` or `smoke`; "" where it is not done.

    A run at the paper's budget is a proxy where its overrides ask for something else than the row's, however both are
    spelled, or where it saw other data.
    """
    if result.get("status") != "done":
        return ""
    budget = result.get("budget")
    if budget == "smoke":
        return "smoke"
    wanted = table.overrides(row)
    own = content("data", table.settings(row).get("data", "")).get("name")  # `fashion_sample` calls itself otherwise
    same = data_name(result) == own and alike(result.get("overrides") or (), wanted)
    return "paper" if budget == "paper" and same else "proxy"


def data_name(result: Mapping[str, Any]) -> str | None:
    """Name of the data set that a run saw."""
    return ((result.get("config") or {}).get("data") or {}).get("name")


def measured(result: Mapping[str, Any], metric: Trained) -> Fraction | None:
    """The metric's value in a result; accuracies, which a run computes in float32, as the share that they stand for."""
    value = ((result.get("metrics") or {}).get(metric.epoch) or {}).get(metric.run_metric)
    if not isinstance(value, int | float) or not isfinite(value):
        return None
    exact = 100 * _shortest(value / 100) if metric.run_metric.startswith("top") else Fraction(str(value))
    return 100 - exact if metric.complement else exact


def _shortest(value: float) -> Fraction:
    """The decimal with the fewest digits that is this number in float32: 0.9202, not 0.9201999902725220."""
    single = pack("f", value)
    texts = (f"{unpack('f', single)[0]:.{digits}g}" for digits in range(1, 10))
    return Fraction(next(text for text in texts if pack("f", float(text)) == single))  # 9 digits always do


def _samples(table: Table, row: Row, metric: Trained, results: Results) -> tuple[str, list[Fraction]]:
    """The best standing among the row's runs, and the values of those runs; the paper's are of the table's seeds."""
    found: dict[str, list[Fraction]] = {"paper": [], "proxy": [], "smoke": []}
    for seed, result in sorted(results.get(row.id, {}).items()):
        level = standing(result, table, row)
        value = measured(result, metric) if level else None
        if value is not None and (level != "paper" or seed in table.seeds):
            found[level].append(value)
    return next(((level, values) for level, values in found.items() if values), ("", []))


def percentage(metric: Relative, of: Counted, value: Fraction, base: Fraction) -> Fraction | None:
    """The share or reduction of `value` against `base`, two figures of the metric `of`, as exact or as printed.

    None where the base is zero.
    """
    if metric.from_ == "printed":
        value, base = (Fraction(format_exact(v, of.decimals, of.printed)) for v in (value, base))
    if not base:
        return None
    share = 100 * value / base
    return 100 - share if isinstance(metric, Reduction) else share


def count(table: Table, row: Row, metric: Metric, statics: Statics) -> Fraction | None:
    """Our exact figure of a static metric, in its unit."""
    if isinstance(metric, Relative):
        of = table.metrics[metric.of]
        own, base = (count(table, r, of, statics) for r in (row, table.row(metric.base_row)))
        assert isinstance(of, Counted), of
        return None if own is None or base is None else percentage(metric, of, own, base)
    value = statics.get(row.id, {}).get(metric.name)
    if value is None:
        return None
    if not isinstance(value, int | Fraction):
        raise TypeError(f"{table.name}, row {row.id}: {metric.name} is {value!r}, not an exact number")
    return Fraction(value) / UNITS[metric.unit]


def judge(table: Table, row: Row, metric: Metric, statics: Statics, results: Results) -> Cell:
    """The row's cell for the metric."""
    published = row.published.get(metric.name)
    if published is not None and published.value is None:
        published = None
    if row.quoted or isinstance(metric, NotMeasured):
        return Cell(published, "quoted" if published else NONE)
    if isinstance(metric, Trained):
        if row.layers:
            return Cell(published, NONE)
        return _judge_trained(table, row, metric, published, results)
    return _judge_static(table, row, metric, published, statics)


class _Shown(TypedDict):
    """What a cell shows of runs, whatever its verdict."""

    ours: str
    spread: str
    runs: int
    seeds: int


def _judge_static(table: Table, row: Row, metric: Metric, published: Published | None, statics: Statics) -> Cell:
    assert isinstance(metric, Counted | Relative), metric
    exact = count(table, row, metric, statics)
    if exact is None:
        return Cell(published, "not counted" if published else NONE)
    ours = format_exact(exact, metric.decimals, metric.printed)
    if published is None:
        return Cell(None, NONE, ours)
    difference = Fraction(ours) - published.exact
    delta = signed(difference, metric.decimals)
    if not published.decides:
        return Cell(published, "unverified", ours, delta)
    return Cell(published, "static-off" if difference else "static-ok", ours, delta)


def _judge_trained(table: Table, row: Row, metric: Trained, published: Published | None, results: Results) -> Cell:
    level, values = _samples(table, row, metric, results)
    if not values:
        return Cell(published, "not run", seeds=len(table.seeds))
    mean = sum(values, Fraction()) / len(values)
    shown: _Shown = {
        "ours": format_exact(mean, metric.decimals, "round"),
        "spread": f"{stdev(map(float, values)):.{metric.decimals}f}" if len(values) > 1 else "",
        "runs": len(values),
        "seeds": len(table.seeds),
    }
    if level != "paper":
        return Cell(published, level, **shown)
    difference = mean - published.exact if published else Fraction()
    delta = signed(difference, metric.decimals) if published else ""
    if len(values) < len(table.seeds):
        verdict = "partial"
    elif published is None:
        verdict = NONE
    elif not published.decides:
        verdict = "unverified"
    else:
        verdict = "reproduced" if abs(difference) <= Fraction(metric.tol) else "off"
    return Cell(published, verdict, delta=delta, **shown)


def judge_row(table: Table, row: Row, statics: Statics, results: Results) -> dict[str, Cell]:
    return {name: judge(table, row, metric, statics, results) for name, metric in table.metrics.items()}


def row_verdict(table: Table, row: Row, cells: Mapping[str, Cell]) -> str:
    """The row in words: what was run, then what was counted; the worst of the counts speaks for them."""
    if row.quoted:
        return "quoted"
    runs = [(n, c.text) for n, c in cells.items() if isinstance(table.metrics[n], Trained) and c.verdict != NONE]
    texts = list(dict.fromkeys(text for _, text in runs))
    words = texts if len(texts) < 2 else [f"{name} {text}" for name, text in runs]
    counts = {n: c for n, c in cells.items() if isinstance(table.metrics[n], Counted | Relative)}
    if off := [n for n, c in counts.items() if c.verdict == "static-off"]:
        words.append(f"static-off ({', '.join(off)})")
    else:
        kinds = {c.verdict for c in counts.values()}
        worst = next((k for k in ("not counted", "unverified", "static-ok") if k in kinds), None)
        words += [f"counts {worst}" if worst == "unverified" else worst] if worst else []
    return ", ".join(words) or NONE


def _is_ours(row: Row, metric: Metric) -> bool:
    """Whether we count or measure the metric of this row; of any other a claim takes the printed value."""
    return not (row.quoted or isinstance(metric, NotMeasured) or (row.layers and isinstance(metric, Trained)))


def _value(table: Table, row: Row, metric: Metric, statics: Statics, results: Results) -> Fraction | None:
    """Our value for a claim: the mean over every seed, or the count; where nothing is ours what is printed."""
    if not _is_ours(row, metric):
        published = row.published.get(metric.name)
        return published.exact if published and published.decides else None
    if not isinstance(metric, Trained):
        return count(table, row, metric, statics)
    level, values = _samples(table, row, metric, results)
    complete = level == "paper" and len(values) == len(table.seeds)
    return sum(values, Fraction()) / len(values) if complete else None


def _relation(claim: Claim, values: Sequence[Fraction | None], decimals: int) -> tuple[str, str]:
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return "unknown", ""
    delta = known[0] - known[1] if claim.right else known[0]
    low = claim.min_delta is None or delta >= Fraction(claim.min_delta)
    high = claim.max_delta is None or delta <= Fraction(claim.max_delta)
    shown = signed(delta, decimals) if claim.right else format_exact(delta, decimals, "round")
    return ("holds" if low and high else "fails"), shown


def _error(table: Table, rows: Sequence[Row], metric: Metric, results: Results, decimals: int) -> str:
    """Standard error of a mean, or of the difference of two: sqrt(s1^2 / n1 + s2^2 / n2) of independent seeds."""
    if not isinstance(metric, Trained):
        return ""
    samples = [_samples(table, row, metric, results)[1] for row in rows if _is_ours(row, metric)]
    if any(len(values) < 2 for values in samples):
        return ""
    return f"{sqrt(sum(variance(map(float, values)) / len(values) for values in samples)):.{decimals}f}"


def judge_claim(table: Table, claim: Claim, statics: Statics, results: Results) -> ClaimVerdict:
    """The claim on our values (`unknown` until every seed of both rows is run, and where neither row's value is ours),
    and on the published ones.
    """
    metric = table.metrics[claim.metric]
    rows = [table.row(side) for side in (claim.left, claim.right) if side]
    own = any(_is_ours(row, metric) for row in rows)
    values = [_value(table, r, metric, statics, results) if own else None for r in rows]
    decimals = metric.decimals + isinstance(metric, Trained)
    ours = _relation(claim, values, decimals)
    error = _error(table, rows, metric, results, decimals) if ours[1] else ""
    published = [r.published.get(claim.metric) for r in rows]
    printed = [p.exact if p and p.value is not None else None for p in published]
    paper = _relation(claim, printed, metric.decimals)
    recalled = None not in printed and not all(p.decides for p in published if p)
    return ClaimVerdict(claim, *ours, error, *paper, recalled)


def tally(table: Table, statics: Statics, results: Results) -> dict[str, dict[str, int]]:
    """How many of the table's static cells, trained cells and claims have each verdict (kind -> verdict -> number)."""
    counts: dict[str, dict[str, int]] = {"static": {}, "trained": {}, "claims": {}}
    for row in table.rows:
        if row.quoted:
            continue
        for name, cell in judge_row(table, row, statics, results).items():
            kind = counts["trained" if isinstance(table.metrics[name], Trained) else "static"]
            if cell.published is not None and cell.verdict not in ("quoted", NONE):
                kind[cell.verdict] = kind.get(cell.verdict, 0) + 1
    for claim in table.claims:
        verdict = judge_claim(table, claim, statics, results).ours
        counts["claims"][verdict] = counts["claims"].get(verdict, 0) + 1
    return counts
