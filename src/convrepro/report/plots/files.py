"""Writes figures to files: `reproductions/<paper>/plots/<table>-<kind>.svg`, and those of all tables."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from convrepro.config.paths import REPRODUCTIONS
from convrepro.evidence.speed_record import PLOT_FILE, Speed
from convrepro.report.papers import PLOTS, plot_path
from convrepro.report.plots import draw
from convrepro.report.plots.figures import costs, figures
from convrepro.report.plots.kinds import Figure
from convrepro.report.plots.speeds import speeds
from convrepro.tables import Results, Statics, Table

OVERVIEW = "costs.svg"
SPEEDS = "Time against multiply-accumulates, operator by operator"
"""The title of the figure of speeds."""
LABEL_FROM = 0.05
"""The share by which a cost must differ to have a label in the overview."""


def write_plots(
    table: Table,
    statics: Statics,
    results: Results,
    root: Path = REPRODUCTIONS,
    *,
    timed: Sequence[Speed] = (),
    png: bool = False,
) -> list[Path]:
    """Writes the table's figures as SVG, with `png` as PNG too, and removes files of figures that it no longer has.

    `timed` are the speeds of the table's rows.

    Returns the paths of the written files.
    """
    found = {figure.kind: figure for figure in figures(table, statics, results, timed)}
    written = []
    for kind in PLOTS:
        path = plot_path(table.name, kind, root)
        if kind in found:
            written += _write(found[kind], path, png)
        else:
            path.unlink(missing_ok=True)
            path.with_suffix(".png").unlink(missing_ok=True)
    return written


def write_overview(
    counted: Iterable[tuple[Table, Statics]], root: Path = REPRODUCTIONS, *, png: bool = False
) -> list[Path]:
    """Writes the figure of the costs in all tables; returns the paths of the written files."""
    figure = overview(counted)
    return _write(figure, root / OVERVIEW, png) if figure else []


def write_speeds(found: Iterable[Speed], root: Path = REPRODUCTIONS) -> list[Path]:
    """Writes the figure of time against MACs; returns the paths of the written files."""
    figure = speeds(found, SPEEDS)
    return _write(figure, root / PLOT_FILE, png=False) if figure else []


def overview(counted: Iterable[tuple[Table, Statics]]) -> Figure | None:
    """The figure of the costs of several tables, independent of their order; None where there are too few costs."""
    return costs(sorted(counted, key=lambda pair: pair[0].name), "Published against recomputed costs", LABEL_FROM)


def picture(figure: Figure, path: Path) -> str:
    """The figure as SVG: what `path` has, where that is a drawing of the same values; else drawn anew."""
    if path.exists() and read_digest(path) == figure.digest:
        return path.read_text(encoding="utf-8")
    return draw.svg(figure)


def read_digest(path: Path) -> str | None:
    """The digest of the figure in an SVG file; None where the file contains none."""
    found = re.search(r"<dc:identifier>([0-9a-f]{16})</dc:identifier>", path.read_text(encoding="utf-8"))
    return found[1] if found else None


def _write(figure: Figure, path: Path, png: bool) -> list[Path]:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(draw.svg(figure), encoding="utf-8")
    if not png:
        return [path]
    picture = path.with_suffix(".png")
    picture.write_bytes(draw.png(figure))
    return [path, picture]
