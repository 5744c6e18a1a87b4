"""A paper's table as data: what is published, how it is counted or measured, and the verdict. Imports no torch."""

from convrepro.tables.load import list_papers, list_tables, load_table
from convrepro.tables.render import render_proxies, render_scoreboard, render_table
from convrepro.tables.schema import Claim, Counted, Metric, Published, Reduction, Row, Source, Table, Trained, settings
from convrepro.tables.verdict import (
    Cell,
    ClaimVerdict,
    Results,
    Statics,
    data_name,
    format_exact,
    judge,
    judge_claim,
    measured,
    row_verdict,
    standing,
    tally,
)

__all__ = [
    "Cell",
    "Claim",
    "ClaimVerdict",
    "Counted",
    "Metric",
    "Published",
    "Reduction",
    "Results",
    "Row",
    "Source",
    "Statics",
    "Table",
    "Trained",
    "data_name",
    "format_exact",
    "judge",
    "judge_claim",
    "list_papers",
    "list_tables",
    "load_table",
    "measured",
    "render_proxies",
    "render_scoreboard",
    "render_table",
    "row_verdict",
    "settings",
    "standing",
    "tally",
]
