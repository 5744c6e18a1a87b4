"""The state of each run of a table, from the run folders, the submissions and, where there is one, Slurm's queue."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convrepro.cluster.manifest import Submission
from convrepro.cluster.scripts import first_run
from convrepro.cluster.slurm import Queued
from convrepro.cluster.submission import live_runs
from convrepro.errors import visible
from convrepro.runs.environment import commit
from convrepro.runs.folder import ERROR, RunState, state
from convrepro.runs.plan import Job

if TYPE_CHECKING:
    from rich.console import RenderableType

#: The kinds of state, each with its colour.
KINDS = {
    "done": "green",
    "running": "cyan",
    "starting": "cyan",
    "ending": "cyan",
    "pending": "",
    "held": "yellow",
    "started": "yellow",
    "cancelled": "yellow",
    "missing": "dim",
    "failed": "red",
    "lost": "red",
}
#: The kinds that change by themselves.
ACTIVE = ("running", "starting", "ending", "pending")
#: Lines that Slurm's programs may add to the log of a run after its own last one.
OWN_WITHIN = 6
#: Minutes without an update of `progress.json` after which a running task is reported as silent.
SILENT = 10


@dataclass(frozen=True)
class JobState:
    """The state of one run, from its folder and the queue.

    Attributes:
        kind: one of `KINDS`. A run is "lost" where it has left the queue without a result or an error, "cancelled"
            where `cancel` or `scancel` took it out.
        detail: top-1 accuracy, progress, or what the run waits for.
        reason: why the run ended without a result.
        requeued: how often the run was queued again.
    """

    kind: str
    detail: str = ""
    reason: str = ""
    requeued: int = 0

    def __str__(self) -> str:
        again = f"requeued {self.requeued}x" if self.requeued else ""
        return visible(f"{self.kind} {', '.join(text for text in (self.detail, again) if text)}".strip())

    @property
    def why(self) -> str:
        """Kind and reason of a run that has no result yet."""
        return visible(f"{self.kind}: {self.reason or self.detail or 'no result'}")


def survey(
    jobs: Sequence[Job], submitted: Sequence[Submission], queue: Sequence[Queued] | None
) -> dict[tuple[str, int], JobState]:
    """The state of each job by row and seed; `queue` is None where Slurm's queue cannot be read.

    A run that left the queue before it began was cancelled, too: by somebody, or by Slurm for what it waited for.
    """
    live = live_runs(submitted, queue or ())
    logs: dict[Path, Path] = {}
    cancelled: dict[Path, bool] = {}
    for submission in submitted:
        for entry, log in zip(submission.entries, logs_of(submission), strict=True):
            logs[Path(entry.folder)] = log
            on_purpose = entry.folder in submission.cancelled or not log.exists() or _was_cancelled(log)
            cancelled[Path(entry.folder)] = on_purpose and not _failed_since(submission, Path(entry.folder))
    states: dict[tuple[str, int], JobState] = {}
    for job in jobs:
        found = _state_of(state(job.folder), live.get(job.folder), logs.get(job.folder), has_queue=queue is not None)
        if found.kind in ("lost", "failed") and cancelled.get(job.folder):
            found = JobState("cancelled", reason=_of_source(job, states), requeued=found.requeued)
        states[job.row.id, job.identity.seed] = found
    return states


def _of_source(job: Job, states: Mapping[tuple[str, int], JobState]) -> str:
    """Why Slurm took a run out of the queue that takes another's weights; "" where that one did not end badly."""
    source = states.get((job.row.weights_from, job.identity.seed))
    bad = source is not None and source.kind in ("failed", "cancelled", "lost")
    return f"row {job.row.weights_from}, whose weights it takes, is {source.kind}" if source and bad else ""


def _failed_since(submission: Submission, folder: Path) -> bool:
    """Whether a run has failed since this submission, and not before it."""
    try:
        return (folder / ERROR).stat().st_mtime >= submission.manifest.stat().st_mtime
    except FileNotFoundError:
        return False


def _was_cancelled(log: Path) -> bool:
    """Whether Slurm says that somebody cancelled the run, and not a limit or another job."""
    return any(re.search(r"CANCELLED AT (?!.*DUE TO)", line) for line in _last_lines(log)[-3:])


def logs_of(submission: Submission) -> list[Path]:
    """The log of each run of a submission, in the order of its manifest."""
    firsts = sorted(first for script in submission.folder.glob("*.sh") if (first := first_run(script)) is not None)
    return [
        submission.log(f"runs-{first}", index - first)
        for first, last in zip(firsts, [*firsts[1:], len(submission.entries)], strict=True)
        for index in range(first, last)
    ]


def _state_of(run: RunState, queued: Queued | None, log: Path | None, *, has_queue: bool) -> JobState:
    if run.result is not None:
        return JobState("done", f"{run.result['metrics']['last']['top1']:.2f}")
    progress = run.progress or {}
    if queued:
        return _queued(queued, progress)
    again = progress.get("restarts", 0)
    if run.kind == "failed":
        return JobState("failed", "", f"{run.error}{_see(log)}", again)
    outside = log is None or (progress and not progress.get("job"))
    if run.kind == "started" and (outside or not has_queue):
        place = f"pid {progress.get('pid')} on {progress.get('host')}, last update {progress.get('updated')}"
        return JobState("started", _pace(progress), place if progress else "by an unknown process", again)
    if has_queue and log is not None:
        return JobState("lost", "", f"no longer queued, no result; {_last_line(log)}{_see(log)}", again)
    return JobState("missing", "", "not started" if log else "never submitted")


