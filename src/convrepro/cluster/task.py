"""One task of a job array: executes one run of a manifest, and decides whether a run that failed is queued again.

A task that receives SIGUSR1, before a preemption or the time limit, saves and puts itself back into the queue. So does
a task that ends without a reason while Slurm still lists it as running: by SIGKILL, by a SIGTERM to this task alone, or
because it could not be started. A run that makes no progress in several attempts is not queued again.
"""

import json
import os
import signal
import sys
import traceback
from contextlib import suppress
from pathlib import Path

from convrepro.cluster import slurm
from convrepro.cluster.manifest import Entry, read_manifest
from convrepro.config.compose import compose_config
from convrepro.errors import Busy, ConvReproError, Interrupted
from convrepro.runs.environment import commit
from convrepro.runs.folder import ERROR, rank, record_error, state

#: Attempts in a row without progress after which a run has failed: where they ended without a reason, and by SIGUSR1.
UNEXPLAINED, REQUESTED = 3, 10
STOPPED = 128 + signal.SIGTERM


def pick(manifest: Path, index: int) -> Entry:
    """Returns one run of a manifest; raises ConvReproError for an index that the manifest does not have."""
    entries = read_manifest(manifest)
    if not 0 <= index < len(entries):
        raise ConvReproError(f"{manifest} has no run {index}; its {len(entries)} runs are numbered from 0")
    return entries[index]


def execute(manifest: Path, index: int) -> int:
    """Trains or resumes the run; returns the exit code: 0, 1 for an error, 2 for bad input, 143 when stopped."""
    entry = pick(manifest, index)
    folder = Path(entry.folder)
    if rank() == 0:
        (folder / ERROR).unlink(missing_ok=True)
    try:
        _train(entry)
    except Interrupted as request:
        print(f"convrepro: {request}", file=sys.stderr)
        return _requeue(manifest, entry) if request.requeue else STOPPED
    except Busy as error:
        print(f"convrepro: {error}", file=sys.stderr)
        return 2
    except ConvReproError as error:
        record_error(folder, error)
        print(f"convrepro: {error}", file=sys.stderr)
        return 2
    except Exception as error:
        record_error(folder, error)
        traceback.print_exc()
        return 1
    return 0


def _train(entry: Entry) -> None:
    if entry.source and state(Path(entry.source)).kind != "done":
        row = Path(entry.source).parent.name
        raise ConvReproError(
            f"{entry.name} starts from the weights of row {row}, which has no result in {entry.source}"
        )
    cfg = compose_config(entry.overrides)
    from convrepro.training.run import identity_of, run

    folder = identity_of(cfg, entry.overrides).folder(Path(cfg.runs))
    if folder != Path(entry.folder):
        raise ConvReproError(f"the overrides in the manifest are those of {folder}, not of {entry.folder}")
    revision, _ = commit()
    if revision != entry.commit and rank() == 0:
        print(f"the source tree is at commit {revision} now; it was at {entry.commit} when this run was submitted")
    run(cfg, entry.overrides)


def _requeue(manifest: Path, entry: Entry) -> int:
    """Puts this job back into the queue, once for all of its processes; returns the exit code."""
    job = job_id()
    if job is None:
        return 128 + signal.SIGUSR1
    if rank() == 0:
        try:
            _again(manifest, entry, job, "by SIGUSR1", REQUESTED, "is the time limit (--time) too short?")
        except ConvReproError as error:
            print(f"convrepro: {error}", file=sys.stderr)
            return STOPPED
    return 0


def job_id() -> str | None:
    """Slurm's name of the job that this process belongs to; None outside of a job."""
    array, position = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{position}" if array and position else os.environ.get("SLURM_JOB_ID")


def ended(manifest: Path, index: int, code: int) -> None:
    """Puts the job back into the queue after its run ended with exit code `code`; the job script calls this.

    Does nothing where the run has left a result or an error, and where Slurm is ending or requeuing the job already.
    """
    entry, job = pick(manifest, index), job_id()
    if job is None or state(Path(entry.folder)).kind in ("done", "failed") or slurm.state(job) != "RUNNING":
        return
    number = code - 128
    how = f"by {signal.Signals(number).name}" if number in set(signal.Signals) else f"with exit code {code}"
    hint = "does it need more memory (--mem)?" if number == signal.SIGKILL else "its log may show why"
    _again(manifest, entry, job, how, UNEXPLAINED, hint)


def _again(manifest: Path, entry: Entry, job: str, how: str, limit: int, hint: str) -> None:
    """Queues the job again, unless its run made no progress in the last `limit` attempts."""
    folder = Path(entry.folder)
    step = (state(folder).progress or {}).get("step", 0)
    in_vain = fruitless(manifest.parent / f"ended-{entry.index}.jsonl", step, how)
    if in_vain < limit:
        print(f"ended {how} at step {step}; {job} goes back into the queue", flush=True)
        slurm.requeue(job)
        return
    reason = f"ended {how} {in_vain} times in a row without getting beyond step {step}; {hint}"
    record_error(folder, ConvReproError(reason))
    print(f"convrepro: {reason}", file=sys.stderr)


def fruitless(record: Path, step: int, how: str) -> int:
    """Records that the run ended at `step`; returns how many attempts in a row ended without progress."""
    steps: list[int] = []
    with suppress(FileNotFoundError):
        steps = [json.loads(line)["step"] for line in record.read_text().splitlines()]
    with record.open("a") as file:
        file.write(json.dumps({"step": step, "ended": how}) + "\n")
    farthest, count = -1, 0
    for past in (*steps, step):
        count = 0 if past > farthest else count + 1
        farthest = max(farthest, past)
    return count
