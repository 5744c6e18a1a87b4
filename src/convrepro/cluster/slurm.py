"""The Slurm commands that submissions need, as functions. An error of a command is raised as one sentence."""

import os
import re
import shutil
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from convrepro.errors import ConvReproError

#: Seconds to wait before each further attempt where the controller does not answer; its restart takes some seconds.
PATIENCE = (1, 2, 4, 8, 15)
#: Messages of the commands where the controller did not answer and a later attempt may succeed.
SILENCE = re.compile(
    r"unable to contact slurm controller|connect failure|connection refused|timed out|zero bytes|transport endpoint|"
    r"temporarily|in standby mode|unexpected message received|try again",
    re.IGNORECASE,
)
#: Variables of the shell, which may be that of a job, that would change what scripts request or what squeue lists.
FOREIGN = re.compile(r"SLURM_(?!CONF$|JWT$)|SRUN_|SQUEUE_|SBATCH_(ARRAY_INX|NO_REQUEUE|OPEN_MODE|SIGNAL|WAIT)$")
#: squeue's columns. The command is the last one because it may contain any character, `|` too.
QUEUE = "%F|%K|%T|%r|%o"
RESTARTS = "ArrayJobID:.20,ArrayTaskID:.20,RestartCnt:.20"


@dataclass(frozen=True)
class Queued:
    """A job, or one task of an array, that is in Slurm's queue. `job` is Slurm's name for it, such as 12 or 12_3."""

    job: str
    array: str
    position: int | None
    state: str
    reason: str
    script: Path
    requeued: int


class NoSlurm(ConvReproError):
    """Raised where this machine does not have Slurm's commands."""


class Silent(ConvReproError):
    """Raised where the controller did not answer in several attempts."""


def available() -> bool:
    """Whether this machine has Slurm's commands."""
    return shutil.which("squeue") is not None


def queue(patience: Sequence[float] = PATIENCE) -> list[Queued]:
    """This user's jobs that are pending, running or ending, with the tasks of an array one by one."""
    mine = ["--noheader", "--array", f"--user={os.getuid()}"]
    counted = _call(["squeue", *mine, f"--Format={RESTARTS}"], patience)
    triples = [line.split() for line in counted.splitlines()]
    requeued = {(t[0], t[1]): int(t[2]) for t in triples if len(t) == 3 and t[2].isdigit()}
    lines = _call(["squeue", *mine, f"--format={QUEUE}"], patience).splitlines()
    return [queued for line in lines if (queued := _queued(line, requeued))]


def try_queue(patience: Sequence[float] = PATIENCE) -> tuple[list[Queued] | None, str]:
    """Returns the queue and ""; where it cannot be read, returns None and the reason."""
    if not available():
        return None, "Slurm is not on this machine"
    try:
        return queue(patience), ""
    except ConvReproError as error:
        return None, str(error)


def _queued(line: str, requeued: dict[tuple[str, str], int]) -> Queued | None:
    parts = line.strip().split("|", 4)
    if len(parts) < 5:
        return None
    array, position, state, reason, script = parts
    number = int(position) if position.isdigit() else None
    job = array if number is None else f"{array}_{number}"
    return Queued(job, array, number, state, reason, Path(script), requeued.get((array, position), 0))


def submit(script: Path, after: Sequence[str] = (), source: str = "") -> str:
    """Queues a script to start when the jobs `after` have ended, in success or failure; returns the job's id.

    Where it is an array with a `source`, each task starts when the task of the same index in that array has succeeded,
    and is cancelled where that has failed. Where the answer of sbatch is lost, `submit` looks for the script in the
    queue before it tries again, so that a script is never queued twice.
    """
    command = ["sbatch", "--parsable"]
    if source:
        command += [f"--dependency=aftercorr:{source}", "--kill-on-invalid-dep=yes"]
    elif after:
        command.append(f"--dependency=afterany:{':'.join(after)}")
    for pause in (*PATIENCE, None):
        try:
            return _call([*command, str(script)], ()).strip().split(";")[0]
        except Silent:
            if pause is None:
                raise
            time.sleep(pause)
            if known := {q.array for q in queue() if q.script == script}:
                return known.pop()
    raise AssertionError("the loop returns or raises")


def cancel(jobs: Sequence[str]) -> None:
    """Cancels jobs or tasks of arrays in any state; those that have ended already are ignored."""
    for start in range(0, len(jobs), 200):
        _call(["scancel", *jobs[start : start + 200]], PATIENCE, expected="Invalid job id|already completing")


def requeue(job: str) -> None:
    """Puts a running job back into the queue; Slurm ends its remaining processes."""
    _call(["scontrol", "requeue", job], PATIENCE)


def state(job: str) -> str:
    """Slurm's state of a job, such as RUNNING; "" for a job that is not in the queue."""
    command = ["squeue", "--noheader", f"--jobs={job}", "--format=%T"]
    return _call(command, PATIENCE, expected="Invalid job id").strip()


def max_array_size() -> int:
    """The cluster's limit on job arrays: the highest index that an array may have, plus one."""
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", _call(["scontrol", "show", "config"], PATIENCE), re.MULTILINE)
    if not found:
        raise ConvReproError("`scontrol show config` prints no MaxArraySize, so that the size of arrays is unknown")
    return int(found[1])


def _call(command: Sequence[str], patience: Sequence[float], expected: str = "") -> str:
    """Runs a command and returns its output; runs it again where the controller does not answer.

    An error message that matches the pattern `expected` counts as success. Raises NoSlurm, Silent, or ConvReproError
    with the command's own message.
    """
    environment = {name: value for name, value in os.environ.items() if not FOREIGN.match(name)}
    for pause in (*patience, None):
        try:
            done = subprocess.run(command, capture_output=True, text=True, errors="replace", env=environment)
        except OSError as error:
            raise NoSlurm(
                f"{command[0]} is not on this machine ({error.strerror}); log in where Slurm is, or use --dry-run"
            ) from error
        said = re.sub(rf"{command[0]}: (error: )?", "", " ".join(done.stderr.split()))
        if not done.returncode or (expected and re.search(expected, said)):
            return done.stdout
        if not SILENCE.search(said):
            raise ConvReproError(f"{command[0]} failed: {said or f'exit code {done.returncode}'}")
        if pause is not None:
            time.sleep(pause)
    raise Silent(f"{command[0]} got no answer from the cluster's controller: {said}")
