"""Commands that write evidence and pages: `collect`, `report`."""

import argparse
from collections.abc import Sequence
from os.path import expanduser
from typing import TYPE_CHECKING, Any

from convrepro.cli.progress import status_line
from convrepro.cli.selection import add_runs_folder, load_tables
from convrepro.config.paths import REPRODUCTIONS, ROOT
from convrepro.errors import ConvReproError

if TYPE_CHECKING:
    from convrepro.tables import Statics, Table

PAGE = "convrepro.html"


def add(verbs: Any) -> None:
    """Adds the verbs of this module to an argument parser."""
    verb = verbs.add_parser("collect", help="collect finished runs at budgets paper and proxy into a table's evidence")
    verb.add_argument("tables", nargs="+", help="tables, such as hetconv/table1; papers, such as hetconv; or all")
    add_runs_folder(verb)
    verb.set_defaults(execute=_collect)

    verb = verbs.add_parser("report", help="write the papers' README pages and the scoreboard from the evidence")
    verb.add_argument("names", nargs="*", metavar="PAPER|PAPER/TABLE", help="papers or tables (default: all papers)")
    verb.add_argument("--plots", action="store_true", help="draw the plots as well; of a table, draw only its plots")
    verb.add_argument("--png", action="store_true", help="with --plots: write PNG files beside the SVG files")
    verb.add_argument(
        "--html",
        type=expanduser,
        nargs="?",
        const=PAGE,
        metavar="FILE",
        help=f"write one HTML page instead ({PAGE})",
    )
    verb.add_argument("--audit", action="store_true", help="write AUDIT.md instead: every static value, recounted")
    verb.add_argument("--speed", action="store_true", help="write SPEED.md, its plot and GPU.md instead, from records")
    verb.set_defaults(execute=_report)


def _collect(arguments: argparse.Namespace) -> int:
    from convrepro.evidence.store import read_rows

    tables = load_tables(arguments.tables)
    for table in tables:  # all of them before the first is written
        read_rows(table.name, REPRODUCTIONS)

    from convrepro.evidence.collect import collect
    from convrepro.evidence.statics import count_tables

    statics = count_tables(tables, status_line)
    for table in tables:
        print(collect(table, arguments.runs, statics[table.name]))
    return 0


def _report(arguments: argparse.Namespace) -> int:
    if arguments.png and not arguments.plots:
        raise ConvReproError("--png has no effect without --plots; give both")
    if arguments.audit:
        from convrepro.evidence.counts import row_count
        from convrepro.report.audit import write_audit

        print(write_audit(row_count))
        return 0
    if arguments.speed:
        from convrepro.evidence.speed_record import merged, records
        from convrepro.report import gpu_page, speed_page
        from convrepro.report.plots.files import write_speeds

        for path in (speed_page.write(), gpu_page.write(), *write_speeds(merged(records()))):
            print(path)
        return 0
    from convrepro.report.papers import report, write_scoreboard
    from convrepro.tables import list_papers

    names = arguments.names or list_papers()
    tables = load_tables(names)
    if arguments.html:
        return _page(tables, arguments.html, whole=not arguments.names)
    papers = [name for name in names if "/" not in name]
    if arguments.plots:
        _plots(tables, whole=not arguments.names, png=arguments.png)
    elif len(papers) < len(names):
        raise ConvReproError("pages are of whole papers; name the paper, or use --plots or --html for a single table")
    for paper in papers:
        print(report(paper, _count))
    if papers and REPRODUCTIONS.parent == ROOT:
        print(write_scoreboard(_count))
    return 0


def _count(table: "Table") -> "Statics":
    from convrepro.evidence.statics import at_hand

    return at_hand(table, status_line)


def _plots(tables: Sequence["Table"], whole: bool, png: bool) -> None:
    from convrepro.evidence.speed_record import merged, of_table, records
    from convrepro.evidence.store import load_evidence
    from convrepro.report.plots.files import write_overview, write_plots

    speeds = merged(records())
    for table in tables:
        timed = of_table(table.name, speeds)
        for path in write_plots(table, _count(table), load_evidence(table)[1], timed=timed, png=png):
            print(path)
    if whole:
        for path in write_overview(((table, _count(table)) for table in tables), png=png):
            print(path)


def _page(tables: Sequence["Table"], file: str, whole: bool) -> int:
    from pathlib import Path

    from convrepro.evidence.coverage_record import RECORD, read_record
    from convrepro.evidence.speed_record import merged, of_table, records
    from convrepro.evidence.store import load_evidence, load_proxies
    from convrepro.report.html import Entry, coverage_part, render_page, speed_part

    path = Path(file)
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise ConvReproError(f"{path} cannot be written; give a file in a folder that exists")
    speeds = merged(records())
    entries = [
        Entry(table, _count(table), load_evidence(table)[1], load_proxies(table), of_table(table.name, speeds))
        for table in tables
    ]
    parts = [speed_part(speeds)] if whole and speeds else []
    if whole and RECORD.exists():
        parts.append(coverage_part(read_record()))
    path.write_text(render_page(entries, parts), encoding="utf-8")
    print(path)
    return 0
