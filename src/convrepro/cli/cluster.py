"""Commands for a SLURM cluster: `submit`, `status`, `resubmit`, `cancel`, and those that the job scripts call."""

import argparse
from collections.abc import Sequence
from contextlib import suppress
from os.path import expanduser
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convrepro.cli.progress import status_line
from convrepro.cli.selection import add_selection, each_table, runs_of, seconds, selected, whole
from convrepro.runs import interruption

if TYPE_CHECKING:
    from convrepro.cluster.manifest import Submission
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
    verb.add_argument("-m", "--multirun", action="store_true", help="submit the table for each comma-separated value")
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
    verb.add_argument("table", help="a table, such as hetconv/table1; a paper, such as hetconv; or all")
    folder = "more tables, and runs=FOLDER where the run folders are not in the usual folder"
    verb.add_argument("overrides", nargs="*", help=folder)
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
    verb.add_argument("--no-collect", action="store_true", help="queue no job that collects the results at the end")
    verb.set_defaults(flags=[], multirun=False)


def _submit(arguments: argparse.Namespace) -> int:
    parts = []
    for part in each_table(arguments):
        runs, overrides = _runs(part)
        for words in _members(overrides) if arguments.multirun else [overrides]:
            member = argparse.Namespace(**{**vars(part), "overrides": words})
            parts.append((member, selected(member, runs)[1], runs))
    _queue_all(parts, arguments.flags)
    return 0


def _resubmit(arguments: argparse.Namespace) -> int:
    parts = []
    flags: Sequence[str] = arguments.flags
    for part in each_table(arguments):
        runs, submitted, jobs = _as_submitted(part)
        flags = flags or (submitted[-1].request.flags if submitted else ())
        parts.append((part, jobs, runs))
    _queue_all(parts, flags)
    return 0


def _members(overrides: Sequence[str]) -> list[list[str]]:
    """The overrides of each member of a sweep, those of how it is executed among them."""
    from convrepro.training.sweep import members

    return members(overrides)


def _queue_all(parts: "Sequence[tuple[argparse.Namespace, list[Job], Path]]", flags: Sequence[str]) -> None:
    """Submits the jobs of several tables, once all of them are valid, and sums up."""
    from convrepro.training.runner import validate

    if len(parts) == 1:
        queue(*parts[0][:2], flags, parts[0][2])
        return
    validate([job for _, jobs, _ in parts for job in jobs], status_line)
    queued = [queue(part, jobs, flags, runs, checked=True) for part, jobs, runs in parts]
    tables = len({part.table for part, _, _ in parts})
    what = "would be queued" if parts and parts[0][0].dry_run else "queued"
    print(f"{tables} tables, {sum(len(jobs) for _, jobs, _ in parts)} runs: {sum(queued)} {what}")


def queue(
    arguments: argparse.Namespace, jobs: "list[Job]", flags: Sequence[str], runs: Path, *, checked: bool = False
) -> int:
    """Submits the jobs of the table that `arguments` name, or shows what it would submit; returns how many.

    `checked` says that the jobs are known to be valid.
    """
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
    how = {"dry_run": arguments.dry_run, "checked": checked, "gathers": not arguments.no_collect}
    return submit(jobs, request, load_site(flags), runs, print, watch=status_line, **how)


def _status(arguments: argparse.Namespace) -> int:
    import sys
    import time

    from rich.console import Console, Group
    from rich.live import Live

    from convrepro.cluster.slurm import try_queue
    from convrepro.cluster.status import ACTIVE, heading, render, survey

    def look() -> Any:
        parts = [(part, *_as_submitted(part)) for part in each_table(arguments)]
        queue, reason = try_queue(patience=())
        note = [f"{reason}; the states are those of the run folders alone"] if reason else []
        shown, going = [], False
        for part, _, submitted, jobs in parts:
            states = survey(jobs, submitted, queue)
            going |= any(state.kind in ACTIVE for state in states.values())
            shown.append(render([*heading(part.table, part.budget, submitted), *note], states))
        return Group(*shown), going

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
    from convrepro.cluster.manifest import home, submissions
    from convrepro.cluster.submission import live_runs

    parts = each_table(arguments)
    everything = slurm.queue()
    for part in parts:
        place = home(_runs(part)[0], part.table)
        queued = [q for q in everything if q.script.is_relative_to(place)]
        for submission in submissions(place):
            submission.note_cancelled(live_runs([submission], queued))
        slurm.cancel(sorted({q.array for q in queued}))
        print(f"{part.table}: {len(queued)} jobs cancelled" if queued else f"{part.table} has no jobs in the queue")
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
    `arguments`. Overrides that no submission has correct those of the newest one of the budget.
    """
    from convrepro.cluster.manifest import home, submissions
    from convrepro.config.overrides import key_of, without
    from convrepro.tables import load_table

    runs, overrides = _runs(arguments)

    table = load_table(arguments.table)
    of_budget = [s for s in submissions(home(runs, table.name)) if arguments.budget in ("", s.request.budget)]
    fitting = [s for s in of_budget if set(overrides) <= set(s.request.overrides)]
    corrects = bool(overrides) and not fitting
    fitting = of_budget if corrects else fitting
    newest = fitting[-1].request if fitting else None
    arguments.budget = newest.budget if newest else arguments.budget or "paper"
    arguments.overrides = list(newest.overrides) if newest else overrides
    wanted = (arguments.budget, tuple(arguments.overrides))
    same = [s for s in fitting if (s.request.budget, s.request.overrides) == wanted]
    if corrects:
        keys = [key_of(text) for text in overrides]
        arguments.overrides = [*without(arguments.overrides, *keys), *overrides]
    runnable = {row.id for row in table.to_run}
    submitted = {(row, seed): None for s in same for row, seed in s.request.runs if row in runnable}
    chosen = bool(arguments.rows or arguments.seeds)
    arguments.rows = arguments.rows or ",".join(dict.fromkeys(row for row, _ in submitted))
    arguments.seeds = arguments.seeds or ",".join(dict.fromkeys(str(seed) for _, seed in submitted))
    _, jobs = selected(arguments, runs)
    return runs, same, [job for job in jobs if chosen or not submitted or (job.row.id, job.identity.seed) in submitted]
