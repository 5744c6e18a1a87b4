"""Submits the jobs of a table as job arrays: finds out what is left to do, orders it, and queues it."""

import shutil
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from convrepro.cluster import slurm
from convrepro.cluster.manifest import Entry, Request, Submission, home, next_number, submissions, write
from convrepro.cluster.scripts import Array, Shape, array_script, collect_script, first_run
from convrepro.cluster.site import Site
from convrepro.config.compose import compose_config
from convrepro.config.overrides import without
from convrepro.errors import ConvReproError
from convrepro.runs.environment import commit
from convrepro.runs.finished import is_done
from convrepro.runs.plan import Job
from convrepro.runs.storage import exclusive

#: The limit on job arrays in a dry run without Slurm: Slurm's default for MaxArraySize.
DEFAULT_ARRAY_SIZE = 1001
COLLECT = "collect.sh"


@dataclass(frozen=True)
class Left:
    """What is left for a submission: the jobs to queue, the number of finished ones, and the queued ones by folder."""

    jobs: list[Job]
    finished: int
    live: Mapping[Path, slurm.Queued]


def live_runs(submitted: Sequence[Submission], queue: Sequence[slurm.Queued]) -> dict[Path, slurm.Queued]:
    """The runs of submissions that are in the queue, by run folder."""
    known = {submission.folder: submission for submission in submitted}
    found = {}
    for queued in queue:
        submission, first = known.get(queued.script.parent), first_run(queued.script)
        if submission and first is not None and queued.position is not None:
            found[Path(submission.entries[first + queued.position].folder)] = queued
    return found


def submit(
    jobs: Sequence[Job],
    request: Request,
    site: Site,
    runs: Path,
    echo: Callable[[str], None],
    *,
    dry_run: bool,
    checked: bool = False,
    gathers: bool = True,
    watch: Callable[[str], None] = lambda _: None,
) -> int:
    """Queues those of `jobs` that are neither finished nor queued, as job arrays, and, if it `gathers`, a job that
    gathers the results. Returns how many runs it queues. `checked` jobs are not validated again; `watch` hears how
    many rows are.

    Every row is validated first. Raises ConvReproError where a row would fail or Slurm rejects a script; then nothing
    of this submission remains in the queue. A dry run prints the scripts and writes nothing; it does not need Slurm.
    """
    from convrepro.training.runner import validate

    place = home(runs, request.table)
    queue, size = _cluster(echo, dry_run=dry_run)
    left = remaining(jobs, place, queue)
    echo(_headline(request, jobs, left))
    if not left.jobs:
        echo("nothing to queue")
        return 0
    if not checked:
        validate(left.jobs, watch)
    if dry_run:
        submission = Submission(place / str(next_number(place)))
        entries, arrays = arrange(left, size)
        for entry in entries:
            echo(f"{entry.index:5}  {entry.row}  seed {entry.seed}  {' '.join(entry.overrides)}")
        for name, text in _scripts(submission, arrays, site, request.table).items():
            echo(f"\n--- {submission.folder / name}\n{text}")
        return len(left.jobs)
    with exclusive(place / ".lock"):
        left = remaining(left.jobs, place, slurm.queue())
        if not left.jobs:
            raise ConvReproError(f"another submission of {request.table} has queued the same runs in the meantime")
        entries, arrays = arrange(left, size)
        submission = Submission(place / str(next_number(place)))
        (submission.folder / "logs").mkdir(parents=True)
        for name, text in _scripts(submission, arrays, site, request.table).items():
            (submission.folder / name).write_text(text, encoding="utf-8")
        write(submission, request, entries)
        echo(f"manifest {submission.manifest}")
        echo(_commit_line(entries[0]))
        _queue(submission, arrays, left, echo, gathers=gathers)
    return len(left.jobs)


def _cluster(echo: Callable[[str], None], *, dry_run: bool) -> tuple[list[slurm.Queued], int]:
    """The queue, and the limit on job arrays. A dry run without Slurm assumes an empty queue and the usual limit."""
    try:
        return slurm.queue(), slurm.max_array_size()
    except ConvReproError as error:
        if not dry_run:
            raise
        echo(f"{error}; this dry run assumes an empty queue, and arrays of at most {DEFAULT_ARRAY_SIZE} tasks")
        return [], DEFAULT_ARRAY_SIZE


def remaining(jobs: Sequence[Job], place: Path, queue: Sequence[slurm.Queued]) -> Left:
    """What is left of `jobs` for a new submission beside the earlier ones in `place`.

    Raises ConvReproError where a run has a result of another protocol than the job's.
    """
    live = live_runs(submissions(place), queue)
    done = {job.folder for job in jobs if is_done(job)}
    return Left([job for job in jobs if job.folder not in done | live.keys()], len(done), live)


def _headline(request: Request, jobs: Sequence[Job], left: Left) -> str:
    queued = sum(job.folder in left.live for job in jobs)
    return (
        f"{request.table}, budget {request.budget}: {len(jobs)} runs, {left.finished} finished, {queued} queued "
        f"already, {len(left.jobs)} to queue"
    )


