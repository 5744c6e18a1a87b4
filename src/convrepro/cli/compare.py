"""The command that compares operators on one network: `compare`."""

import argparse
import re
from collections.abc import Callable, Sequence
from os.path import expanduser
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convrepro.cli.progress import print_failures, status_line
from convrepro.cli.selection import comma_separated, runs_of, seeds_of, whole
from convrepro.config.overrides import key_of, without
from convrepro.errors import ConvReproError
from convrepro.runs import interruption

if TYPE_CHECKING:
    from convrepro.runs.comparison import Comparison
    from convrepro.runs.plan import Job
    from convrepro.tables import Results, Table

OVERRIDE = re.compile(r"[+~]*[\w.@/]+=")


def add(verbs: Any) -> None:
    """Adds the verb of this module to an argument parser."""
    verb = verbs.add_parser(
        "compare", help="train and measure operators on one network, and show which costs least for its accuracy"
    )
    verb.add_argument("overrides", nargs="*", help="overrides for all, such as model=resnet20_cifar data=cifar10")
    operators = "such as igcv3 'hetconv(p=2,4)' 'low_rank(rank=0.5)'"
    verb.add_argument("--convs", nargs="+", required=True, metavar="OPERATOR", help=operators)
    verb.add_argument("--budget", default="proxy", help="paper, proxy or smoke (default: proxy)")
    verb.add_argument("--seeds", default="0", help="comma-separated seeds (default: 0)")
    verb.add_argument("--from-dense", action="store_true", help="start operators from the dense network's weights")
    verb.add_argument("--thin", action="store_true", help="add dense, narrower networks with the MACs of each operator")
    verb.add_argument("--cost", default="macs", help="what the Pareto front is of: macs, params, ... (default: macs)")
    verb.add_argument(
        "--out", type=expanduser, default="comparisons", help="the folder for table and pages (default: comparisons)"
    )
    modes = "comma-separated modes to time: train, inference, exported; none for no timing"
    verb.add_argument("--modes", default="train,inference,exported", help=modes)
    verb.add_argument("--batch-size", type=whole, default=64, help="images in a batch that is timed (default: 64)")
    verb.add_argument("--threads", type=whole, default=0, help="CPU threads of timing (default: torch's choice)")
    verb.add_argument("--rounds", type=whole, default=7, help="how often each network is timed (default: 7)")
    verb.add_argument("--submit", action="store_true", help="queue the runs on a SLURM cluster; do not train here")
    verb.set_defaults(execute=_compare)


def _compare(arguments: argparse.Namespace) -> int:
    from convrepro.evidence.speed import Setting
    from convrepro.report.comparison import COSTS
    from convrepro.runs.plan import plan

    modes = [mode for mode in comma_separated(arguments.modes) if mode != "none"]
    setting = Setting(arguments.batch_size, arguments.threads, True, arguments.rounds, tuple(modes))
    if arguments.cost not in COSTS:
        raise ConvReproError(f"--cost {arguments.cost!r} is unknown; valid: {', '.join(COSTS)}")
    comparison, extra, refused = _asked(arguments)
    root = Path(arguments.out).absolute()
    table = comparison.write(root)
    runs = runs_of(extra).resolve()
    jobs = plan(
        table, budget=arguments.budget, rows=(), seeds=comparison.seeds, extra=without(extra, "runs"), runs=runs
    )
    print(f"{root / table.name}.yaml; other commands find it with CONVREPRO_TABLES={arguments.out}", flush=True)
    for title, reason in refused.items():
        print(f"refused: {title}: {reason}", flush=True)
    if arguments.submit:
        return _queue(arguments, jobs, without(extra, "runs"), runs, root)

    interruption.listen()
    from convrepro.evidence.comparison import Notes
    from convrepro.training.runner import run_jobs, validate

    validate(jobs, status_line)
    results, failures = run_jobs(jobs, print)
    notes = Notes(table, root, setting, refused)
    notes.measure(print)
    if comparison.starts_trained:
        failures |= _evaluate(jobs, extra, notes.note_converted)
    _show(table, results, notes.record, arguments.cost, root, runs)
    return print_failures(failures)