def _queued(queued: Queued, progress: Mapping[str, Any]) -> JobState:
    if "held" in queued.reason.lower():
        return JobState("held", "", f"{queued.reason}; `scontrol release {queued.job}` frees it", queued.requeued)
    if queued.state == "PENDING":
        return JobState("pending", queued.reason, requeued=queued.requeued)
    if queued.state == "RUNNING":
        if (progress.get("job"), progress.get("restarts")) == (queued.job, queued.requeued):
            return JobState("running", _pace(progress), requeued=queued.requeued)
        return JobState("starting", requeued=queued.requeued)
    if queued.state == "COMPLETING":
        return JobState("ending", requeued=queued.requeued)
    return JobState("pending", queued.state.lower(), requeued=queued.requeued)


def _pace(progress: Mapping[str, Any]) -> str:
    """The values of a `progress.json` in short form, such as `12/160, 2.1k/s, 1:20:05 left`, without missing ones."""
    parts = []
    if progress.get("epochs"):
        parts.append(f"{min(progress.get('epoch', -1) + 1, progress['epochs'])}/{progress['epochs']}")
    if speed := progress.get("images_per_second"):
        parts.append(f"{speed / 1000:.1f}k/s" if speed >= 1000 else f"{speed:.0f}/s")
    if (left := progress.get("left_seconds")) is not None:
        parts.append(f"{left // 3600}:{left // 60 % 60:02d}:{left % 60:02d} left")
    if (silent := _minutes_since(progress.get("updated"))) >= SILENT:
        parts.append(f"silent for {silent} min")
    return ", ".join(parts)


def _minutes_since(moment: str | None) -> int:
    try:
        return int((datetime.now(timezone.utc) - datetime.fromisoformat(moment or "")).total_seconds() // 60)
    except (ValueError, TypeError):
        return 0


def _last_lines(log: Path) -> list[str]:
    """The lines at the end of a log that are not empty."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 4096))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return []
    return [line.strip() for line in lines if line.strip()]


def _last_line(log: Path) -> str:
    """How a log ends: with what the run itself says, if it does, and not with what srun adds."""
    lines = _last_lines(log)
    if not lines:
        return "its log ends: empty" if log.exists() else "it has no log"
    said = [line for line in lines[-OWN_WITHIN:] if line.startswith("convrepro: ")]
    return f"its log ends: {(said or lines)[-1]}"


def _see(log: Path | None) -> str:
    return f" ({log})" if log and log.exists() else ""


def heading(table: str, budget: str, submitted: Sequence[Submission]) -> list[str]:
    """The lines above the table: the newest submission, and whether the source tree is at another commit now."""
    if not submitted or not submitted[-1].entries:
        return [f"{table}, budget {budget}: no submission"]
    entry = submitted[-1].entries[0]
    lines = [f"{table}, budget {budget}: submission {submitted[-1].number} at commit {(entry.commit or 'unknown')[:7]}"]
    revision, _ = commit()
    if revision != entry.commit:
        lines.append(
            f"the source tree is at commit {(revision or 'unknown')[:7]} now; runs that start from now on use that one"
        )
    return lines


def counts(states: Mapping[tuple[str, int], JobState]) -> str:
    """How many runs are in each kind of state, such as `36 runs: 20 done, 3 running, 13 pending`."""
    kinds = Counter(run.kind for run in states.values())
    return f"{len(states)} runs: " + ", ".join(f"{kinds[kind]} {kind}" for kind in KINDS if kinds[kind])


def unfinished(states: Mapping[tuple[str, int], JobState], kinds: Sequence[str] = tuple(KINDS)) -> list[str]:
    """A line for each run of these kinds that has no result: row, seed and reason."""
    wanted = [(key, run) for key, run in states.items() if run.kind in kinds and run.kind != "done"]
    return [f"{row}, seed {seed}: {run.why}" for (row, seed), run in wanted]


def render(title: Sequence[str], states: Mapping[tuple[str, int], JobState]) -> "RenderableType":
    """The states as a table of rows and seeds; below it, the number of runs by kind, and why some are stuck."""
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    seeds = sorted({seed for _, seed in states})
    grid = Table("row", *(f"seed {seed}" for seed in seeds), box=box.SIMPLE_HEAD, pad_edge=False)
    for row in dict.fromkeys(row for row, _ in states):
        cells = [states.get((row, seed)) for seed in seeds]
        grid.add_row(row, *(Text(str(cell), KINDS[cell.kind]) if cell else "" for cell in cells))
    told = {key: run for key, run in states.items() if run.kind != "cancelled" or run.reason}
    bad = unfinished(told, ("failed", "lost", "held", "cancelled"))
    return Group(*map(Text, title), grid, Text(counts(states)), *(Text(line, "red") for line in bad))
