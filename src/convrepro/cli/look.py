"""Commands that list, show and count: `list`, `show`, `count`, `coverage`."""

import argparse
import sys
from os.path import expanduser
from typing import Any

from convrepro.cli.progress import status_line
from convrepro.cli.selection import comma_separated, describes_network, load_tables
from convrepro.errors import ConvReproError

LISTS = ("tables", "models", "convs", "data", "recipes", "budgets", "trainers")


def add(verbs: Any) -> None:
    """Adds the verbs of this module to an argument parser."""
    verb = verbs.add_parser("list", help=f"list what can be chosen: {', '.join(LISTS)}")
    verb.add_argument("what", nargs="?", default="tables", choices=LISTS)
    verb.add_argument("pattern", nargs="?", default="*", help="with models: a pattern of names, such as 'resnet*'")
    verb.set_defaults(execute=_list)

    verb = verbs.add_parser("show", help="print tables: published values, sources, collected evidence, verdicts")
    verb.add_argument("tables", nargs="+", help="tables, such as hetconv/table1; papers, such as hetconv; or all")
    verb.set_defaults(execute=_show)

    verb = verbs.add_parser("count", help="count MACs and parameters of tables, or of one network layer by layer")
    what = "tables, papers or all, or overrides such as model=resnet18 conv=hetconv conv.p=4"
    verb.add_argument("what", nargs="+", help=what)
    verb.set_defaults(execute=_count)

    verb = verbs.add_parser("coverage", help="try every operator in a network of each family, and record what works")
    verb.add_argument("--models", default="", help="comma-separated patterns of other networks, such as resnet18,vgg*")
    verb.add_argument("--convs", default="", help="comma-separated operators (default: all)")
    out = "the record, beside which COVERAGE.md is written (default: reproductions/coverage.json)"
    verb.add_argument("--out", type=expanduser, default="", help=out)
    verb.set_defaults(execute=_coverage)


def _list(arguments: argparse.Namespace) -> int:
    if arguments.what == "tables":
        from convrepro.tables import list_tables, load_table

        broken = []
        for name in list_tables():
            try:
                table = load_table(name)
            except ConvReproError as error:
                broken.append(str(error))
                continue
            print(f"{name:24} {len(table.rows):3} rows  {table.title}")
        for reason in broken:
            print(f"convrepro: {reason}", file=sys.stderr)
        return 2 if broken else 0
    if arguments.what == "models":
        from convrepro.models.sources import list_models

        print("\n".join(list_models(arguments.pattern)))
    else:
        from convrepro.config.compose import choices
        from convrepro.config.plugins import describe

        group = arguments.what.removesuffix("s")
        for name in choices(group):
            print(f"{name:24} {describe(group, name)}")
    return 0


def _show(arguments: argparse.Namespace) -> int:
    from convrepro.evidence.statics import lacking
    from convrepro.evidence.store import load_evidence
    from convrepro.tables import render_table

    for table in load_tables(arguments.tables):
        statics, results = load_evidence(table)
        print(render_table(table, statics, results))
        if rows := lacking(table, statics):
            print(
                f"no count is on record of {len(rows)} rows; `convrepro collect {table.name}` counts and records them"
            )
    return 0


def _count(arguments: argparse.Namespace) -> int:
    if describes_network(arguments.what):
        from convrepro.config.compose import compose_config
        from convrepro.evidence.counts import describe_network

        print(describe_network(compose_config(arguments.what)))
        return 0
    from convrepro.tables import render_table

    tables = load_tables(arguments.what)
    from convrepro.evidence.statics import count_tables

    statics = count_tables(tables, status_line)
    for table in tables:
        print(render_table(table, statics[table.name], {}, static_only=True))
    return 0


def _coverage(arguments: argparse.Namespace) -> int:
    from pathlib import Path

    from convrepro.evidence.coverage import cover, operators
    from convrepro.evidence.coverage_record import RECORD, crashes
    from convrepro.report.coverage import write_page

    path = Path(arguments.out or RECORD)
    configs = operators(comma_separated(arguments.convs))
    crashed = crashes(cover(comma_separated(arguments.models), configs, path))
    write_page(path)
    for line in crashed:
        print(f"crash: {line}", file=sys.stderr)
    return 1 if crashed else 0
