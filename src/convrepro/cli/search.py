"""The command that searches for an architecture: `search`."""

import argparse
import math
import re
from collections.abc import Sequence
from os.path import expanduser
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convrepro.cli.progress import print_failures, status_line
from convrepro.cli.selection import runs_of, seeds_of, whole
from convrepro.config.overrides import key_of, shown, without
from convrepro.errors import ConvReproError
from convrepro.runs import interruption

if TYPE_CHECKING:
    from convrepro.search.finalists import Finalists
    from convrepro.search.search import Search
    from convrepro.search.trial import Trial
    from convrepro.tables import Results, Table

#: What a search sets itself, and how to choose it.
OWN = {
    "conv": "the space has the operators; choose it by --space",
    "seed": "use --seed for the search and --seeds for the networks at its end",
    "budget": "use --budget",
    "budget.holdout": "use --holdout",
    "weights": "networks of a search start from scratch",
    "train": "networks of a search are trained",
    "table": "a search writes a table of its own",
    "row": "a search writes a table of its own",
}
SAMPLERS = ("nsga2", "tpe", "random", "controller")
LATENCY_MODES = ("inference", "exported")
LATENCY_BATCH = 64
#: The options of a worker.
WORKERS: tuple[str, ...] = (
    "space",
    "sampler",
    "trials",
    "max-macs",
    "max-params",
    "max-latency",
    "latency-mode",
    "latency-batch",
    "budget",
    "holdout",
    "halving",
    "seed",
    "finalists",
)
WORKERS += ("uniform", "seeds", "no-final", "name", "out")
NAME = re.compile(r"[A-Za-z0-9][\w-]{0,99}", re.ASCII)


def add(verbs: Any) -> None:
    """Adds the verb of this module to an argument parser."""
    verb = verbs.add_parser(
        "search", help="search which operator in which layer costs least for its accuracy, on held-out training images",
        epilog="Flags of sbatch follow `--` where --submit is given.",
    )  # fmt: skip
    verb.add_argument("overrides", nargs="*", help="overrides for all, such as model=resnet20_cifar data=cifar10")
    verb.add_argument("--space", default="operators", help="a file of conf/search (default: operators)")
    verb.add_argument("--sampler", default="nsga2", help=f"{', '.join(SAMPLERS)} (default: nsga2)")
    verb.add_argument("--trials", type=whole, default=60, help="trials in all, of all workers (default: 60)")
    bound = "at most so many: up to 1 a share of the dense network's, above 1 a number"
    verb.add_argument("--max-macs", type=_number, metavar="N", help=f"multiply-accumulates, {bound}")
    verb.add_argument("--max-params", type=_number, metavar="N", help=f"parameters, {bound}")
    time = "largest share of the dense network's time, measured in turns before a network is trained"
    verb.add_argument("--max-latency", type=_number, metavar="SHARE", help=time)
    mode = "what is timed: inference in the fused form, or exported to onnxruntime (default: inference)"
    verb.add_argument("--latency-mode", default=LATENCY_MODES[0], metavar="MODE", help=mode)
    batch = "images in its batch (default: %(default)s)"
    verb.add_argument("--latency-batch", type=whole, default=LATENCY_BATCH, metavar="N", help=batch)
    verb.add_argument("--budget", default="proxy", help="paper, proxy or smoke (default: proxy)")
    verb.add_argument("--holdout", type=_number, default=0.2, help="share of the training images (default: 0.2)")
    verb.add_argument("--halving", action="store_true", help="end trials that are not among the best half at an epoch")
    verb.add_argument("--seed", type=whole, default=0, help="of the sampler and of the trials' runs (default: 0)")
    verb.add_argument(
        "--finalists", type=whole, default=3, help="networks of the front trained at the end (default: 3)"
    )
    uniform = "networks with one operator everywhere trained at the end, those nearest in MACs (default: all)"
    verb.add_argument("--uniform", type=whole, metavar="N", help=uniform)
    verb.add_argument("--seeds", default="0", help="comma-separated seeds of the training at the end (default: 0)")
    verb.add_argument("--no-final", action="store_true", help="only search; read no test image")
    verb.add_argument("--name", default="", help="the name of the search (default: from what it searches)")
    verb.add_argument("--out", type=expanduser, default="searches", help="the folder for table and pages")
    verb.add_argument(
        "--compare", nargs="+", type=expanduser, metavar="FILE",
        help="only compare searches by different samplers: their files <name>-trials.json",
    )  # fmt: skip
    verb.add_argument("--submit", type=whole, metavar="N", help="queue N workers on a SLURM cluster; do not train here")
    verb.set_defaults(execute=_search, flags=[])


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{shown(text)} must be a number")
    return value


