"""Commands for W&B: dashboard, sync."""

import argparse
import os
import sys
from typing import TYPE_CHECKING, Any

from convrepro.cli.progress import status_line
from convrepro.errors import ConvReproError

if TYPE_CHECKING:
    from convrepro.tables import Results, Statics, Table


def add(verbs: Any) -> None:
    """Add the verbs of this module to an argument parser's."""
    verb = verbs.add_parser("dashboard", help="a W&B workspace for a table, a report for a paper")
    verb.add_argument("what", help="a table such as hetconv/table1, or a paper such as hetconv")
    verb.add_argument("overrides", nargs="*", help="where to, such as logger.project=mine logger.entity=team")
    verb.add_argument("--budget", default="paper", help="the runs of this budget: paper, proxy or smoke")
    verb.add_argument("--json", default="", help="write it to this file and ask no server")
    verb.add_argument("--from-results", action="store_true", help="write the runs too, from result.json and evidence")
    verb.add_argument("--runs", default=os.environ.get("CONVREPRO_RUNS", "runs"), help="where the run folders are")
    verb.set_defaults(execute=_dashboard)

    verb = verbs.add_parser("sync", help="send a table's offline runs to W&B; what is there is not sent again")
    verb.add_argument("table")
    verb.add_argument("overrides", nargs="*", help="where to, such as logger.project=mine logger.entity=team")
    verb.add_argument("--runs", default=os.environ.get("CONVREPRO_RUNS", "runs"), help="where the run folders are")
    verb.set_defaults(execute=_sync)


def _dashboard(arguments: argparse.Namespace) -> int:
    from pathlib import Path

    from omegaconf import OmegaConf

    from convrepro.config.compose import choices, compose_config

    tables = _tables(arguments.what)
    if arguments.budget not in choices("budget"):
        raise ConvReproError(f"there is no budget {arguments.budget!r}; valid: {', '.join(choices('budget'))}")
    try:
        from convrepro.report.dashboards import workspace as dashboard
    except ModuleNotFoundError as missing:
        raise ConvReproError(f"a dashboard needs {missing.name}; `pip install 'convrepro[dashboard]'`") from missing
    from convrepro.tracking.logger import offline_without_key
    from convrepro.tracking.sync import Server

    logger = OmegaConf.to_container(compose_config(arguments.overrides).logger)
    mode = offline_without_key(logger.get("mode", "disabled"))
    if arguments.from_results and (arguments.json or mode != "online"):
        reason = "it cannot go with --json" if arguments.json else f"W&B is {mode} here (no API key, or told so)"
        raise ConvReproError(f"--from-results writes to a W&B server; {reason}")
    server = Server(logger) if mode == "online" and not arguments.json else None
    if arguments.from_results:
        from convrepro.report.dashboards.refill import regenerate

        for table in tables:
            print(f"{table.name}: {regenerate(table, Path(arguments.runs), server, print)}")
    if "/" in arguments.what:
        view = dashboard.workspace(tables[0], arguments.budget)
    else:
        view = dashboard.report(arguments.what, tables, arguments.budget, _evidence, server)
    if server:
        print(view.save(server))
        return 0
    print(view.write(Path(arguments.json or Path(arguments.runs) / arguments.what / "dashboard.json")))
    if not arguments.json:
        print(f"W&B is {mode} here (no API key, or told so), so that it is not saved there", file=sys.stderr)
    return 0


def _tables(what: str) -> "list[Table]":
    from convrepro.tables import list_papers, list_tables, load_table

    if "/" in what:
        return [load_table(what)]
    if what not in list_papers():
        raise ConvReproError(f"there is no paper {what!r}; valid: {', '.join(list_papers())}, or a table of one")
    return [load_table(name) for name in list_tables() if name.split("/")[0] == what]


def _evidence(table: "Table") -> "tuple[Statics, Results]":
    from convrepro.evidence.counts import count_table
    from convrepro.evidence.store import load_evidence

    return count_table(table, status_line), load_evidence(table)[1]


def _sync(arguments: argparse.Namespace) -> int:
    from pathlib import Path

    from omegaconf import OmegaConf

    from convrepro.config.compose import compose_config
    from convrepro.tables import load_table

    table = load_table(arguments.table)
    logger = OmegaConf.to_container(compose_config(arguments.overrides).logger)
    if logger["name"] == "none":
        raise ConvReproError("logger=none has no W&B project to send runs to; leave it out")
    os.environ["WANDB_MODE"] = "online"  # of this command, whatever the runs are told
    from convrepro.tracking.sync import sync

    outcome = sync(table.name, Path(arguments.runs), logger, print)
    print(outcome.counts)
    return 1 if outcome.failed else 0
