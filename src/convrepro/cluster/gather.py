"""The end of a submission: its table with what was found, what is missing and why, and the evidence."""

from collections.abc import Callable
from pathlib import Path

from convrepro.cluster import slurm
from convrepro.cluster.manifest import Submission, submissions
from convrepro.cluster.status import counts, survey, unfinished
from convrepro.config.paths import REPRODUCTIONS
from convrepro.errors import ConvReproError
from convrepro.evidence.collect import collect
from convrepro.evidence.counts import count_table
from convrepro.runs.folder import state
from convrepro.runs.plan import plan
from convrepro.tables import load_table, render_table

#: Budgets whose runs may be evidence.
EVIDENCE = ("paper", "proxy")


def gather(manifest: Path, echo: Callable[[str], None], root: Path = REPRODUCTIONS) -> int:
    """Print the table with every result of the submission's runs, then each run that has none, with the reason.

    At the budgets `paper` and `proxy` the results are also collected into the table's evidence; what that refuses, or
    why it cannot be written, is printed. Returns 0, or 1 where a run has no result.
    """
    submission = Submission(manifest.resolve().parent)
    request = submission.request
    runs = submission.folder.parents[3]
    table = load_table(request.table, root)
    rows, seeds = (list(dict.fromkeys(values)) for values in zip(*request.runs, strict=True))
    planned = plan(table, budget=request.budget, rows=rows, seeds=seeds, extra=request.overrides, runs=runs)
    jobs = [job for job in planned if (job.row.id, job.identity.seed) in request.runs]
    standings = survey(jobs, submissions(submission.folder.parent), _queue(echo))
    results: dict[str, dict[int, dict]] = {}
    for job in jobs:
        if result := state(job.folder).result:
            results.setdefault(job.row.id, {})[job.identity.seed] = result
    statics = count_table(table, lambda row: None)
    echo(render_table(table, statics, results))
    echo(counts(standings))
    missing = unfinished(standings)
    for line in missing:
        echo(f"no result: {line}")
    if request.budget in EVIDENCE:
        try:
            echo(str(collect(table, runs, statics, root)))
        except (ConvReproError, OSError) as error:
            echo(f"no evidence was written: {error}")
    return 1 if missing else 0


def _queue(echo: Callable[[str], None]) -> list[slurm.Queued] | None:
    """The queue; None, and a word about it, where Slurm does not answer."""
    try:
        return slurm.queue() if slurm.available() else None
    except ConvReproError as error:
        echo(str(error))
        return None
