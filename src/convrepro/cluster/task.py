"""One task of a job array: one run of a manifest, and what to do when it ends otherwise than well.

A task that is asked to save (SIGUSR1: preemption, time limit) puts itself back into the queue. So does one that ends
without giving a reason while Slurm takes it for running: by SIGKILL, by SIGTERM to it alone, or because it could not be
started. Neither goes on for ever where the run gets no farther.
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

#: Ends in a row without a step more, after which a run has failed: those without a reason, and those asked for.
UNTOLD, ASKED = 3, 10
STOPPED = 128 + signal.SIGTERM


def pick(manifest: Path, index: int) -> Entry:
    """One line of a manifest; raises ConvReproError where it has no such line."""
    entries = read_manifest(manifest)
    if not 0 <= index < len(entries):
        raise ConvReproError(f"{manifest} has no run {index}; it has {len(entries)}, from 0")
    return entries[index]


def execute(manifest: Path, index: int) -> int:
    """Train the run, or continue it; returns the exit code: 0, 1 for an error, 2 for bad input, 143 when stopped."""
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
    from convrepro.training.identity import identity_of, protocol_of
    from convrepro.training.run import run

    folder = identity_of(cfg, entry.overrides, protocol_of(cfg)).folder(Path(cfg.runs))
    if folder != Path(entry.folder):
        raise ConvReproError(f"the manifest's overrides are those of {folder}, not of {entry.folder}")
    revision, _ = commit()
    if revision != entry.commit and rank() == 0:
        print(f"the tree is at {revision} by now; it was at {entry.commit} when this was submitted")
    run(cfg, entry.overrides)


def _requeue(manifest: Path, entry: Entry) -> int:
    """Put this job back into the queue, once for all of its processes."""
    job = job_id()
    if job is None:
        return 128 + signal.SIGUSR1
    if rank() == 0:
        try:
            _again(manifest, entry, job, "by SIGUSR1", ASKED, "is the time limit (--time) too short?")
        except ConvReproError as error:
            print(f"convrepro: {error}", file=sys.stderr)
            return STOPPED
    return 0


def job_id() -> str | None:
    """How Slurm names the job that this process is in; None outside of one."""
    array, position = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{position}" if array and position else os.environ.get("SLURM_JOB_ID")


def ended(manifest: Path, index: int, code: int) -> None:
    """After a bad end of the run's processes, from the job script: put the job back into the queue where that may help.

    A run that gave its reason, and a job that Slurm is ending or requeuing already, are let go.
    """
    entry, job = pick(manifest, index), job_id()
    if job is None or state(Path(entry.folder)).kind in ("done", "failed") or slurm.state(job) != "RUNNING":
        return
    number = code - 128
    how = f"by {signal.Signals(number).name}" if number in set(signal.Signals) else f"with exit code {code}"
    hint = "does it want more memory (--mem)?" if number == signal.SIGKILL else "its log may tell why"
    _again(manifest, entry, job, how, UNTOLD, hint)


def _again(manifest: Path, entry: Entry, job: str, how: str, limit: int, hint: str) -> None:
    """Queue the job again, unless its run got no farther than before for the last `limit` times."""
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
    """Note that the run ended at `step`; returns how often in a row it ended without getting farther than before."""
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
