"""Builds what a table's dashboard shows in W&B: panels, columns, and which runs. Every key is one that a run logs."""

import hashlib
from collections.abc import Iterable, Sequence

import wandb_workspaces.reports.v2 as wr
from wandb_workspaces import expr
from wandb_workspaces.reports.v2.interface import Panel

from convrepro.runs.identity import Identity
from convrepro.runs.summary import STATIC
from convrepro.tables import Metric, Row, Table, Trained
from convrepro.tables.render import describe_source

#: Colours that colour-blind people can distinguish (Okabe and Ito 2008), for a table's operators in order.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
#: The axes of panels of costs: summary key -> label.
COSTS = {"static/macs": "MACs of convolutions and linear layers", "multiplications_left": "multiplications left"}
#: Learning curves: history key -> label, and whether the axis is logarithmic.
CURVES = {
    "val/top1": ("top-1 (%)", False),
    "train/loss": ("training loss", True),
    "val/loss": ("validation loss", True),
    "lr": ("learning rate", True),
}
#: How many runs and groups a panel of W&B shows by default.
DEFAULT_LIMIT = 10


def stable_id(*words: str) -> str:
    """Return twelve hexadecimal digits for `words`, so that building a dashboard twice gives the same one."""
    return hashlib.sha256("\n".join(words).encode()).hexdigest()[:12]


def sections(table: Table, budget: str) -> dict[str, list[Panel]]:
    """Return heading -> panels, with fixed ids."""
    parts: dict[str, list[Panel]] = {
        "About": [wr.MarkdownPanel(markdown=about(table, budget))],
        "Accuracy against cost": _against_cost(table),
        "Published against ours": _published(table),
        "Learning curves, by row": _curves(table),
    }
    for heading, panels in parts.items():
        for number, panel in enumerate(panels):
            panel._id = stable_id(table.name, budget, heading, str(number))
    return {heading: panels for heading, panels in parts.items() if panels}


def about(table: Table, budget: str) -> str:
    """Describe what the table asks and by which rules it is judged, in markdown."""
    lines = [f"### {table.title}", f"{describe_source(table.source)}. {table.question}", ""]
    lines += [f"Runs at budget `{budget}`" + ("." if budget == "paper" else "; not compared with published values.")]
    for metric in _trained(table):
        seeds = ", ".join(map(str, table.seeds))
        lines += [f"- `{metric.name}` reproduces within {metric.tol} {metric.unit}, mean over seeds {seeds}"]
    lines += [f"- claim: {claim.text}" for claim in table.claims]
    return "\n".join(lines)


def runs_of(table: Table, budget: str) -> expr.And | expr.Or:
    """Select the runs that a table shows: its group's at this budget, and runs of other tables that are its rows."""
    at_budget = expr.Config("budget_name") == budget
    parts = [expr.And(expr.Metric("Group") == table.name, at_budget)]
    others: dict[str, list[str]] = {}
    for row in table.rows:
        if row.same_as:
            owner, row_id = _home(table, row)
            others.setdefault(owner, []).append(row_id)
    for owner, rows in others.items():
        parts.append(expr.And(expr.Metric("Group") == owner, expr.Config("row").isin(rows), at_budget))
    return expr.Or(*parts) if others else parts[0]


def columns(table: Table) -> list[str]:
    """Return the columns of the list of runs: names, verdicts, differences, measurements, counts."""
    who = ["run:displayName", "config:row.value", "config:seed.value", "config:conv_name.value", "run:state"]
    known = {"verdict": _published_metrics(table), "delta": _compared(table), "ours": _compared(table)}
    known["published"] = known["verdict"]
    keys = [f"{kind}/{metric.name}" for kind, metrics in known.items() for metric in metrics]
    keys += [*accuracy_keys(table), *(f"static/{name}" for name in STATIC), "multiplications_left", "images_per_second"]
    return [*who, *(f"summary:{key}" for key in keys)]