def arrange(left: Left, size: int) -> tuple[list[Entry], list[Array]]:
    """Arranges the jobs into arrays by wave, shape and the array of their sources, with at most `size` jobs in each.

    Returns the lines of the manifest in the order of the arrays, and the arrays.
    """
    revision, dirty = commit()
    waves = _waves(left)
    shapes: dict[str, Shape] = {}
    for job in left.jobs:
        if job.row.id not in shapes:
            shapes[job.row.id] = shape_of(job)

    def kind(job: Job) -> tuple[int, Shape]:
        return waves[job.folder], shapes[job.row.id]

    followers: dict[Path, list[Shape]] = defaultdict(list)
    for job in left.jobs:
        if job.source:
            followers[job.source].append(shapes[job.row.id])
    places: dict[Path, tuple[Array, int]] = {}
    entries: list[Entry] = []
    arrays: list[Array] = []

    def order(job: Job) -> tuple[tuple[int, Shape], int, list[Shape]]:
        return kind(job), -len(followers[job.folder]), followers[job.folder]

    for (wave, shape), group in groupby(sorted(left.jobs, key=order), kind):
        for source, members in _aligned(list(group), places):
            for start in range(0, len(members), size):
                chunk = members[start : start + size]
                array = Array(len(entries), len(chunk), wave, shape, source.first if source else None)
                arrays.append(array)
                places |= {job.folder: (array, position) for position, job in enumerate(chunk)}
                entries += [_entry(job, len(entries) + n, revision, dirty) for n, job in enumerate(chunk)]
    return entries, arrays


def _aligned(jobs: Sequence[Job], places: Mapping[Path, tuple[Array, int]]) -> Iterator[tuple[Array | None, list[Job]]]:
    """Parts of `jobs` whose order is that of their sources in one array, from its first task on, with that array; and
    the jobs that cannot be ordered so, with None.

    Several jobs with one source are in several parts. Tasks whose runs have the most followers come first in their
    array, so that those who follow a second time follow its first tasks, too.
    """
    parts: dict[tuple[int, int], dict[int, Job]] = {}
    arrays = {array.first: array for array, _ in places.values()}
    turn: Counter[Path] = Counter()
    others = []
    for job in jobs:
        if job.source is None or job.source not in places:
            others.append(job)
            continue
        array, position = places[job.source]
        parts.setdefault((array.first, turn[job.source]), {})[position] = job
        turn[job.source] += 1
    for (first, _), part in parts.items():
        if max(part) == len(part) - 1:
            yield arrays[first], [part[position] for position in sorted(part)]
        else:
            others += part.values()
    if others:
        yield None, others


def _waves(left: Left) -> dict[Path, int]:
    """The wave of each run by folder: how many arrays run one after the other before its starting weights are there."""
    jobs = {job.folder: job for job in left.jobs}

    def wave(folder: Path | None) -> int:
        """Returns 0 for a run that can start at once, and -1 for a run that is neither in `jobs` nor in the queue."""
        if folder in jobs:
            return 1 + wave(jobs[folder].source)
        return 0 if folder in left.live else -1

    return {folder: wave(folder) for folder in jobs}


def shape_of(job: Job) -> Shape:
    """The machines that the row's `trainer` requests; raises ConvReproError unless `trainer.devices` is a number."""
    trainer = compose_config(without(job.overrides, "weights")).trainer
    if not isinstance(trainer.devices, int):
        raise ConvReproError(
            f"{job.identity.table}, row {job.row.id}: trainer.devices={trainer.devices} must be a number, which Slurm "
            "reserves"
        )
    return Shape(trainer.num_nodes, trainer.devices, trainer.accelerator in ("gpu", "cuda"))


def _entry(job: Job, index: int, revision: str | None, dirty: bool | None) -> Entry:
    who = job.identity
    return Entry(
        index=index,
        table=who.table,
        row=who.row,
        seed=who.seed,
        budget=who.budget,
        overrides=tuple(job.overrides),
        run_id=who.run_id,
        folder=str(job.folder),
        source=str(job.source) if job.source else None,
        commit=revision,
        dirty=dirty,
    )


def _scripts(submission: Submission, arrays: Sequence[Array], site: Site, table: str) -> dict[str, str]:
    cwd = Path.cwd()
    scripts = {array.script: array_script(submission, array, site, table, cwd) for array in arrays}
    return {**scripts, COLLECT: collect_script(submission, site, table, cwd)}


def _commit_line(entry: Entry) -> str:
    revision = entry.commit[:7] if entry.commit else "unknown"
    return f"commit {revision}" + (", with uncommitted changes: `collect` refuses such runs" if entry.dirty else "")


def _queue(
    submission: Submission, arrays: Sequence[Array], left: Left, echo: Callable[[str], None], *, gathers: bool
) -> None:
    """Submits the arrays and the job that gathers; where one of them fails, cancels the others."""
    queued: dict[Array, str] = {}
    try:
        for array in arrays:
            source = next((job for other, job in queued.items() if other.first == array.source), "")
            before = [] if source else [job for other, job in queued.items() if other.wave == array.wave - 1]
            if array.wave == 1 and not source:
                before += _sources(submission, array, left)
            queued[array] = slurm.submit(submission.folder / array.script, before, source)
            after = f", after {', '.join(before)}" if before else f", each after its own of {source}" if source else ""
            echo(f"queued {queued[array]}: {array.count} runs, {array.shape} each{after}")
        collect = slurm.submit(submission.folder / COLLECT, list(queued.values())) if gathers else ""
    except BaseException:
        if queued:
            echo(f"cancelling {', '.join(queued.values())} again")
            slurm.cancel(list(queued.values()))
        shutil.rmtree(submission.folder, ignore_errors=True)
        raise
    log = submission.folder / "logs" / "collect.log"
    if collect:
        echo(f"queued {collect}: gathers the results when all runs have ended; its output will be in {log}")


def _sources(submission: Submission, array: Array, left: Left) -> list[str]:
    """The jobs of earlier submissions that train the starting weights of runs in `array`."""
    entries = submission.entries[array.first : array.first + array.count]
    waited = {left.live[Path(e.source)].job for e in entries if e.source and Path(e.source) in left.live}
    return sorted(waited)
