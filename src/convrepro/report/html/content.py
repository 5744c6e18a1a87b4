"""The content of the HTML page for one table, as plain data for the template."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from convrepro.tables import Cell, Published, Results, Row, Statics, Table, Trained, judge_claim, measured
from convrepro.tables.render import (
    claim_line,
    column_titles,
    delta_text,
    describe_source,
    legend_of,
    ours_text,
    proxies_grid,
    published_text,
    remarks,
)
from convrepro.tables.verdict import NONE, judge_row, row_verdict

GOOD, BAD = {"reproduced", "static-ok", "holds"}, {"off", "static-off", "fails"}


@dataclass(frozen=True)
class Value:
    """A cell of a table.

    Attributes:
        text: the text that is shown.
        sort: the number by which the column is sorted; "" where there is none.
        tip: the text of the tooltip.
        source: the number of the value's source in the list of sources; 0 where there is none.
        look: the CSS class of the cell.
    """

    text: str
    sort: str = ""
    tip: str = ""
    source: int = 0
    look: str = ""


@dataclass(frozen=True)
class Line:
    """A row of a table: label and id, its cells, its verdict in words, and the kinds of verdict in it.

    A claim has "" for the id.
    """

    label: str
    row_id: str
    cells: tuple[Value, ...]
    verdict: str
    verdicts: tuple[str, ...]

    @property
    def look(self) -> str:
        """The CSS class of the verdict: `bad` where any verdict is bad, `good` where all are good, else `open`."""
        found = set(self.verdicts)
        return "bad" if found & BAD else "good" if found and found <= GOOD else "open"


@dataclass(frozen=True)
class Section:
    """The section of the page for one table of a paper."""

    anchor: str
    name: str
    title: str
    origin: str
    question: str
    groups: tuple[tuple[str, int], ...]
    titles: tuple[str, ...]
    rows: tuple[Line, ...]
    legend: tuple[str, ...]
    claims: tuple[Line, ...]
    sources: tuple[tuple[str, str], ...]
    remarks: Mapping[str, Sequence[str]]
    runs: tuple[tuple[str, ...], ...]
    run_titles: tuple[str, ...]
    proxies: tuple[tuple[str, ...], ...]
    proxy_titles: tuple[str, ...]
    pictures: tuple[tuple[str, Markup], ...]


def section(
    table: Table,
    statics: Statics,
    results: Results,
    proxies: Mapping[str, Results],
    pictures: Sequence[tuple[str, Markup]],
) -> Section:
    """Builds the section of the table; `pictures` are pairs of description and SVG."""
    published = {name: any(row.published.get(name) for row in table.rows) for name in table.metrics}
    columns = {name: column_titles(metric, published[name]) for name, metric in table.metrics.items()}
    sources = _sources(table)
    rows = tuple(_line(table, row, statics, results, columns, sources) for row in table.rows)
    claims = _claims(table, statics, results)
    cells = [["", *(value.text for value in row.cells)] for row in rows] + [["", line.verdict] for line in claims]
    named = {name: name if metric.unit == "1" else f"{name} ({metric.unit})" for name, metric in table.metrics.items()}
    proxy_titles, proxy_lines = proxies_grid(table, proxies) if proxies else ([], [])
    trained = {name: metric for name, metric in table.metrics.items() if isinstance(metric, Trained)}
    return Section(
        anchor=table.name.replace("/", "-"),
        name=table.name,
        title=table.title,
        origin=describe_source(table.source),
        question=table.question,
        groups=tuple((named[name], len(titles)) for name, titles in columns.items()),
        titles=tuple(title for titles in columns.values() for title in titles),
        rows=rows,
        legend=tuple(legend_of(cells)),
        claims=claims,
        sources=tuple(sources),
        remarks={heading: [" ".join(item.split()) for item in items] for heading, items in remarks(table).items()},
        runs=tuple(_runs(table, results, trained.values())),
        run_titles=("row", "seed", *(named[name] for name in trained), "time (s)", "device", "commit"),
        proxies=tuple(map(tuple, proxy_lines)),
        proxy_titles=tuple(title for _, title in proxy_titles),
        pictures=tuple(pictures),
    )


def _sources(table: Table) -> dict[tuple[str, str], int]:
    """The numbers of the sources of the table's published values, by confidence and source."""
    found = [
        (value.confidence, " ".join(value.source.split()))
        for row in table.rows
        for name in table.metrics
        if (value := row.published.get(name)) and value.value is not None
    ]
    return {source: number for number, source in enumerate(dict.fromkeys(found), 1)}


def _line(
    table: Table,
    row: Row,
    statics: Statics,
    results: Results,
    columns: Mapping[str, Sequence[str]],
    sources: Mapping[tuple[str, str], int],
) -> Line:
    cells = judge_row(table, row, statics, results)
    values = []
    for name, titles in columns.items():
        makers = {"paper": _published, "ours": _ours, "Δ": _delta}
        values += [makers[title](cells[name], sources) for title in titles]
    verdicts = tuple(dict.fromkeys(cell.verdict for cell in cells.values() if cell.verdict != NONE))
    return Line(row.label, row.id, tuple(values), row_verdict(table, row, cells), verdicts)


def _published(cell: Cell, sources: Mapping[tuple[str, str], int]) -> Value:
    published = cell.published
    if published is None:
        return Value(published_text(cell))
    source = " ".join(published.source.split())
    number = sources[published.confidence, source]
    return Value(published_text(cell), str(published.value), _tip(published, source), number, published.confidence)


def _tip(published: Published, source: str) -> str:
    texts = {"": f"{published.confidence}: {source}", "note": published.note, "cause": published.cause}
    texts["erratum"] = published.erratum
    parts = (f"{key}: {text}" if key else text for key, text in texts.items() if text)
    return "; ".join(" ".join(part.split()) for part in parts)


def _ours(cell: Cell, _: object) -> Value:
    return Value(ours_text(cell), cell.ours, look="trained" if cell.runs else "")


def _delta(cell: Cell, _: object) -> Value:
    sort = "0" if cell.verdict == "static-ok" else cell.delta
    look = "bad" if cell.verdict in BAD else "good" if cell.verdict in GOOD else ""
    return Value(delta_text(cell), sort, look=look)


def _claims(table: Table, statics: Statics, results: Results) -> tuple[Line, ...]:
    lines = []
    for claim in table.claims:
        verdict = judge_claim(table, claim, statics, results)
        text, relation, ours, paper = claim_line(verdict)
        lines.append(Line(text, "", (Value(relation), Value(paper)), ours, (verdict.ours,)))
    return tuple(lines)


def _runs(table: Table, results: Results, trained: Iterable[Trained]) -> list[tuple[str, ...]]:
    """A line for each run: its measured values, its time, its device and its commit."""
    metrics = list(trained)
    lines = []
    for row in table.rows:
        for seed, run in sorted(results.get(row.id, {}).items()):
            values = [measured(run, metric) for metric in metrics]
            shown = ["" if value is None else f"{float(value):.2f}" for value in values]
            environment = run.get("environment") or {}
            seconds = (run.get("time") or {}).get("seconds")
            time = "" if seconds is None else f"{seconds:.0f}"
            commit = str(environment.get("commit") or "")[:10]
            lines.append((row.label, str(seed), *shown, time, str(environment.get("device") or ""), commit))
    return lines
