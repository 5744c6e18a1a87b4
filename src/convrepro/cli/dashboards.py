"""Commands for W&B: dashboard, sync. Both end once the server has not answered for `logger.timeout` seconds."""

import argparse
import os
import sys
from os.path import expanduser
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convrepro.cli.progress import status_line
from convrepro.cli.selection import add_runs_folder, each_table, tables_of_papers
from convrepro.errors import ConvReproError

if TYPE_CHECKING:
    from convrepro.report.dashboards.workspace import View
    from convrepro.tables import Results, Statics, Table
    from convrepro.tracking.sync import Server


def add(verbs: Any) -> None:
    """Add the verbs of this module to an argument parser."""
    verb = verbs.add_parser("dashboard", help="a W&B workspace for a table, a report for a paper")
    verb.add_argument("what", help="a table such as hetconv/table1, or a paper such as hetconv")
    verb.add_argument("overrides", nargs="*", help="where to, such as logger.project=mine logger.entity=team")
    verb.add_argument("--budget", default="paper", help="the runs of this budget: paper, proxy or smoke")
    verb.add_argument("--json", type=expanduser, default="", help="write it to this file, without a server")
    verb.add_argument("--from-results", action="store_true", help="write the runs too, from result.json and evidence")
    add_runs_folder(verb)
    verb.set_defaults(execute=_dashboard)

    verb = verbs.add_parser("sync", help="send the offline runs of tables to W&B, and nothing twice")
    verb.add_argument("table", help="a table, such as hetconv/table1; a paper, such as hetconv; or all")
    what = "more tables, and where to, such as logger.project=mine logger.entity=team"
    verb.add_argument("overrides", nargs="*", help=what)
    add_runs_folder(verb)
    verb.set_defaults(execute=_sync)


def _dashboard(arguments: argparse.Namespace) -> int:
    from convrepro.config.compose import choices, compose_config

    tables = tables_of_papers([arguments.what])
    if arguments.budget not in choices("budget"):
        raise ConvReproError(f"there is no budget {arguments.budget!r}; valid: {', '.join(choices('budget'))}")
    try:
        from convrepro.report.dashboards import workspace  # noqa: F401
    except ModuleNotFoundError as missing:
        raise ConvReproError(f"a dashboard needs {missing.name}; `pip install 'convrepro[dashboard]'`") from missing
    from convrepro.tracking.logger import offline_without_key
    from convrepro.tracking.sync import Server

    logger = compose_config(arguments.overrides).logger.model_dump()
    mode = offline_without_key(logger.get("mode", "disabled"))
    here = f"W&B is {mode} here (there is no API key, or a setting says so)"
    if arguments.from_results and (arguments.json or mode != "online"):
        reason = "it cannot go with --json" if arguments.json else here
        raise ConvReproError(f"--from-results writes to a W&B server; {reason}")
    if mode == "online" and not arguments.json:
        with Server(logger) as server:
            print(_saved(arguments, tables, server))
        return 0
    view = _view(arguments, tables)
    print(view.write(Path(arguments.json or arguments.runs / arguments.what / "dashboard.json")))
    if not arguments.json:
        print(f"{here}, so the dashboard is not saved to a server", file=sys.stderr)
    return 0


def _saved(arguments: argparse.Namespace, tables: "list[Table]", server: "Server") -> str:
    """Write what the words ask for to the server; returns the dashboard's address."""
    from convrepro.report.dashboards.refill import regenerate

    for table in tables if arguments.from_results else ():
        print(f"{table.name}: {regenerate(table, arguments.runs, server, print)}")
    return _view(arguments, tables, server).save(server)


def _view(arguments: argparse.Namespace, tables: "list[Table]", server: "Server | None" = None) -> "View":
    from convrepro.report.dashboards.workspace import report, workspace

    if "/" in arguments.what:
        return workspace(tables[0], arguments.budget)
    return report(arguments.what, tables, arguments.budget, _evidence, server)


def _evidence(table: "Table") -> "tuple[Statics, Results]":
    from convrepro.evidence.statics import at_hand
    from convrepro.evidence.store import load_evidence

    return at_hand(table, status_line), load_evidence(table)[1]


def _sync(arguments: argparse.Namespace) -> int:
    from convrepro.config.compose import compose_config

    tables = each_table(arguments)
    logger = compose_config(tables[0].overrides).logger.model_dump()
    if logger["name"] == "none":
        raise ConvReproError("logger=none has no W&B project to send runs to; leave it out")
    os.environ["WANDB_MODE"] = "online"  # for this command, whatever mode the runs use
    from convrepro.tracking.sync import sync

    failed = 0
    for part in tables:
        outcome = sync(part.table, arguments.runs, logger, print)
        print(f"{part.table}: {outcome.counts}" if len(tables) > 1 else outcome.counts)
        failed += len(outcome.failed)
    return 1 if failed else 0
