"""Commands that write what was found: collect, report."""

import argparse
import os
from typing import Any

from convrepro.commands.look import status_line


def add(verbs: Any) -> None:
    """Add the verbs of this module to an argument parser's."""
    verb = verbs.add_parser("collect", help="gather finished runs at budget=paper into the evidence of a table")
    verb.add_argument("tables", nargs="+")
    verb.add_argument("--runs", default=os.environ.get("CONVREPRO_RUNS", "runs"), help="where the run folders are")
    verb.set_defaults(execute=_collect)

    verb = verbs.add_parser("report", help="write the papers' README pages and the scoreboard from the evidence")
    verb.add_argument("papers", nargs="*", help="default: all")
    verb.add_argument("--audit", action="store_true", help="write AUDIT.md instead: every static value, recounted")
    verb.set_defaults(execute=_report)


def _collect(arguments: argparse.Namespace) -> int:
    from pathlib import Path

    from convrepro.evidence import collect
    from convrepro.statics import count_table
    from convrepro.tables import load_table

    for name in arguments.tables:
        table = load_table(name)
        print(collect(table, Path(arguments.runs), count_table(table, status_line)))
    return 0


def _report(arguments: argparse.Namespace) -> int:
    if arguments.audit:
        from convrepro.audit import write_audit
        from convrepro.statics import row_count

        print(write_audit(row_count))
        return 0
    from convrepro.evidence import report, write_scoreboard
    from convrepro.statics import count_table
    from convrepro.tables import list_papers

    counted = {}

    def count(table):
        if table.name not in counted:
            counted[table.name] = count_table(table, status_line)
        return counted[table.name]

    for paper in arguments.papers or list_papers():
        print(report(paper, count))
    print(write_scoreboard(count))
    return 0
