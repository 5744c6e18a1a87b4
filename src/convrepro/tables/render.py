"""Shows a table with its verdicts: as text for a terminal, or as markdown for a README."""

import io
import re
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby

from convrepro.errors import ConvReproError
from convrepro.tables.markdown import Grid, bullet, escaped, markdown_grid
from convrepro.tables.schema import Claim, Metric, NotMeasured, Row, Source, Table, Trained
from convrepro.tables.verdict import (
    NONE,
    Cell,
    ClaimVerdict,
    Results,
    Statics,
    judge,
    judge_claim,
    row_verdict,
    tally,
)

#: A pattern of cells -> what they mean.
LEGEND = {
    "^~": "`~`: recalled, not verified; shown, but it decides no verdict",
    r"^\(": "`(difference)`: against a recalled value",
    r"± ?[^(]*\(\d+\)$": "`mean ±std (seeds)`",
    r"^(holds|fails) \(.*±": "of a claim `(difference ±error)`: left minus right and its standard error over the seeds",
    "proxy": "`proxy`: fewer epochs or other data than the paper's; not compared with published values",
    "smoke": "`smoke`: a run of seconds; says nothing about accuracy",
}
#: A word in a cell -> its colour; the first that fits.
COLORS = {"static-off": "red", "off by": "red", "fails": "red", "quoted": "dim"}
COLORS |= {"proxy": "yellow", "smoke": "yellow", "partial": "yellow", "unverified": "yellow"}
COLORS |= {"reproduced": "green", "static-ok": "green", "holds": "green", "ok": "green"}

PLAIN_WIDTH = 120


def published_text(cell: Cell) -> str:
    """What the paper prints, recalled values with their mark."""
    if cell.published is None:
        return NONE
    return f"{'' if cell.published.decides else '~'}{cell.published.value}"


def ours_text(cell: Cell) -> str:
    """Our figure; of runs their mean, spread and number."""
    if not cell.runs:
        return cell.ours
    spread = f" ±{cell.spread}" if cell.spread else ""
    label = f"{cell.verdict} " if cell.verdict in ("proxy", "smoke") else ""
    return f"{label}{cell.ours}{spread} ({cell.runs})"


def delta_text(cell: Cell) -> str:
    """Ours minus published, in parentheses against a recalled value; `ok` for the same digits."""
    if cell.verdict == "static-ok":
        return "ok"
    recalled = cell.published is not None and not cell.published.decides
    return f"({cell.delta})" if cell.delta and recalled else cell.delta


def column_titles(metric: Metric, published: bool) -> tuple[str, ...]:
    """The columns of a metric; of one without any published value ours alone."""
    if isinstance(metric, NotMeasured):
        return ("paper",)
    return ("paper", "ours", "Δ") if published else ("ours",)


def _grid(
    table: Table,
    metrics: Iterable[str],
    statics: Statics,
    results: Results,
    *,
    verdicts: bool = True,
    ids: bool = False,
) -> Grid:
    """Header cells as (metric, title), and the lines; a metric without any published value shows ours alone.

    A quoted row that says nothing about these metrics is left out. `verdicts`: whether the last column has them; `ids`:
    whether the second has the rows' ids.
    """
    names = {name: any(row.published.get(name) for row in table.rows) for name in metrics}
    header = [("", "row"), *([("", "id")] if ids else [])]
    for name, published in names.items():
        unit = table.metrics[name].unit
        group = name if unit == "1" else f"{name} ({unit})"
        header += [(group, title) for title in column_titles(table.metrics[name], published)]
    lines = []
    for row in table.rows:
        if row.quoted and not row.published.keys() & names:
            continue
        cells = {name: judge(table, row, table.metrics[name], statics, results) for name in names}
        line = [row.label, *([f"`{row.id}`"] if ids else [])]
        for name, cell in cells.items():
            texts = {"paper": published_text(cell), "ours": ours_text(cell), "Δ": delta_text(cell)}
            line += [texts[title] for title in column_titles(table.metrics[name], names[name])]
        lines.append([*line, row_verdict(table, row, cells)] if verdicts else line)
    return [*header, ("", "verdict")] if verdicts else header, lines


