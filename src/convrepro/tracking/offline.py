"""Reads what W&B's client left of a run on the disk, one folder per attempt, by the reader of that client."""

import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wandb.util import get_core_path

#: The most seconds that reading one file takes.
PATIENCE = 60


@dataclass(frozen=True)
class Fragment:
    """One attempt at a run: the epochs that it logged, in order, and whether it was closed properly."""

    path: Path
    epochs: tuple[int, ...]
    closed: bool


def fragments(folder: Path) -> list[Fragment]:
    """Return the attempts at the run of `folder`, the oldest first; a truncated end of a file is left out."""
    paths = [path for path in folder.glob("wandb/*run-*-*/run-*.wandb") if not path.parent.is_symlink()]
    return [_read(path) for path in sorted(paths, key=lambda path: path.parent.name.removeprefix("offline-"))]


def logged_epochs(folder: Path) -> list[int]:
    """Return the epochs that the attempts at the run of `folder` have on the disk."""
    return [epoch for fragment in fragments(folder) for epoch in fragment.epochs]


def _read(path: Path) -> Fragment:
    records = list(_records(path))
    rows = [record["history"]["item"] for record in records if record.get("type") == "history"]
    closed = any(record.get("type") == "exit" for record in records)
    return Fragment(path.parent, tuple(int(row["epoch"]) for row in rows if "epoch" in row), closed)


def _records(path: Path) -> Iterator[dict[str, Any]]:
    command = [get_core_path(), "leet", "inspect", "--json", "--no-observability", "--run-file", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    for line in done.stdout.splitlines():
        try:
            yield json.loads(line)
        except ValueError:
            return
