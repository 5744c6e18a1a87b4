"""What the page tells besides the tables: how fast the operators are, and in which networks they work."""

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from convrepro.config.paths import REPRODUCTIONS
from convrepro.evidence.coverage_record import Record
from convrepro.evidence.speed_record import PLOT_FILE, Speed, grid
from convrepro.report import coverage
from convrepro.report.html.inline import inline_svg
from convrepro.report.plots import draw
from convrepro.report.plots.files import SPEEDS, picture
from convrepro.report.plots.speeds import speeds
from convrepro.report.speed_page import sections
from convrepro.tables.markdown import Grid


@dataclass(frozen=True)
class Part:
    """A section of the page: its words, its pictures (description and SVG), and its tables.

    A table is its name, its titles and its lines; `items` is a numbered list below, to which cells refer.
    """

    anchor: str
    title: str
    words: str
    tables: tuple[tuple[str, tuple[str, ...], tuple[tuple[str, ...], ...]], ...]
    pictures: tuple[tuple[str, Markup], ...] = ()
    items: tuple[str, ...] = ()


def speed_part(measured: Sequence[Speed]) -> Part:
    """The speeds of operators and networks on a CPU."""
    words = (
        "Time on a CPU as a share of the dense network's, timed in turns with it; below 1 is faster. Realised: the "
        "speed-up as a share of the one that the multiply-accumulates promise."
    )
    tables = tuple(_table(title, grid(found, column)) for title, column, found in sections(measured))
    figure = speeds(measured, SPEEDS)
    drawn = (
        ((draw.describe(figure), inline_svg(picture(figure, REPRODUCTIONS / PLOT_FILE), "speed")),) if figure else ()
    )
    return Part("speed", "Speed", words, tables, drawn)


def coverage_part(record: Record) -> Part:
    """Which operator works in which network."""
    networks, reasons = coverage.by_network(record)
    words = (
        f"Each operator in the smallest network of each family. {coverage.totals(record)} works (n): n layers "
        "are replaced and train; refused [n]: a layer cannot be replaced, for the reason with this number; keep (m): m "
        "layers are replaced where such layers are kept; a dash: the operator is for no layer of this network."
    )
    tables = (_table("Operators", coverage.by_operator(record)), _table("Networks", networks))
    return Part("coverage", "Coverage", words, tables, items=tuple(reasons))


def _table(name: str, table: Grid) -> tuple[str, tuple[str, ...], tuple[tuple[str, ...], ...]]:
    header, lines = table
    return name, tuple(f"{group}: {title}" if group else title for group, title in header), tuple(map(tuple, lines))
