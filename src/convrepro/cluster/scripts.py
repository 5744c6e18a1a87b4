"""The job scripts of a submission, as text: readable, frozen, and free of any value of the environment."""

import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from convrepro.cluster.manifest import Submission
from convrepro.cluster.site import GPUS, Site

#: Seconds before the time limit at which a run is asked to save and to be queued again.
NOTICE = "SIGUSR1@90"


@dataclass(frozen=True, order=True)
class Shape:
    """The machines of one run: nodes, processes a node, and whether each process has a GPU."""

    nodes: int
    devices: int
    gpu: bool

    def __str__(self) -> str:
        one, more = ("GPU", "GPUs") if self.gpu else ("process", "processes")
        return f"{self.nodes} x {self.devices} {one if self.devices == 1 else more}"


@dataclass(frozen=True)
class Array:
    """One job array: `count` runs of the manifest from `first` on. It starts when those of earlier waves have ended."""

    first: int
    count: int
    wave: int
    shape: Shape

    @property
    def script(self) -> str:
        return f"runs-{self.first}.sh"


def first_run(script: Path) -> int | None:
    """The index in the manifest of the first run of an array's script; None for another script."""
    found = re.fullmatch(r"runs-(\d+)\.sh", script.name)
    return int(found[1]) if found else None


def array_script(submission: Submission, array: Array, site: Site, table: str, cwd: Path) -> str:
    """One task a run. srun's step alone hears SIGUSR1, ignored until Python listens; Python decides what a bad end
    means (`task --ended`)."""
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
    python = f"{site.python} -P -m convrepro.cli task {_word(submission.manifest)}"
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
    """One small job that gathers the results once every array has ended."""
    flags = {name: value for name, value in site.flags.items() if name not in {*GPUS, "array", "signal", "exclusive"}}
    own = {
        "job-name": f"{table} collect",
        "nodes": "1",
        "ntasks": "1",
        "requeue": None,
        "open-mode": "append",
        "output": _pattern(submission.folder / "logs" / "collect.log"),
    }
    gather = f"exec {site.python} -P -m convrepro.cli gather {_word(submission.manifest)}"
    return _text(
        f"{table}, submission {submission.number}: what came of it", {**own, **flags}, [*_start(cwd, site), gather]
    )


def _start(cwd: Path, site: Site) -> list[str]:
    unbuffered = "export PYTHONUNBUFFERED=1  # a log tells what happened, when it happens, and after a kill"
    return [f"cd {_word(cwd)} || exit", unbuffered, *site.setup]


def _text(title: str, flags: Mapping[str, str | None], lines: Iterable[str]) -> str:
    directives = [
        f"#SBATCH --{name}" + ("" if value is None else f"={_quoted(value)}") for name, value in flags.items()
    ]
    return "\n".join(["#!/bin/bash", f"# {title}; written by `convrepro submit`.", *directives, "", *lines]) + "\n"


def _pattern(path: Path) -> str:
    """A path as --output takes it: a percent sign of its own stands twice, that of %a once."""
    return str(path.parent).replace("%", "%%") + "/" + path.name


def _quoted(value: str) -> str:
    """A value as sbatch reads it in a script."""
    if re.fullmatch(r"[\w./:=,@%+-]*", value):
        return value
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _word(value: object) -> str:
    return shlex.quote(str(value))