def claim_line(verdict: ClaimVerdict) -> list[str]:
    """A claim, its relation, and what it comes to on our values and on the paper's."""
    error = f" ±{verdict.ours_error}" if verdict.ours_error else ""
    ours = f"{verdict.ours} ({verdict.ours_delta}{error})" if verdict.ours_delta else verdict.ours
    paper = f"{verdict.paper} ({verdict.paper_delta})" if verdict.paper_delta else verdict.paper
    return [verdict.claim.text, _bounds(verdict.claim), ours, f"~{paper}" if verdict.recalled else paper]


def _bounds(claim: Claim) -> str:
    left = f"{claim.left} - {claim.right}" if claim.right else claim.left
    if claim.min_delta is None:
        return f"{claim.metric}: {left} <= {claim.max_delta}"
    if claim.max_delta is None:
        return f"{claim.metric}: {left} >= {claim.min_delta}"
    return f"{claim.metric}: {claim.min_delta} <= {left} <= {claim.max_delta}"


def _claims(table: Table, statics: Statics, results: Results) -> Grid:
    header = [("", title) for title in ("claim", "relation", "ours", "paper")]
    return header, [claim_line(judge_claim(table, c, statics, results)) for c in table.claims]


def legend_of(lines: Iterable[Sequence[str]]) -> list[str]:
    """What the marks mean that are in the cells."""
    cells = [cell for line in lines for cell in line[1:]]
    return [text for mark, text in LEGEND.items() if any(re.search(mark, cell) for cell in cells)]


def describe_source(source: Source) -> str:
    """`hetconv (arXiv 1903.04120), table 1`."""
    number = f"table {source.table}" if isinstance(source.table, int) else source.table
    where = f" (arXiv {source.arxiv}{source.version})" if source.arxiv else ""
    return f"{source.paper}{where}, {number}"


def remarks(table: Table) -> dict[str, list[str]]:
    """What is to be said below a table: heading -> items."""

    def of(word: str) -> list[str]:
        return [f"{row.label}: {getattr(row, word).strip()}" for row in table.rows if getattr(row, word)]

    def of_values(word: str) -> list[str]:
        return [
            f"{row.label}, {name}: {getattr(published, word).strip()}"
            for row in table.rows
            for name, published in row.published.items()
            if getattr(published, word) and name in table.metrics
        ]

    rules: dict[str, list[str]] = {}
    for m in table.metrics.values():
        if isinstance(m, Trained):
            rule = f"within {m.tol} {m.unit}, mean over seeds {list(table.seeds)}, {m.epoch} epoch: {m.why.strip()}"
            rules.setdefault(rule, []).append(m.name)
    not_measured = [f"{m.name}: {m.not_measured}" for m in table.metrics.values() if isinstance(m, NotMeasured)]
    contradicted = [f"{claim.text}: {claim.contradicted}" for claim in table.claims if claim.contradicted]
    parts = {
        "Errata": [*of_values("erratum"), *contradicted],
        "Deviations from the paper": [text.strip() for text in table.deviations],
        "Notes": [*([table.notes.strip()] if table.notes else []), *of("notes"), *of_values("note"), *not_measured],
        "Tolerances": [f"{', '.join(names)} {rule}" for rule, names in rules.items()],
    }
    return {heading: items for heading, items in parts.items() if items}