def _search(arguments: argparse.Namespace) -> int:
    if arguments.compare:
        return _compare(arguments)
    _check(arguments)
    import optuna  # noqa: F401 where it is missing, a sentence says so before anything is built

    interruption.listen()
    from convrepro.report.search import front_lines, summary, write_trials
    from convrepro.runs.storage import exclusive
    from convrepro.search.search import work

    search = _asked(arguments)
    search.open()
    print(f"{search.study.folder}: {search.space.size:,} networks; the same command continues the search", flush=True)
    for title, reason in search.space.refused.items():
        print(f"refused: {title}: {reason}", flush=True)
    if arguments.submit is not None:
        return _queue(arguments, search)
    work(search, arguments.trials, _say)
    root = Path(arguments.out).absolute()
    with exclusive(search.study.folder / ".pages.lock"):  # of several workers the last to write has read all trials
        trials = search.study.trials()
        paths = write_trials(search, trials, root)
    print("\n".join([*summary(search, trials), *front_lines(search, trials), *map(str, paths)]), flush=True)
    if running := sum(trial["state"] == "running" for trial in trials):
        print(f"{running} trials are running in other workers; the last worker goes on with the networks at the end")
        return 0
    return 0 if arguments.no_final else _final(arguments, search, trials, root)


def _compare(arguments: argparse.Namespace) -> int:
    """Shows the fronts of searches that are done."""
    from convrepro.report.searches import lines, read, write

    if arguments.overrides:
        raise ConvReproError(f"{arguments.overrides[0]} has no effect with --compare, which searches nothing")
    found = read([Path(file) for file in arguments.compare])
    print("\n".join(lines(found)))
    for path in write(found, Path(arguments.out).absolute()):
        print(path)
    return 0


def _say(line: str) -> None:
    print(line, flush=True)


def _check(arguments: argparse.Namespace) -> None:
    """Raises ConvReproError for an option outside its range, and for an override that the search sets itself."""
    if arguments.sampler not in SAMPLERS:
        raise ConvReproError(f"--sampler {shown(arguments.sampler)} is unknown; valid: {', '.join(SAMPLERS)}")
    if arguments.latency_mode not in LATENCY_MODES:
        mode, valid = shown(arguments.latency_mode), ", ".join(LATENCY_MODES)
        raise ConvReproError(f"--latency-mode {mode} is unknown; valid: {valid}")
    how = (arguments.latency_mode, arguments.latency_batch)
    if arguments.max_latency is None and how != (LATENCY_MODES[0], LATENCY_BATCH):
        raise ConvReproError("--latency-mode and --latency-batch have no effect without --max-latency; give it, too")
    if arguments.flags and arguments.submit is None:
        raise ConvReproError(f"{arguments.flags[0]} is a flag of sbatch, which has no effect without --submit")
    for option in ("trials", "finalists", "submit"):
        if getattr(arguments, option) is not None and getattr(arguments, option) < 1:
            raise ConvReproError(f"--{option} {getattr(arguments, option)} must be at least 1")
    if not 0 < arguments.holdout < 1:
        raise ConvReproError(f"--holdout {arguments.holdout:g} must be above 0 and below 1, such as 0.2")
    if arguments.seed >= 2**32:
        raise ConvReproError(f"--seed {arguments.seed} must be below {2**32}")
    if arguments.name and not NAME.fullmatch(arguments.name):
        raise ConvReproError(f"--name {shown(arguments.name)} must be letters, digits, _ and - alone, at most 100")
    for text in arguments.overrides:
        if reason := OWN.get(key_of(text)) or (OWN["conv"] if key_of(text).startswith("conv.") else None):
            raise ConvReproError(f"{text} has no effect on a search; {reason}")
    seeds_of(arguments.seeds)