def _asked(arguments: argparse.Namespace) -> "tuple[Comparison, list[str], dict[str, str]]":
    """The comparison, the overrides that say how to execute it, and the operators that the network cannot have."""
    from convrepro.config.compose import compose_config
    from convrepro.config.scientific import executes
    from convrepro.evidence.counts import count
    from convrepro.evidence.width import thinned
    from convrepro.runs.comparison import Choice, Comparison, operators

    words = [word for word in arguments.convs if not OVERRIDE.match(word)]
    overrides = [*arguments.overrides, *(word for word in arguments.convs if OVERRIDE.match(word))]
    if taken := [text for text in overrides if key_of(text) in ("conv", "seed", "budget", "table", "row")]:
        raise ConvReproError(f"{taken[0]} has no effect on a comparison; use --convs, --seeds and --budget")
    base = tuple(text for text in overrides if not executes(key_of(text)))
    compose_config([*overrides, f"budget={arguments.budget}"])  # what is wrong in them is no operator's fault
    choices: list[Choice] = []
    refused: dict[str, str] = {}
    for choice in operators(words):
        try:
            counted, _ = count(compose_config([*without(base, "weights"), *choice.overrides]))
        except ConvReproError as error:
            refused[choice.title] = str(error)
            continue
        choices.append(choice)
        if arguments.thin:
            try:
                override, title = thinned(compose_config(base), int(counted.total("macs")))
                choices.append(Choice(title, ("conv=standard", override, "weights=null")))
            except ConvReproError as error:
                refused[f"dense, as narrow as {choice.title}"] = str(error)
    if not choices:
        raise ConvReproError(f"no operator fits: {next(iter(refused.values()))}")
    each_once = tuple({choice.id: choice for choice in choices}.values())
    comparison = Comparison(base, each_once, tuple(seeds_of(arguments.seeds)), arguments.from_dense)
    extra = [text for text in overrides if executes(key_of(text))]
    return comparison, extra, refused


def _queue(arguments: argparse.Namespace, jobs: "list[Job]", extra: list[str], runs: Path, root: Path) -> int:
    """Submits the jobs; where their table is, they learn from their environment."""
    import os

    from convrepro.cli.cluster import queue

    os.environ["CONVREPRO_TABLES"] = str(root)
    words = {"table": jobs[0].table.name, "budget": arguments.budget, "overrides": extra}
    queue(argparse.Namespace(**words, dry_run=False, no_collect=False), jobs, (), runs)
    print("once they are done, the same command without --submit measures the speed and shows the comparison")
    return 0


def _evaluate(jobs: "Sequence[Job]", extra: list[str], note: "Callable[[str, int, float], None]") -> dict[str, str]:
    """Evaluates the converted networks as they are before training; returns the failures by name."""
    from convrepro.config.compose import compose_config
    from convrepro.config.overrides import quoted
    from convrepro.runs.result import LAST
    from convrepro.training.run import run

    failures = {}
    for job in jobs:
        if "conv=standard" in job.row.overrides:
            continue
        words = [*job.table.overrides(job.row), *extra, "train=false", f"seed={job.identity.seed}"]
        words += [f"budget={job.identity.budget}", f"runs={quoted(runs_of(extra))}"]
        words += [f"weights={quoted(job.source / LAST)}"] if job.source else []
        try:
            note(job.row.id, job.identity.seed, run(compose_config(words), words)["metrics"]["last"]["top1"])
        except ConvReproError as error:
            failures[f"{job.row.label}, before training"] = str(error)
    return failures


def _show(table: "Table", results: "Results", record: Any, cost: str, root: Path, runs: Path) -> None:
    from convrepro.evidence.collect import collect
    from convrepro.evidence.statics import count_table
    from convrepro.report.comparison import as_text, lines, write

    statics = count_table(table, status_line)
    print(str(collect(table, runs, statics, root)).splitlines()[0])
    found = lines(table, statics, results, record["rows"], record["refused"], cost)
    print(as_text(found))
    for path in write(table, found, record, results, root, cost):
        print(path)