def render_table(
    table: Table,
    statics: Statics,
    results: Results,
    style: str = "text",
    *,
    static_only: bool = False,
    width: int | None = None,
) -> str:
    """The table with published values, ours, differences and verdicts; claims, errata, deviations and notes below.

    `style`: "text" for a terminal, in its width and colours where the output is one, else plain and `width` columns
    wide; "markdown" for a README; any other raises ConvReproError. `static_only` leaves out what needs training.
    """
    if style not in ("text", "markdown"):
        raise ConvReproError(f"style {style!r} is unknown; valid: text, markdown")
    measured = [name for name, metric in table.metrics.items() if isinstance(metric, Trained)]
    counted = [name for name in table.metrics if name not in measured]
    if static_only:
        kept = tuple(claim for claim in table.claims if claim.metric in counted)
        table = replace(table, metrics={name: table.metrics[name] for name in counted}, claims=kept)
    claims = _claims(table, statics, results)
    if style == "markdown":
        return _markdown(table, _grid(table, table.metrics, statics, results, ids=True), claims)
    main = _grid(table, table.metrics, statics, results)
    terminal = sys.stdout.isatty()
    columns = width or (shutil.get_terminal_size().columns if terminal else PLAIN_WIDTH)
    blocks = [main]
    if _width(main) > columns:
        groups = [counted] if static_only else [measured, counted]
        parts = [part for names in groups for part in _packed(table, names, statics, results, columns)]
        blocks = [_grid(table, names, statics, results) for names in parts]
        if max(map(_width, blocks)) > columns:
            blocks = [_grid(table, names, statics, results, verdicts=False) for names in parts]
            blocks += [_verdicts(main)]
    return _text(table, blocks, claims, columns, terminal)


def _packed(
    table: Table, metrics: Sequence[str], statics: Statics, results: Results, columns: int
) -> Iterator[list[str]]:
    """The metrics in groups, each as large as fits into so many columns; a metric that does not fit is alone."""
    group: list[str] = []
    for name in metrics:
        if group and _width(_grid(table, [*group, name], statics, results)) > columns:
            yield group
            group = []
        group.append(name)
    if group:
        yield group


def _width(grid: Grid) -> int:
    return max(map(len, _plain(grid)))


def _verdicts(grid: Grid) -> Grid:
    """The first and the last column of a grid."""
    header, lines = grid
    return [header[0], header[-1]], [[line[0], line[-1]] for line in lines]


def _plain(grid: Grid, paint: Callable[[str, bool], str] = lambda text, colored: text) -> list[str]:
    """A grid as lines of text, metrics' names centred over their columns; `paint(text, colored)` marks up a cell."""
    header, lines = grid
    titles = [title for _, title in header]
    widths = [max(map(len, column)) for column in zip(titles, *lines, strict=True)]
    groups = [list(members) for _, members in groupby(range(len(header)), key=lambda i: header[i][0] or i)]
    for members in groups:
        widths[members[0]] += max(0, len(header[members[0]][0]) - sum(widths[i] + 2 for i in members) + 2)
    spans = [sum(widths[i] + 2 for i in members) - 2 for members in groups]

    def joined(line: Sequence[str], colored: bool) -> str:
        def cell(i: int) -> str:
            text = line[i].rjust(widths[i]) if header[i][0] else line[i].ljust(widths[i])
            return paint(text, colored and i > 0)

        return "   ".join("  ".join(map(cell, members)) for members in groups)

    over = "   ".join(header[m[0]][0].center(span) for m, span in zip(groups, spans, strict=True))
    rule = "   ".join("─" * span for span in spans)
    return [paint(over, False), joined(titles, False), rule, *(joined(line, True) for line in lines)]


def _markdown(table: Table, main: Grid, claims: Grid) -> str:
    about = escaped(f"{describe_source(table.source)}. {table.question}")
    lines = [f"## {escaped(table.title)}", "", f"`{table.name}`: {about}", ""]
    lines += markdown_grid(main)
    if legend := legend_of([*main[1], *claims[1]]):
        lines += ["", "; ".join(legend) + "."]
    if claims[1]:
        lines += ["", *markdown_grid(claims)]
    for heading, items in remarks(table).items():
        lines += ["", f"**{heading}**", "", *map(bullet, items)]
    return "\n".join(lines) + "\n"


