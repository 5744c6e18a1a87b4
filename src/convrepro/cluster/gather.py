"""Gathers the results of a submission: prints its table, names the runs without a result, and collects evidence."""

from collections.abc import Callable
from pathlib import Path

from convrepro.cluster import slurm
from convrepro.cluster.manifest import Submission, submissions
from convrepro.cluster.status import counts, survey, unfinished
from convrepro.config.paths import REPRODUCTIONS
from convrepro.errors import ConvReproError
from convrepro.evidence.collect import collect
from convrepro.evidence.statics import count_table
from convrepro.runs.folder import state
from convrepro.runs.plan import plan
from convrepro.runs.result import Result
from convrepro.tables import load_table, render_table

#: Budgets whose runs may be evidence.
EVIDENCE = ("paper", "proxy")


def gather(manifest: Path, echo: Callable[[str], None], root: Path = REPRODUCTIONS) -> int:
    """Prints the table with the results of the submission's runs, then each run without a result and the reason.

    At the budgets `paper` and `proxy`, `gather` also collects the results into the table's evidence, and prints which
    runs were refused, or why the evidence cannot be written. Returns 1 where a run has no result, else 0.
    """
    submission = Submission(manifest.resolve().parent)
    request = submission.request
    runs = submission.folder.parents[3]
    table = load_table(request.table, root)
    rows, seeds = (list(dict.fromkeys(values)) for values in zip(*request.runs, strict=True))
    planned = plan(table, budget=request.budget, rows=rows, seeds=seeds, extra=request.overrides, runs=runs)
    jobs = [job for job in planned if (job.row.id, job.identity.seed) in request.runs]
    queue, reason = slurm.try_queue()
    if reason:
        echo(reason)
    states = survey(jobs, submissions(submission.folder.parent), queue)
    results: dict[str, dict[int, Result]] = {}
    for job in jobs:
        if result := state(job.folder).result:
            results.setdefault(job.row.id, {})[job.identity.seed] = result
    statics = count_table(table, lambda row: None)
    echo(render_table(table, statics, results))
    echo(counts(states))
    missing = unfinished(states)
    for line in missing:
        echo(f"no result: {line}")
    if request.budget in EVIDENCE:
        try:
            echo(str(collect(table, runs, statics, root)))
        except (ConvReproError, OSError) as error:
            echo(f"no evidence was written: {error}")
    return 1 if missing else 0
