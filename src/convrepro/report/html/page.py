"""Fills the template of the HTML page. The template escapes all texts of tables, evidence and counts."""

from base64 import b64encode
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup

from convrepro.config.paths import REPRODUCTIONS
from convrepro.errors import visible
from convrepro.evidence.speed_record import Speed
from convrepro.report.html.cards import cards
from convrepro.report.html.content import Section, section
from convrepro.report.html.inline import inline_svg
from convrepro.report.html.measurements import Part
from convrepro.report.papers import plot_path
from convrepro.report.plots import draw
from convrepro.report.plots.figures import figures
from convrepro.report.plots.files import OVERVIEW, overview, picture
from convrepro.tables import Results, Statics, Table, tally

HERE = Path(__file__).parent
VERDICTS = {
    "trained": ("reproduced", "off", "partial", "not run", "proxy", "smoke"),
    "counted": ("static-ok", "static-off", "not counted"),
    "either": ("unverified", "quoted"),
    "claims": ("holds", "fails", "unknown"),
}
"""The verdicts by which the page can be filtered."""
BOARD = {
    "static": ("counted", {"static-ok": "ok", "static-off": "off"}),
    "trained": ("trained", {}),
    "claims": ("claims", {"holds": "hold", "fails": "fail"}),
}
"""The columns of the list of tables by kind of verdict: the heading, and shorter names of verdicts."""


@dataclass(frozen=True)
class Entry:
    """A table with our counts and its runs, and the speeds of its rows (`timed`).

    `proxies` are runs that are not compared, by what makes them proxies.
    """

    table: Table
    statics: Statics
    results: Results
    proxies: Mapping[str, Results]
    timed: Sequence[Speed] = ()


def render_page(entries: Iterable[Entry], parts: Sequence[Part] = ()) -> str:
    """Renders the page of these tables, in their order, and of `parts`. The same input gives the same text."""
    entries = list(entries)
    script = (HERE / "page.js").read_text(encoding="utf-8")
    sections = [_section(entry) for entry in entries]
    return template("page.html").render(
        script=Markup(script),
        script_digest=b64encode(sha256(script.encode()).digest()).decode(),
        sections=sections,
        parts=parts,
        cards=cards((entry.table, entry.statics, entry.results) for entry in entries),
        board=_board(entries),
        filters=_filters(sections),
        picture_of_all=_overview(entries),
    )


def template(name: str) -> Template:
    """A template of this folder, with the style of its pages; texts are escaped where they are put in."""
    environment = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: visible(value) if type(value) is str else value,
    )
    environment.globals["style"] = Markup((HERE / "page.css").read_text(encoding="utf-8"))
    return environment.get_template(name)


def _section(entry: Entry) -> Section:
    pictures = []
    for figure in figures(entry.table, entry.statics, entry.results, entry.timed):
        name = f"{entry.table.name.replace('/', '-')}-{figure.kind}"
        drawn = picture(figure, plot_path(entry.table.name, figure.kind))
        pictures.append((draw.describe(figure), inline_svg(drawn, name)))
    return section(entry.table, entry.statics, entry.results, entry.proxies, pictures)


def _overview(entries: Sequence[Entry]) -> tuple[str, Markup] | None:
    figure = overview((entry.table, entry.statics) for entry in entries)
    if not figure or len(entries) < 2:
        return None
    return draw.describe(figure), inline_svg(picture(figure, REPRODUCTIONS / OVERVIEW), "all-costs")


def _board(entries: Sequence[Entry]) -> dict[str, list]:
    """The list of tables: how many values and claims of each table have each verdict that occurs.

    "groups" are headings with their number of columns, "titles" those of the columns, and "lines" hold the name and the
    numbers of each table.
    """
    tallies = [tally(entry.table, entry.statics, entry.results) for entry in entries]
    order = list(dict.fromkeys(verdict for verdicts in VERDICTS.values() for verdict in verdicts))
    columns = {kind: [v for v in order if any(numbers[kind].get(v) for numbers in tallies)] for kind in BOARD}
    lines = [
        (entry.table.name, [sum(not row.quoted for row in entry.table.rows), *_numbers(numbers, columns)])
        for entry, numbers in zip(entries, tallies, strict=True)
    ]
    groups = [(BOARD[kind][0], len(verdicts)) for kind, verdicts in columns.items() if verdicts]
    titles = ["rows", *(BOARD[kind][1].get(verdict, verdict) for kind, found in columns.items() for verdict in found)]
    return {"groups": groups, "titles": titles, "lines": lines}


def _numbers(numbers: Mapping[str, Mapping[str, int]], columns: Mapping[str, Sequence[str]]) -> list[int]:
    return [numbers[kind].get(verdict, 0) for kind, verdicts in columns.items() for verdict in verdicts]


def _filters(sections: Iterable[Section]) -> list[tuple[str, list[tuple[str, int]]]]:
    """The verdicts that occur, by group, each with the number of rows that have it."""
    numbers = Counter(verdict for s in sections for line in (*s.rows, *s.claims) for verdict in line.verdicts)
    groups = ((group, [(v, numbers[v]) for v in verdicts if numbers[v]]) for group, verdicts in VERDICTS.items())
    return [(group, found) for group, found in groups if found]