def colors(table: Table, budget: str) -> dict[str, str]:
    """Return run id -> the colour of its operator."""
    operators = list(dict.fromkeys(_operator(table, row) for row in table.rows if not row.quoted))
    painted = {}
    for row in table.rows:
        if row in table.to_run or row.same_as:
            color = PALETTE[operators.index(_operator(table, row)) % len(PALETTE)]
            for seed in table.seeds:
                painted[Identity(*_home(table, row), seed, budget).run_id] = color
    return painted


def accuracy_keys(table: Table) -> list[str]:
    """Return the summary keys of what the table's runs measure, such as `last/top1`."""
    return list(dict.fromkeys(f"{metric.epoch}/{metric.run_metric}" for metric in _trained(table)))


def limit(table: Table) -> int:
    """Return how many runs a panel must be able to show."""
    return max(DEFAULT_LIMIT, len(table.rows) * len(table.seeds))


def _home(table: Table, row: Row) -> tuple[str, str]:
    """Return the table and row under which the row's runs are trained."""
    owner, _, row_id = row.same_as.rpartition("/")
    return (owner, row_id) if row.same_as else (table.name, row.id)


def _operator(table: Table, row: Row) -> str:
    return table.settings(row).get("conv", "standard")


def _trained(table: Table) -> list[Trained]:
    return [metric for metric in table.metrics.values() if isinstance(metric, Trained)]


def _published_metrics(table: Table) -> list[Metric]:
    """Return the metrics for which some row with runs has a published value."""

    def known(metric: Metric, rows: Iterable[Row]) -> bool:
        return any(r.published.get(metric.name) and r.published[metric.name].value is not None for r in rows)

    return [metric for metric in table.metrics.values() if known(metric, table.to_run)]


def _compared(table: Table) -> list[Metric]:
    """Return the published metrics for which a run has a value of its own, measured or counted."""
    return [m for m in _published_metrics(table) if isinstance(m, Trained) or m.count]


def _against_cost(table: Table) -> list[Panel]:
    panels: list[Panel] = []
    legend = "${config:conv_name} ${run:displayName}"
    keys = accuracy_keys(table)
    for cost, words in COSTS.items():
        for key in keys:
            scatter = wr.ScatterPlot(title=f"{key} (%) against {words}, by operator", legend_template=legend)
            scatter.x, scatter.y = wr.SummaryMetric(cost), wr.SummaryMetric(key)
            scatter.log_x = cost == "static/macs"
            panels.append(scatter)
    axes: Sequence[wr.Config | wr.SummaryMetric] = [
        wr.Config("conv_name"),
        *(wr.SummaryMetric(cost) for cost in COSTS),
        *(wr.SummaryMetric(key) for key in keys),
    ]
    lines = [wr.ParallelCoordinatesPlotColumn(axis, log=axis.name == "static/macs" or None) for axis in axes]
    return [*panels, wr.ParallelCoordinatesPlot(title="operator, cost and accuracy", columns=lines)]


def _published(table: Table) -> list[Panel]:
    panels: list[Panel] = []
    for metric in _compared(table):
        unit = "" if metric.unit == "1" else f" ({metric.unit})"
        panels.append(_bars(table, f"{metric.name}{unit}: published and ours", "published", "ours", metric=metric))
        if isinstance(metric, Trained):
            title = f"{metric.name}: ours - published; reproduced within {metric.tol} {metric.unit}"
            panels.append(_bars(table, title, "delta", metric=metric))
    return panels


def _bars(table: Table, title: str, *kinds: str, metric: Metric) -> wr.BarPlot:
    return wr.BarPlot(
        title=title,
        metrics=[f"{kind}/{metric.name}" for kind in kinds],
        groupby=wr.Config("row"),
        groupby_aggfunc="mean",
        groupby_rangefunc="minmax",
        max_runs_to_show=limit(table),
        max_bars_to_show=limit(table),
    )


def _curves(table: Table) -> list[Panel]:
    return [
        wr.LinePlot(
            title=f"{words}: mean and range over seeds",
            x="epoch",
            y=[key],
            log_y=logarithmic or None,
            groupby=wr.Config("row"),
            groupby_aggfunc="mean",
            groupby_rangefunc="minmax",
            max_runs_to_show=limit(table),
        )
        for key, (words, logarithmic) in CURVES.items()
    ]