def _text(table: Table, blocks: Sequence[Grid], claims: Grid, columns: int, terminal: bool) -> str:
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.padding import Padding
    from rich.table import Table as RichTable

    def paint(cell: str, colored: bool = True) -> str:
        color = next((c for word, c in COLORS.items() if colored and word in cell), "")
        return f"[{color}]{escape(cell)}[/]" if color else escape(cell)

    written = io.StringIO()
    console = Console(file=written, width=columns, force_terminal=terminal, highlight=False)
    console.print(f"[bold]{escape(table.title)}[/]")
    console.print(f"[dim]{table.name}: {escape(describe_source(table.source))}[/]")
    console.print(escape(table.question))
    for block in blocks:
        console.print()
        for line in _plain(block, paint):
            console.print(line, no_wrap=True, crop=False, overflow="ignore")
    if legend := legend_of([*(line for _, lines in blocks for line in lines), *claims[1]]):
        console.print()
        console.print(*(escape(text.replace("`", "")) for text in legend), sep="\n", style="dim")
    if claims[1]:
        grid = RichTable(*(title for _, title in claims[0]), box=box.SIMPLE_HEAD, pad_edge=False)
        for cells in claims[1]:
            grid.add_row(escape(cells[0]), *map(paint, cells[1:]))
        console.print(grid)
    ids = {"Rows, from the top, as `--rows` and claims name them": [", ".join(row.id for row in table.rows)]}
    for heading, items in {**ids, **remarks(table)}.items():
        console.print(f"\n[bold]{heading}[/]")
        for item in items:
            console.print(Padding(escape(" ".join(item.split())), (0, 0, 0, 2)))
    text = "\n".join(line.rstrip() for line in written.getvalue().splitlines())
    return re.sub(r"\n{3,}", "\n\n", text) + "\n"


def render_scoreboard(groups: Iterable[tuple[str, Iterable[tuple[Table, Statics, Results]]]]) -> str:
    """One markdown line for each group of tables: its rows, and how many cells and claims have each verdict."""
    trained = ("reproduced", "off", "partial", "unverified", "proxy", "smoke", "not run")
    static = {"static-ok": "ok", "static-off": "off", "unverified": "unverified", "not counted": "not counted"}
    lines = []
    for label, entries in groups:
        rows, quoted, counts = 0, 0, {kind: Counter[str]() for kind in ("static", "trained", "claims")}
        for table, statics, results in entries:
            rows += sum(not row.quoted for row in table.rows)
            quoted += sum(row.quoted for row in table.rows)
            for kind, numbers in tally(table, statics, results).items():
                counts[kind].update(numbers)
        lines.append(
            [
                label,
                f"{rows}" + (f" + {quoted} quoted" if quoted else ""),
                _words(counts["static"], static),
                _words(counts["trained"], {k: k for k in trained}),
                _words(counts["claims"], {k: k for k in ("holds", "fails", "unknown")}),
            ]
        )
    header = [("", title) for title in ("", "rows", "counted", "trained", "claims")]
    return "\n".join(markdown_grid((header, lines))) + "\n"


def _words(counts: Mapping[str, int], names: Mapping[str, str]) -> str:
    return ", ".join(f"{counts[key]} {word}" for key, word in names.items() if counts.get(key)) or NONE


def proxies_grid(table: Table, proxies: Mapping[str, Results]) -> Grid:
    """Runs on other data or with fewer epochs, by their label: values only, compared with nothing."""
    metrics = [m for m in table.metrics.values() if isinstance(m, Trained)]
    header = [("", "row"), *(("", f"{label}: {m.name} ({m.unit})") for label in proxies for m in metrics)]

    def line(row: Row) -> list[str]:
        cells = [judge(table, row, m, {}, results) for results in proxies.values() for m in metrics]
        return [row.label, *(ours_text(cell).removeprefix("proxy ") for cell in cells)]

    rows = {runs for results in proxies.values() for runs in results}
    return header, [line(r) for r in table.rows if r.id in rows]


def render_proxies(table: Table, proxies: Mapping[str, Results]) -> str:
    """`proxies_grid` in markdown."""
    return "\n".join(markdown_grid(proxies_grid(table, proxies))) + "\n"
