"""Commands for a SLURM cluster: `submit`, `status`, `resubmit`, `cancel`, and those that the job scripts call."""

import argparse
from collections.abc import Sequence
from contextlib import suppress
from os.path import expanduser
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convrepro.cli.selection import add_selection, runs_of, seconds, selected, whole
from convrepro.runs import interruption

if TYPE_CHECKING:
    from convrepro.cluster.manifest import Request, Submission
    from convrepro.runs.plan import Job

#: Width of a status that is not printed on a terminal.
PLAIN_WIDTH = 160
AS_SUBMITTED = "arguments that are left out are those of the last submission"


def add(verbs: Any) -> None:
    """Adds the verbs of this module to an argument parser."""
    verb = verbs.add_parser(
        "submit", help="queue a table's runs on a SLURM cluster; skips finished and queued runs",
        epilog="Flags of sbatch follow `--`: convrepro submit hetconv/table1 -- --partition=NAME --time=4:00:00",
    )  # fmt: skip
    _add_submission(verb)
    verb.set_defaults(execute=_submit)

    verb = verbs.add_parser("status", help=f"show the state of each run of a table; {AS_SUBMITTED}")
    add_selection(verb)
    verb.add_argument("--once", action="store_true", help="print once, as without a terminal, and do not watch")
    verb.add_argument(
        "--watch", type=seconds, default=5, metavar="SECONDS", help="seconds between updates (default: 5)"
    )
    verb.set_defaults(execute=_status, budget="")

    verb = verbs.add_parser("resubmit", help=f"queue the missing and the failed runs again; {AS_SUBMITTED}")
    _add_submission(verb)
    verb.set_defaults(execute=_resubmit, budget="")

    verb = verbs.add_parser("cancel", help="remove a table's runs from the queue; `resubmit` continues them")
    verb.add_argument("table", help="a table of a paper, such as hetconv/table1")
    verb.add_argument("overrides", nargs="*", help="runs=FOLDER, where the run folders are not in the usual folder")
    verb.set_defaults(execute=_cancel)

    verb = verbs.add_parser("task", help="(for job scripts) execute one run of a manifest")
    verb.add_argument("manifest", type=lambda text: Path(expanduser(text)))
    verb.add_argument("index", type=whole)
    ended = "the run ended with this exit code: queue it again where another attempt may succeed"
    verb.add_argument("--ended", type=whole, metavar="CODE", help=ended)
    verb.set_defaults(execute=_task)

    verb = verbs.add_parser("gather", help="(for job scripts) print a manifest's results, and collect the evidence")
    verb.add_argument("manifest", type=lambda text: Path(expanduser(text)))
    verb.set_defaults(execute=_gather)


def _add_submission(verb: argparse.ArgumentParser) -> None:
    add_selection(verb)
    verb.add_argument("--dry-run", action="store_true", help="print the manifest and the job scripts without queuing")
    verb.set_defaults(flags=[])


def _submit(arguments: argparse.Namespace) -> int:
    runs, overrides = _runs(arguments)
    arguments.overrides = overrides
    _, jobs = selected(arguments, runs)
    queue(arguments, jobs, arguments.flags, runs)
    return 0


def _resubmit(arguments: argparse.Namespace) -> int:
    runs, submitted, jobs = _as_submitted(arguments)
    flags = arguments.flags or (submitted[-1].request.flags if submitted else ())
    queue(arguments, jobs, flags, runs)
    return 0


def queue(arguments: argparse.Namespace, jobs: "list[Job]", flags: Sequence[str], runs: Path) -> None:
    """Submits the jobs of the table that `arguments` name, or shows what it would submit."""
    from convrepro.cluster.manifest import Request
    from convrepro.cluster.site import load_site
    from convrepro.cluster.submission import submit

    request = Request(
        table=arguments.table,
        budget=arguments.budget,
        runs=tuple((job.row.id, job.identity.seed) for job in jobs),
        overrides=tuple(arguments.overrides),
        flags=tuple(flags),
    )
    submit(jobs, request, load_site(flags), runs, print, dry_run=arguments.dry_run)


