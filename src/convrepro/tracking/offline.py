"""Reads what W&B's client left of a run on the disk, one folder per attempt, by the reader of that client."""

import json
import math
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wandb.util import get_core_path

#: The most seconds that reading one file takes.
PATIENCE = 60
#: The key that is logged with each epoch to say that the first epoch is 1.
FIRST = "first_epoch"
#: The key of the training step, which is the axis of everything that is logged.
STEP = "trainer/global_step"


@dataclass(frozen=True)
class Fragment:
    """One attempt at a run: the epochs that it logged, in order and from 1, and whether it was closed properly.

    steps: the training steps at which it logged anything, in order.
    """

    path: Path
    epochs: tuple[int, ...]
    closed: bool
    steps: tuple[int, ...] = ()


def epoch_in(row: Mapping[str, Any]) -> int:
    """Return the number of the epoch, from 1, in a row that W&B has of a run, or in a summary; 0 where it has none.

    Rows of version 0.1.0 lack `FIRST`; their epochs count from 0.
    """
    return int(row["epoch"]) + (FIRST not in row) if "epoch" in row else 0


def step_in(row: Mapping[str, Any]) -> float:
    """Return the training step of a row that W&B has of a run, or of a summary; 0 where nothing is logged.

    Where only the step is missing, as in runs that were sent from evidence, all steps count as logged.
    """
    return row.get(STEP, math.inf if "epoch" in row else 0)


def fragments(folder: Path) -> list[Fragment]:
    """Return the attempts at the run of `folder`, the oldest first; a truncated end of a file is left out."""
    paths = [path for path in folder.glob("wandb/*run-*-*/run-*.wandb") if not path.parent.is_symlink()]
    return [_read(path) for path in sorted(paths, key=lambda path: path.parent.name.removeprefix("offline-"))]


def logged(folder: Path) -> tuple[int, int]:
    """Return the last epoch and the last step that the attempts at the run of `folder` have on the disk, or 0."""
    found = fragments(folder)
    epochs = (epoch for fragment in found for epoch in fragment.epochs)
    return max(epochs, default=0), max((step for fragment in found for step in fragment.steps), default=0)


def _read(path: Path) -> Fragment:
    records = list(_records(path))
    rows = [record["history"]["item"] for record in records if record.get("type") == "history"]
    closed = any(record.get("type") == "exit" for record in records)
    epochs = tuple(epoch_in(row) for row in rows if "epoch" in row)
    return Fragment(path.parent, epochs, closed, tuple(int(row[STEP]) for row in rows if STEP in row))


def _records(path: Path) -> Iterator[dict[str, Any]]:
    command = [get_core_path(), "leet", "inspect", "--json", "--no-observability", "--run-file", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    for line in done.stdout.splitlines():
        try:
            yield json.loads(line)
        except ValueError:
            return
