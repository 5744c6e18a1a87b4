"""Runs the jobs of a plan, one after the other."""

from collections.abc import Callable, Sequence

from convrepro.config.compose import compose_config
from convrepro.config.overrides import without
from convrepro.errors import ConvReproError, Interrupted
from convrepro.runs.folder import ERROR
from convrepro.runs.plan import Job
from convrepro.runs.result import Result
from convrepro.training.run import check, run

Results = dict[str, dict[int, Result]]


def validate(jobs: Sequence[Job], watch: Callable[[str], None]) -> None:
    """Compose each row, build its network and look for its data, so that a bad row stops the table before it starts.

    Runs that differ in their seed and starting weights alone are checked once; `watch` hears how many are.
    """
    distinct = {(job.identity.table, *without(job.overrides, "weights", "seed")): job for job in jobs}
    for done, job in enumerate(distinct.values()):
        watch(f"checked {done} of {len(distinct)} rows")
        try:
            cfg = compose_config(without(job.overrides, "weights"))
            check(cfg)
        except ConvReproError as error:
            raise ConvReproError(f"{job.identity.table}, row {job.row.id}: {error}") from error
    watch("")


def check_processes(jobs: Sequence[Job]) -> None:
    """Raises ConvReproError where a run is of several processes: those that Lightning starts for it would go on with
    the next rows on their own.
    """
    for job in jobs:
        processes = compose_config(job.overrides).trainer.processes
        if processes > 1:
            raise ConvReproError(
                f"the trainer asks for {processes} processes, but `run` trains a table in one; `submit` it, or train "
                "its rows one by one (`run --dry-run` prints their lines)"
            )


def run_jobs(jobs: Sequence[Job], echo: Callable[[str], None]) -> tuple[Results, dict[str, str]]:
    """Run each job; returns results by row and seed, and failures by name.

    A failed row does not stop the rest; an interruption does, and is raised. Raises ConvReproError as
    `check_processes` does.
    """
    check_processes(jobs)
    results: Results = {}
    failures: dict[str, str] = {}
    for number, job in enumerate(jobs, 1):
        echo(f"[{number}/{len(jobs)}] {job.line}")
        try:
            result = run(compose_config(job.overrides), job.overrides, echo, job.table)
            results.setdefault(job.row.id, {})[job.identity.seed] = result
        except Interrupted:
            raise
        except ConvReproError as error:
            failures[job.identity.name] = str(error)
        except Exception as error:
            failures[job.identity.name] = f"{type(error).__name__}: {error} (traceback in {job.folder / ERROR})"
        if job.identity.name in failures:
            echo(f"  failed: {failures[job.identity.name]}")
    return results, failures
