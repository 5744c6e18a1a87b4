"""The few Slurm commands that submissions need, as functions; what they complain about becomes one sentence."""

import os
import re
import shutil
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from convrepro.errors import ConvReproError

#: Seconds to wait before asking again a controller that does not answer: a restart takes it some seconds.
PATIENCE = (1, 2, 4, 8, 15)
#: What the commands print where the controller did not answer, and a later attempt may succeed.
SILENCE = re.compile(
    r"unable to contact slurm controller|connect failure|connection refused|timed out|zero bytes|transport endpoint|"
    r"temporarily|in standby mode|unexpected message received|try again",
    re.IGNORECASE,
)
#: Variables by which the shell, perhaps of a job, would change what scripts ask for or what squeue lists.
FOREIGN = re.compile(r"SLURM_(?!CONF$|JWT$)|SRUN_|SQUEUE_|SBATCH_(ARRAY_INX|NO_REQUEUE|OPEN_MODE|SIGNAL|WAIT)$")
#: What follows `|` may hold any character, so the command is last.
QUEUE = "%F|%K|%T|%r|%o"
RESTARTS = "ArrayJobID:.20,ArrayTaskID:.20,RestartCnt:.20"


@dataclass(frozen=True)
class Queued:
    """A job or one task of an array that Slurm has not finished: `job` is how Slurm names it (12 or 12_3)."""

    job: str
    array: str
    position: int | None
    state: str
    reason: str
    script: Path
    requeued: int


class NoSlurm(ConvReproError):
    """Slurm's commands are not on this machine."""


class Silent(ConvReproError):
    """The controller did not answer, although it was asked several times."""


def available() -> bool:
    """Whether this machine has Slurm's commands."""
    return shutil.which("squeue") is not None


def queue(patience: Sequence[float] = PATIENCE) -> list[Queued]:
    """This user's jobs that wait, run or are ending; an array's tasks one by one."""
    mine = ["--noheader", "--array", f"--user={os.getuid()}"]
    counted = _ask(["squeue", *mine, f"--Format={RESTARTS}"], patience)
    triples = [line.split() for line in counted.splitlines()]
    requeued = {(t[0], t[1]): int(t[2]) for t in triples if len(t) == 3 and t[2].isdigit()}
    lines = _ask(["squeue", *mine, f"--format={QUEUE}"], patience).splitlines()
    return [queued for line in lines if (queued := _queued(line, requeued))]


def _queued(line: str, requeued: dict[tuple[str, str], int]) -> Queued | None:
    parts = line.strip().split("|", 4)
    if len(parts) < 5:
        return None
    array, position, state, reason, script = parts
    number = int(position) if position.isdigit() else None
    job = array if number is None else f"{array}_{number}"
    return Queued(job, array, number, state, reason, Path(script), requeued.get((array, position), 0))


def submit(script: Path, after: Sequence[str] = ()) -> str:
    """Queue a script, to start when the jobs `after` have ended in any way; returns the job's id.

    An answer that got lost is looked for in the queue, so that a script is never queued twice.
    """
    command = ["sbatch", "--parsable"]
    if after:
        command.append(f"--dependency=afterany:{':'.join(after)}")
    for pause in (*PATIENCE, None):
        try:
            return _ask([*command, str(script)], ()).strip().split(";")[0]
        except Silent:
            if pause is None:
                raise
            time.sleep(pause)
            if known := {q.array for q in queue() if q.script == script}:
                return known.pop()
    raise AssertionError("the loop returns or raises")


def cancel(jobs: Sequence[str]) -> None:
    """End jobs, or the arrays' tasks, whatever their state; what has ended by itself is no error."""
    for start in range(0, len(jobs), 200):
        _ask(["scancel", *jobs[start : start + 200]], PATIENCE, expected="Invalid job id|already completing")


def requeue(job: str) -> None:
    """Put a running job back into the queue; Slurm ends what is left of it."""
    _ask(["scontrol", "requeue", job], PATIENCE)


def state(job: str) -> str:
    """A job's state as Slurm words it, such as RUNNING; "" for one that is not in the queue."""
    command = ["squeue", "--noheader", f"--jobs={job}", "--format=%T"]
    return _ask(command, PATIENCE, expected="Invalid job id").strip()


def max_array_size() -> int:
    """One more than the highest index that an array of this cluster may have."""
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", _ask(["scontrol", "show", "config"], PATIENCE), re.MULTILINE)
    if not found:
        raise ConvReproError("scontrol show config tells no MaxArraySize")
    return int(found[1])


def _ask(command: Sequence[str], patience: Sequence[float], expected: str = "") -> str:
    """What a command prints. Asks again where the controller is silent; an error that is `expected` counts as success.

    Raises NoSlurm, Silent, or ConvReproError with the command's own words.
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
            raise ConvReproError(f"{command[0]} refused: {said or f'exit code {done.returncode}'}")
        if pause is not None:
            time.sleep(pause)
    raise Silent(f"{command[0]} got no answer from the cluster's controller: {said}")
