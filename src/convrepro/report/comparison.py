"""Shows a comparison of operators on one network: for a terminal, as Markdown, CSV, JSON, a plot and an HTML page."""

import csv
import io
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from convrepro.errors import visible
from convrepro.evidence.comparison import Measured, Record
from convrepro.report.html.inline import inline_svg
from convrepro.report.html.page import template
from convrepro.report.plots import draw
from convrepro.report.plots.kinds import OURS, Accuracy, Dot, Pair
from convrepro.runs.storage import write_whole
from convrepro.tables import Results, Statics, Table
from convrepro.tables.markdown import Grid, bullet, escaped, markdown_grid

MODES = {"train": "training", "inference": "fused", "exported": "onnxruntime"}
COSTS = ("macs", "multiplications", "params", "weight_bits")
FRONT = "*"
LEGEND = (
    "* at the beginning of a line: no other network is at least as accurate at the same or a lower cost ({cost}). "
    "Times are shares of the dense network's, measured in turns with it in one process: training step, inference with "
    "norms and operators fused, inference of the exported file. top-1: mean and standard deviation over the seeds "
    "(number)."
)


@dataclass(frozen=True)
class Line:
    """A network of a comparison.

    Attributes:
        costs: by rule, of one image; empty for an operator that is refused.
        ratios: time as a share of the dense network's, by mode.
        converted: top-1 in percent right after the conversion, by seed.
        top1: top-1 in percent of the trained networks, by seed.
        front: whether no other network is at least as accurate and cheaper, or as cheap and more accurate.
        reason: why the operator is refused, or why something was not measured.
    """

    title: str
    costs: Mapping[str, int] = field(default_factory=dict)
    exported_bytes: int | None = None
    ratios: Mapping[str, float] = field(default_factory=dict)
    converted: tuple[float, ...] = ()
    top1: tuple[float, ...] = ()
    front: bool = False
    reason: str = ""

    @property
    def accuracy(self) -> float:
        """The mean top-1; below all others without a run."""
        return statistics.fmean(self.top1) if self.top1 else -1.0


def lines(
    table: Table,
    statics: Statics,
    results: Results,
    rows: Mapping[str, Measured],
    refused: Mapping[str, str],
    cost: str,
) -> list[Line]:
    """The networks, those of the Pareto front of top-1 and `cost` first, then by accuracy; what is refused last."""
    found = []
    for row in table.rows:
        measured = rows.get(row.id)
        runs = results.get(row.id, {})
        found.append(
            Line(
                row.label,
                {rule: int(statics[row.id][rule]) for rule in COSTS},
                measured["exported_bytes"] if measured else None,
                {mode: ratio["median"] for mode, ratio in measured["ratios"].items()} if measured else {},
                tuple(measured.get("converted", {}).values()) if measured else (),
                tuple(run["metrics"]["last"]["top1"] for _, run in sorted(runs.items())),
                reason=measured.get("reason", "") if measured else "",
            )
        )
    found = [replace(one, front=bool(one.top1) and not any(_dominates(o, one, cost) for o in found)) for one in found]
    found.sort(key=lambda one: (not one.front, -one.accuracy, one.costs[cost]))
    return found + [Line(title, reason=reason) for title, reason in refused.items()]


def _dominates(one: Line, other: Line, cost: str) -> bool:
    if not one.top1:
        return False
    better = one.accuracy >= other.accuracy and one.costs[cost] <= other.costs[cost]
    return better and (one.accuracy, one.costs[cost]) != (other.accuracy, other.costs[cost])


def grid(found: Sequence[Line], accuracy: str = "top-1") -> Grid:
    """Header and lines of the networks that were counted, without columns that none of them fills."""
    modes = [mode for mode in MODES if any(mode in one.ratios for one in found)]
    converted = any(one.converted for one in found)
    titles = [*("M MACs", "M mult.", "M params", "Mbit", "MB"), *(f"{MODES[mode]} x" for mode in modes)]
    titles += ["converted"] * converted + [accuracy]
    body = []
    for one in found:
        if not one.costs:
            continue
        cells = [f"{one.costs[rule] / 1e6:.2f}" for rule in COSTS]
        cells.append(f"{one.exported_bytes / 1e6:.2f}" if one.exported_bytes else "")
        cells += [f"{one.ratios[mode]:.2f}" if mode in one.ratios else "" for mode in modes]
        cells += [_spread(one.converted)] * converted + [_spread(one.top1)]
        body.append([FRONT if one.front else "", one.title, *cells])
    return [("", ""), ("", "operator"), *((" ", title) for title in titles)], body


def notes(found: Sequence[Line]) -> list[str]:
    """What was refused or not measured, with the reason; those that share one stand in one line."""
    titles: dict[tuple[str, str], list[str]] = {}
    for one in found:
        if one.reason:
            titles.setdefault(("" if one.costs else ", refused", one.reason), []).append(one.title)
    return [f"{', '.join(names)}{refused}: {reason}" for (refused, reason), names in titles.items()]


