"""Commands that train: `train` for one run or a sweep, `run` for the rows and seeds of a table."""

import argparse
from typing import Any

from convrepro.cli.progress import print_failures, status_line
from convrepro.cli.selection import add_selection, selected
from convrepro.runs import interruption


def add(verbs: Any) -> None:
    """Adds the verbs of this module to an argument parser."""
    verb = verbs.add_parser("train", help="train one network: any timm model with any operator")
    verb.add_argument("overrides", nargs="*", help="such as model=resnet18 conv=hetconv conv.p=4 data=cifar10")
    verb.add_argument("-m", "--multirun", action="store_true", help="train a network for each comma-separated value")
    verb.add_argument("--cfg", action="store_true", help="print the composed configuration without training")
    verb.set_defaults(execute=_train)

    verb = verbs.add_parser("run", help="train a table's rows; skips finished runs and resumes interrupted ones")
    add_selection(verb)
    verb.add_argument(
        "--dry-run",
        action="store_true",
        help="check every row, and print the `train` command of each run without training",
    )
    verb.set_defaults(execute=_run)


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
    interruption.listen()
    from convrepro.evidence.counts import count_table
    from convrepro.tables import render_table
    from convrepro.training.runner import check_processes, run_jobs, validate

    validate(jobs)
    if arguments.dry_run:
        print("\n".join(job.line for job in jobs), flush=True)
        check_processes(jobs)
        return 0
    results, failures = run_jobs(jobs, print)
    print(render_table(table, count_table(table, status_line), results))
    return print_failures(failures)