def _asked(arguments: argparse.Namespace) -> "Search":
    """The search that the arguments describe; builds its space."""
    from convrepro.config.compose import compose_config
    from convrepro.config.scientific import executes
    from convrepro.runs.protocol import short
    from convrepro.search.latency import Latency
    from convrepro.search.search import Limits, Search, limit
    from convrepro.search.space import Space, definition

    found = definition(arguments.space)
    overrides: Sequence[str] = arguments.overrides
    cfg = compose_config([*overrides, f"budget={arguments.budget}", f"budget.holdout={arguments.holdout}"])
    if cfg.trainer.processes > 1:
        raise ConvReproError(
            f"the trainer asks for {cfg.trainer.processes} processes, but each trial is trained in one; for more at a "
            "time start the same command several times"
        )
    base = tuple(text for text in overrides if not executes(key_of(text)))
    extra = tuple(text for text in without(overrides, "runs") if executes(key_of(text)))
    share, mode = arguments.max_latency, arguments.latency_mode
    latency = None if share is None else Latency(share, mode, arguments.latency_batch)
    space = Space(found, base)
    limits = Limits(
        limit("--max-macs", arguments.max_macs, space.dense.macs, space.least.macs),
        limit("--max-params", arguments.max_params, space.dense.params, space.least.params),
        latency,
    )
    paper, data = (re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_") for text in (cfg.model, cfg.data.name))
    rest = sorted(text for text in base if key_of(text) not in ("model", "data"))
    how = {"base": rest, "limits": limits.bounds, "budget": arguments.budget, "holdout": arguments.holdout}
    how |= {"latency": str(latency)} if latency else {}
    digest = short({**how, "halving": arguments.halving, "space": found.model_dump()})
    name = arguments.name or f"{data}_{found.name}_{arguments.sampler}_seed{arguments.seed}_{digest}"
    return Search(
        name=f"{paper}/{name}",
        space=space,
        limits=limits,
        sampler=arguments.sampler,
        seed=arguments.seed,
        budget=arguments.budget,
        holdout=arguments.holdout,
        halves=arguments.halving,
        extra=extra,
        runs=runs_of(overrides).absolute(),
    )


def _queue(arguments: argparse.Namespace, search: "Search") -> int:
    """Submits workers, each of which executes this command."""
    from convrepro.cluster.scripts import Shape
    from convrepro.cluster.site import load_site
    from convrepro.cluster.workers import submit_workers

    words = ["search", *arguments.overrides]
    for option in WORKERS:
        value = getattr(arguments, option.replace("-", "_"))
        words += [f"--{option}"] if value is True else [f"--{option}={value}"] if value not in (None, False, "") else []
    gpu = search.plain.trainer.accelerator in ("gpu", "cuda")
    shape, site = Shape(1, 1, gpu), load_site(arguments.flags)
    submit_workers(words, arguments.submit, shape, site, search.name, search.study.folder, _say)
    print("the last of them trains the networks at the end; the same command without --submit is one worker more")
    return 0


def _final(arguments: argparse.Namespace, search: "Search", trials: "list[Trial]", root: Path) -> int:
    """Trains the networks of the front and their rivals on all training images, tests them, and shows them."""
    from contextlib import ExitStack

    from convrepro.errors import Busy
    from convrepro.runs.folder import hold
    from convrepro.runs.plan import plan
    from convrepro.search.finalists import finalists, write
    from convrepro.training.runner import run_jobs, validate

    chosen = finalists(search, trials, arguments.finalists, arguments.uniform)
    with ExitStack() as stack:
        try:
            stack.enter_context(hold(search.study.folder / "final"))
        except Busy:
            print("another worker trains the networks at the end")
            return 0
        table = write(search, chosen, seeds_of(arguments.seeds), root)
        print(f"{root / table.name}.yaml; other commands find it with CONVREPRO_TABLES={arguments.out}", flush=True)
        jobs = plan(
            table, budget=arguments.budget, rows=(), seeds=table.seeds, extra=list(search.extra), runs=search.runs
        )
        validate(jobs, status_line)
        results, failures = run_jobs(jobs, _say)
        _show(search, trials, chosen, table, results, root)
    return print_failures(failures)


def _show(
    search: "Search", trials: "list[Trial]", chosen: "Finalists", table: "Table", results: "Results", root: Path
) -> None:
    from convrepro.evidence.collect import collect
    from convrepro.evidence.statics import count_table
    from convrepro.report.search import as_text, lines, write

    statics = count_table(table, status_line)
    print(str(collect(table, search.runs, statics, root)).splitlines()[0])
    found = lines(table, statics, results, chosen)
    print(as_text(found))
    for path in write(search, trials, table, found, chosen, root):
        print(path)