def _spread(values: Sequence[float]) -> str:
    if not values:
        return ""
    deviation = f" ±{statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.2f}{deviation} ({len(values)})"


def as_text(found: Sequence[Line], accuracy: str = "top-1") -> str:
    """The lines for a terminal: columns, and what was refused below."""
    header, body = grid(found, accuracy)
    rows = [[title for _, title in header], *body]
    widths = [max(len(row[i]) for row in rows) for i in range(len(header))]
    text = []
    for row in rows:
        cells = [cell.ljust(w) if i < 2 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))]
        text.append("  ".join(cells).rstrip())
    return visible("\n".join([*text, *notes(found)]))


def facts(record: Record, results: Results) -> list[str]:
    """Where and how the comparison was measured, as sentences."""
    place, setting = record["environment"], record["setting"]
    budgets = {run["budget"] for runs in results.values() for run in runs.values()}
    data = {run["config"]["data"]["name"] for runs in results.values() for run in runs.values()}
    said = [f"Budget {', '.join(sorted(budgets))} on {', '.join(sorted(data))}."] if budgets else []
    if budgets and budgets != {"paper"}:
        said.append("Few examples and epochs: a proxy, good for the order of very different networks at best.")
    speed = f"Speed: batches of {setting['batch_size']}, {place['threads']} threads, {setting['rounds']} rounds"
    commits = dict.fromkeys(str(row.get("commit"))[:12] for row in record["rows"].values() if row.get("commit"))
    times = sorted({row.get("time", record["time"]) for row in record["rows"].values()}) or [record["time"]]
    where = f", commit {', '.join(commits)}" if commits else ""
    return [*said, f"{speed}, {place['device']}{where}; {' to '.join(dict.fromkeys((times[0], times[-1])))}."]


def figure(table: Table, found: Sequence[Line], cost: str, accuracy: str = "top-1") -> Accuracy | None:
    """Top-1 against the cost; None with fewer than two trained networks."""
    pairs = tuple(
        Pair(
            one.title + (f" {FRONT}" if one.front else ""),
            None,
            Dot(one.costs[cost] / 1e6, one.accuracy, OURS, statistics.stdev(one.top1) if len(one.top1) > 1 else 0.0),
        )
        for one in found
        if one.top1
    )
    if len(pairs) < 2:
        return None
    return Accuracy(table.name, table.title, f"{cost} [M]", f"{accuracy} [%]", "", (("", pairs),))


def write(table: Table, found: Sequence[Line], record: Record, results: Results, root: Path, cost: str) -> list[Path]:
    """Writes CSV, JSON, Markdown, plot and HTML page beside the table; returns their paths."""
    return write_pages(table, found, facts(record, results), root, cost, LEGEND)


def write_pages(
    table: Table,
    found: Sequence[Line],
    said: Sequence[str],
    root: Path,
    cost: str,
    legend: str,
    more: Mapping[str, object] | None = None,
    accuracy: str = "top-1",
) -> list[Path]:
    """Writes CSV, JSON, Markdown, plot and HTML page of lines beside their table; returns the paths.

    `said` are sentences above the lines, `more` further keys of the JSON, and `accuracy` the name of the top-1 column.
    """
    stem = root / table.name
    reasons, picture, columns = notes(found), figure(table, found, cost, accuracy), grid(found, accuracy)
    legend = legend.format(cost=cost)
    markdown = [f"# {escaped(table.title)}", "", *map(escaped, said), "", *markdown_grid(columns), ""]
    markdown += [*map(bullet, reasons), *[""] * bool(reasons), escaped(legend)]
    if picture:
        markdown += ["", f"![{escaped(draw.describe(picture))}]({stem.name}.svg)"]
    values = io.StringIO()
    header, body = columns
    csv.writer(values).writerows([[title or "front" for _, title in header], *body])
    content = {"table": table.name, "cost": cost, "lines": [asdict(one) for one in found], **(more or {})}
    contents = {
        "csv": values.getvalue(),
        "json": json.dumps(content, indent=1),
        "md": "\n".join(markdown),
        "html": page(table.title, said, columns, reasons, picture, legend),
        **({"svg": draw.svg(picture)} if picture else {}),
    }
    paths = []
    for suffix, text in contents.items():
        paths.append(stem.with_name(f"{stem.name}.{suffix}"))
        write_whole(paths[-1], (text.rstrip("\n") + "\n").encode())
    return paths


def page(
    title: str, said: Sequence[str], grid: Grid, reasons: Sequence[str], picture: Accuracy | None, legend: str
) -> str:
    """One HTML page that needs nothing from elsewhere."""
    return template("comparison.html").render(
        title=title,
        facts=said,
        titles=[title for _, title in grid[0]],
        lines=grid[1],
        reasons=reasons,
        legend=legend,
        picture=inline_svg(draw.svg(picture), "comparison") if picture else "",
        caption=draw.describe(picture) if picture else "",
    )