def _status(arguments: argparse.Namespace) -> int:
    import sys
    import time

    from rich.console import Console
    from rich.live import Live

    from convrepro.cluster.slurm import try_queue
    from convrepro.cluster.status import ACTIVE, heading, render, survey

    def look() -> Any:
        words = argparse.Namespace(**vars(arguments))
        _, submitted, jobs = _as_submitted(words)
        queue, reason = try_queue(patience=())
        states = survey(jobs, submitted, queue)
        note = [f"{reason}; the states are those of the run folders alone"] if reason else []
        going = any(state.kind in ACTIVE for state in states.values())
        return render([*heading(words.table, words.budget, submitted), *note], states), going

    shown, going = look()
    if arguments.once or not sys.stdout.isatty():
        plain = not sys.stdout.isatty()
        Console(width=PLAIN_WIDTH if plain else None).print(shown, soft_wrap=plain)
        return 0
    with Live(shown, auto_refresh=False) as live, suppress(KeyboardInterrupt):
        while going:
            time.sleep(arguments.watch)
            shown, going = look()
            live.update(shown, refresh=True)
    return 0


def _cancel(arguments: argparse.Namespace) -> int:
    from convrepro.cluster import slurm
    from convrepro.cluster.manifest import home
    from convrepro.tables import load_table

    table = load_table(arguments.table)
    runs, _ = _runs(arguments)
    queued = [q for q in slurm.queue() if q.script.is_relative_to(home(runs, table.name))]
    slurm.cancel(sorted({q.array for q in queued}))
    print(f"{table.name}: {len(queued)} jobs cancelled" if queued else f"{table.name} has no jobs in the queue")
    return 0


def _task(arguments: argparse.Namespace) -> int:
    if arguments.ended is None:
        interruption.listen()
    from convrepro.cluster import task

    if arguments.ended is not None:
        task.ended(arguments.manifest, arguments.index, arguments.ended)
        return 0
    return task.execute(arguments.manifest, arguments.index)


def _gather(arguments: argparse.Namespace) -> int:
    from convrepro.cluster.gather import gather

    return gather(arguments.manifest, print)


def _runs(arguments: argparse.Namespace) -> tuple[Path, list[str]]:
    """The absolute path of the folder with the run folders, and the overrides without `runs=`."""
    from convrepro.config.overrides import without

    return runs_of(arguments.overrides).resolve(), without(arguments.overrides, "runs")


def _as_submitted(arguments: argparse.Namespace) -> "tuple[Path, list[Submission], list[Job]]":
    """The folder with the run folders, the submissions of the same budget and overrides, and the selected jobs.

    Arguments that are left out are taken from the newest submission that agrees with the others, and are put into
    `arguments`.
    """
    from convrepro.cluster.manifest import home, submissions
    from convrepro.tables import load_table

    runs, overrides = _runs(arguments)

    def fits(request: "Request") -> bool:
        return arguments.budget in ("", request.budget) and (not overrides or request.overrides == tuple(overrides))

    table = load_table(arguments.table)
    fitting = [s for s in submissions(home(runs, table.name)) if fits(s.request)]
    newest = fitting[-1].request if fitting else None
    arguments.budget = newest.budget if newest else arguments.budget or "paper"
    arguments.overrides = list(newest.overrides) if newest else overrides
    wanted = (arguments.budget, tuple(arguments.overrides))
    same = [s for s in fitting if (s.request.budget, s.request.overrides) == wanted]
    runnable = {row.id for row in table.to_run}
    submitted = {(row, seed): None for s in same for row, seed in s.request.runs if row in runnable}
    chosen = bool(arguments.rows or arguments.seeds)
    arguments.rows = arguments.rows or ",".join(dict.fromkeys(row for row, _ in submitted))
    arguments.seeds = arguments.seeds or ",".join(dict.fromkeys(str(seed) for _, seed in submitted))
    _, jobs = selected(arguments, runs)
    return runs, same, [job for job in jobs if chosen or not submitted or (job.row.id, job.identity.seed) in submitted]
