"""Commands that train: `train` for one run or a sweep, `run` for the rows and seeds of a table."""

import argparse
from typing import Any

from convrepro.cli.progress import print_failures, status_line
from convrepro.cli.selection import add_selection, each_table, selected
from convrepro.errors import ConvReproError
from convrepro.runs import interruption

#: What `train --info` can print.
INFO = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")


def add(verbs: Any) -> None:
    """Adds the verbs of this module to an argument parser."""
    verb = verbs.add_parser("train", help="train one network: any timm model with any operator")
    verb.add_argument("overrides", nargs="*", help="such as model=resnet18 conv=hetconv conv.p=4 data=cifar10")
    verb.add_argument("-m", "--multirun", action="store_true", help="train a network for each comma-separated value")
    what = "print the composed configuration without training: the run's (job, the default), Hydra's own, or all"
    verb.add_argument("--cfg", choices=("job", "hydra", "all"), help=what)
    verb.add_argument("--resolve", action="store_true", help="with --cfg hydra or all: put in what ${...} stands for")
    what = "print what Hydra knows: searchpath, defaults, defaults-tree, plugins, config or all (the default)"
    verb.add_argument("--info", choices=INFO, help=what)
    verb.add_argument("--budget", default="", help="the same as budget=: paper, proxy or smoke")
    verb.add_argument("-sc", "--shell-completion", nargs="?", const="", help="say how completion is switched on")
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

    if arguments.shell_completion is not None:
        from convrepro.cli.completion import SWITCH

        raise ConvReproError(f"all of convrepro's commands are completed, in bash and zsh, after {SWITCH}")
    if arguments.resolve and not arguments.cfg:
        raise ConvReproError("--resolve has no effect without --cfg; give both")
    overrides = [*arguments.overrides, *([f"budget={arguments.budget}"] if arguments.budget else [])]
    if arguments.cfg or arguments.info:
        return _print_configuration(arguments, overrides)
    if arguments.multirun:
        from convrepro.training.sweep import sweep

        return sweep(overrides)
    cfg = compose_config(overrides)
    interruption.listen()
    from convrepro.training.run import run

    run(cfg, overrides)
    return 0


def _print_configuration(arguments: argparse.Namespace, overrides: list[str]) -> int:
    """Prints what is composed, of a sweep the configuration of each of its members, without training."""
    from convrepro.config.compose import compose_config, print_info, print_whole
    from convrepro.training.sweep import members

    each = members(overrides) if arguments.multirun else [overrides]
    for number, words in enumerate(each):
        cfg = compose_config(words)
        if arguments.multirun:
            print(*["---"] * bool(number), f"# {' '.join(words)}", sep="\n")
        if arguments.info:
            print_info(words, arguments.info)
        elif arguments.cfg == "job":
            import yaml

            print(yaml.safe_dump(cfg.model_dump(), sort_keys=False), end="")
        else:
            print_whole(words, arguments.cfg, resolve=arguments.resolve)
    return 0


def _run(arguments: argparse.Namespace) -> int:
    tables = [selected(part) for part in each_table(arguments)]
    every = [job for _, jobs in tables for job in jobs]
    interruption.listen()
    from convrepro.evidence.statics import count_table
    from convrepro.tables import render_table
    from convrepro.training.runner import check_processes, run_jobs, validate

    validate(every, status_line)
    if arguments.dry_run:
        print("\n".join(job.line for job in every), flush=True)
        check_processes(every)
        return 0
    failures: dict[str, str] = {}
    for table, jobs in tables:
        results, failed = run_jobs(jobs, print)
        failures |= failed
        print(render_table(table, count_table(table, status_line), results))
    return print_failures(failures)
