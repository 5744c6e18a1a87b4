"""Writes the job scripts of a submission as text.

Of the environment of `submit` they contain the folders of `PLACES` alone, so that jobs find them also where a site has
sbatch export nothing.
"""

import os
import re
import shlex
import signal
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from convrepro.cluster.manifest import Submission
from convrepro.cluster.site import GPUS, Site
from convrepro.config.plugins import words

#: The signal that asks a run to save and to be queued again, and how many seconds before the time limit it is sent.
NOTICE = "SIGUSR1@90"

#: The exit code of a command that saved after that signal.
REQUEUED = 128 + signal.SIGUSR1
#: Keeps the folder of the command off Python's path; Python 3.10 has no such option.
SAFE = "-P " if sys.version_info >= (3, 11) else ""
#: Variables that name folders, which a run needs.
PLACES = ("CONVREPRO_TABLES", "CONVREPRO_DATA", "TORCH_HOME", "PYTHONPATH")


@dataclass(frozen=True, order=True)
class Shape:
    """The machines of one run: nodes, processes per node, and whether each process has a GPU."""

    nodes: int
    devices: int
    gpu: bool

    def __str__(self) -> str:
        one, more = ("GPU", "GPUs") if self.gpu else ("process", "processes")
        return f"{self.nodes} x {self.devices} {one if self.devices == 1 else more}"


@dataclass(frozen=True)
class Array:
    """One job array: `count` runs of the manifest from index `first` on.

    Where there is a `source`, the first run of another array, each task starts when the task of the same index there
    has succeeded, whose weights it takes. Any other array starts when the arrays of the wave before it have ended.
    """

    first: int
    count: int
    wave: int
    shape: Shape
    source: int | None = None

    @property
    def script(self) -> str:
        return f"runs-{self.first}.sh"


def first_run(script: Path) -> int | None:
    """The index in the manifest of the first run of an array's script; None for a script that is not an array's."""
    found = re.fullmatch(r"runs-(\d+)\.sh", script.name)
    return int(found[1]) if found else None


def array_script(submission: Submission, array: Array, site: Site, table: str, cwd: Path) -> str:
    """The script of a job array with one task for each run.

    Slurm sends SIGUSR1 only to the step of srun, which ignores the signal until Python handles it. Where the step
    fails, Python decides what happens to the run (`task --ended`).
    """
    flags = dict(site.flags)
    throttle = flags.pop("array", None) or ""
    own = {
        "job-name": table,
        "array": f"0-{array.count - 1}{throttle}",
        "nodes": str(array.shape.nodes),
        "ntasks-per-node": str(array.shape.devices),
        "signal": NOTICE,
        "requeue": None,
        "open-mode": "append",
        "output": _pattern(submission.log(array.script, "%a")),
    }
    if array.shape.gpu and not GPUS & flags.keys():
        own["gpus-per-node"] = str(array.shape.devices)
    python = f"{site.python} {SAFE}-m convrepro.cli task {_outside()}{_word(submission.manifest)}"
    last = array.first + array.count - 1
    return _text(
        f"{table}, submission {submission.number}: runs {array.first} to {last} of its manifest",
        {**own, **flags},
        [
            *_start(cwd, site),
            f"run=$(({array.first} + SLURM_ARRAY_TASK_ID))",
            "srun --kill-on-bad-exit=1 --export=ALL ${SLURM_CPUS_PER_TASK:+--cpus-per-task=$SLURM_CPUS_PER_TASK} \\",
            f'  bash -c \'trap "" USR1; exec "$@"\' task {python} "$run"',
            "code=$?",
            f'[ $code = 0 ] || {python} "$run" --ended $code',
            "exit $code",
        ],
    )


def collect_script(submission: Submission, site: Site, table: str, cwd: Path) -> str:
    """The script of a small job that gathers the results when all arrays have ended."""
    flags = {name: value for name, value in site.flags.items() if name not in {*GPUS, "array", "signal", "exclusive"}}
    own = {
        "job-name": f"{table} collect",
        "nodes": "1",
        "ntasks": "1",
        "requeue": None,
        "open-mode": "append",
        "output": _pattern(submission.folder / "logs" / "collect.log"),
    }
    title = f"{table}, submission {submission.number}: gathers the results"
    gather = f"exec {site.python} {SAFE}-m convrepro.cli gather {_outside()}{_word(submission.manifest)}"
    return _text(title, {**own, **flags}, [*_start(cwd, site), gather])


def workers_script(
    words: Sequence[str], count: int, shape: Shape, site: Site, name: str, folder: Path, cwd: Path
) -> str:
    """The script of a job array whose `count` tasks execute the same command, `convrepro` with these words.

    A task that Slurm asks to make room (SIGUSR1) saves, ends with 138 and goes back into the queue.
    """
    flags = dict(site.flags)
    throttle = flags.pop("array", None) or ""
    own = {
        "job-name": name,
        "array": f"0-{count - 1}{throttle}",
        "nodes": "1",
        "ntasks": "1",
        "signal": NOTICE,
        "requeue": None,
        "open-mode": "append",
        "output": _pattern(folder / "worker_%a.log"),
    }
    if shape.gpu and not GPUS & flags.keys():
        own["gpus-per-node"] = "1"
    command = f"{site.python} {SAFE}-m convrepro.cli {' '.join(map(_word, words))} {_outside()}".rstrip()
    return _text(
        f"{name}: {count} workers",
        {**own, **flags},
        [
            *_start(cwd, site),
            "srun --kill-on-bad-exit=1 --export=ALL ${SLURM_CPUS_PER_TASK:+--cpus-per-task=$SLURM_CPUS_PER_TASK} \\",
            f'  bash -c \'trap "" USR1; exec "$@"\' worker {command}',
            "code=$?",
            f'[ $code != {REQUEUED} ] || exec scontrol requeue "${{SLURM_ARRAY_JOB_ID}}_$SLURM_ARRAY_TASK_ID"',
            "exit $code",
        ],
        words[0],
    )


def _outside() -> str:
    """The options that name the plugins and folders of `submit`, which a job has too."""
    return "".join(f"{_word(word)} " for word in words())


def _start(cwd: Path, site: Site) -> list[str]:
    unbuffered = "export PYTHONUNBUFFERED=1  # the log is up to date at any time, also when the run is killed"
    places = [f"export {name}={_word(os.environ[name])}" for name in PLACES if os.environ.get(name)]
    return [f"cd {_word(cwd)} || exit", unbuffered, *places, *site.setup]


def _text(title: str, flags: Mapping[str, str | None], lines: Iterable[str], verb: str = "submit") -> str:
    directives = [
        f"#SBATCH --{name}" + ("" if value is None else f"={_quoted(value)}") for name, value in flags.items()
    ]
    return "\n".join(["#!/bin/bash", f"# {title}; written by `convrepro {verb}`.", *directives, "", *lines]) + "\n"


def _pattern(path: Path) -> str:
    """A path for sbatch's --output, which expands %a in the file name; percent signs of the folder are doubled."""
    return str(path.parent).replace("%", "%%") + "/" + path.name


def _quoted(value: str) -> str:
    """Quotes a value as sbatch reads it in a script."""
    if re.fullmatch(r"[\w./:=,@%+-]*", value):
        return value
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _word(value: object) -> str:
    return shlex.quote(str(value))
