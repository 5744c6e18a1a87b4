"""Commands that train: one run, a sweep, a table's rows and seeds."""

import argparse
import sys
from typing import TYPE_CHECKING, Any

from convrepro.cli.look import status_line
from convrepro.errors import ConvReproError
from convrepro.runs import interruption

if TYPE_CHECKING:
    from pathlib import Path

    from convrepro.runs.plan import Job
    from convrepro.tables import Table


def add(verbs: Any) -> None:
    """Add the verbs of this module to an argument parser's."""
    verb = verbs.add_parser("train", help="one run: any timm model, any operator")
    verb.add_argument("overrides", nargs="*", help="such as model=resnet18 conv=hetconv conv.p=4 data=cifar10")
    verb.add_argument("-m", "--multirun", action="store_true", help="sweep over comma-separated values")
    verb.add_argument("--cfg", action="store_true", help="print the composed configuration and stop")
    verb.set_defaults(execute=_train)

    verb = verbs.add_parser("run", help="a table's rows and seeds; finished ones are skipped, broken ones resumed")
    add_selection(verb)
    verb.add_argument("--dry-run", action="store_true", help="print the train lines and stop")
    verb.set_defaults(execute=_run)


def add_selection(verb: argparse.ArgumentParser) -> None:
    """The words that choose runs of a table: rows, seeds, budget, overrides for all of them."""
    verb.add_argument("table")
    verb.add_argument("overrides", nargs="*", help="for every row, such as trainer=gpu data.root=/data")
    verb.add_argument("--budget", default="paper", help="paper, proxy or smoke (default: paper)")
    verb.add_argument("--rows", default="", help="some rows only, comma-separated")
    verb.add_argument("--seeds", default="", help="other seeds than the table's, comma-separated")


def selected(arguments: argparse.Namespace, runs: "Path | None" = None) -> "tuple[Table, list[Job]]":
    """The table and the jobs that `add_selection`'s words choose, with folders in `runs` (default: as configured).

    Raises ConvReproError for what does not exist.
    """
    from pathlib import Path

    from convrepro.config.compose import compose_config
    from convrepro.runs.plan import plan
    from convrepro.tables import load_table

    table = load_table(arguments.table)
    runs = runs or Path(compose_config(arguments.overrides).runs)
    seeds = _integers("--seeds", arguments.seeds) or table.seeds
    rows = [row for row in arguments.rows.split(",") if row]
    return table, plan(table, budget=arguments.budget, rows=rows, seeds=seeds, extra=arguments.overrides, runs=runs)


def _train(arguments: argparse.Namespace) -> int:
    from convrepro.config.compose import compose_config

    if arguments.multirun:
        from convrepro.training.sweep import sweep

        return sweep(arguments.overrides)
    cfg = compose_config(arguments.overrides)
    if arguments.cfg:
        import yaml

        print(yaml.safe_dump(cfg.model_dump(), sort_keys=False), end="")
        return 0
    interruption.listen()
    from convrepro.training.run import run

    run(cfg, arguments.overrides)
    return 0


def _run(arguments: argparse.Namespace) -> int:
    table, jobs = selected(arguments)
    if arguments.dry_run:
        print("\n".join(job.line for job in jobs))
        return 0
    interruption.listen()
    from convrepro.evidence.counts import count_table
    from convrepro.tables import render_table
    from convrepro.training.runner import run_jobs, validate

    validate(jobs)
    results, failures = run_jobs(jobs, print)
    print(render_table(table, count_table(table, status_line), results))
    for name, reason in failures.items():
        print(f"failed: {name}: {reason}", file=sys.stderr)
    return 1 if failures else 0


def _integers(option: str, text: str) -> list[int]:
    try:
        return [int(word) for word in text.split(",") if word]
    except ValueError:
        raise ConvReproError(f"{option} {text} must be whole numbers with commas between, such as 0,1,2") from None
