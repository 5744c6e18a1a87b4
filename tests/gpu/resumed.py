"""A run that is killed on the device, evaluated on the CPU and continued on the device."""

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from subprocess import DEVNULL, Popen
from tempfile import TemporaryDirectory
from typing import Any

from convrepro.config.compose import compose_config
from convrepro.models.weights import read_checkpoint
from convrepro.runs.result import FILE, LAST, Result
from convrepro.training.run import run

LIMITS = {"cpu": 0.0, "cuda": 0.02}
"""Largest relative difference of a loss. On a GPU sums may come in another order from run to run."""
TOP1 = 1.0
"""Largest difference of the top-1 of one checkpoint between two devices, in points."""
EVERY = 5
"""Steps between two checkpoints of the run that is killed."""


def resumed(words: Sequence[str], device: str, patience: float = 120.0) -> dict[str, Any]:
    """Compares a run that is killed once with an unbroken one: losses and top-1 of all epochs.

    Its checkpoint is evaluated on the CPU and on the device in between.
    """
    with TemporaryDirectory() as folder:
        unbroken = _run(words, Path(folder, "unbroken"))
        runs = Path(folder, "killed")
        checkpoint = _kill(words, runs, patience)
        at = read_checkpoint(checkpoint)["global_step"]
        top1 = {
            name: _run([*words, f"trainer={trainer}", "train=false", f"weights={checkpoint}"], Path(folder, name))
            for name, trainer in (("device", "gpu" if device == "cuda" else "cpu"), ("cpu", "cpu"))
        }
        continued = _run(words, runs)
    losses = [[epoch["train/loss"] for epoch in result["history"]] for result in (unbroken, continued)]
    record: dict[str, Any] = {
        "killed_at": at,
        "difference": max(abs(b - a) / a for a, b in zip(*losses, strict=True)),
        "limit": LIMITS[device],
        "equal": _science(unbroken) == _science(continued),
        "top1": {name: result["metrics"]["last"]["top1"] for name, result in top1.items()},
        "overrides": list(words),
    }
    if record["difference"] > record["limit"]:
        record["error"] = f"the losses differ by {record['difference']}, above {record['limit']}"
    elif abs(record["top1"]["device"] - record["top1"]["cpu"]) > TOP1:
        record["error"] = f"one checkpoint has other accuracies on the two devices: {record['top1']}"
    return record


def _run(words: Sequence[str], runs: Path) -> Result:
    words = [*words, f"runs={runs}"]
    return run(compose_config(words), words, echo=lambda line: None)


def _science(result: Result) -> list[dict[str, Any]]:
    """The history without its clocks."""
    return [{key: value for key, value in epoch.items() if key != "seconds"} for epoch in result["history"]]


def _kill(words: Sequence[str], runs: Path, patience: float) -> Path:
    """Start the run in a process of its own and kill it once it has saved; returns its checkpoint."""
    command = [sys.executable, "-m", "convrepro.cli", "train", *words, f"runs={runs}"]
    with Popen([*command, f"trainer.checkpoint_steps={EVERY}"], stdout=DEVNULL, stderr=DEVNULL) as process:
        until = time.monotonic() + patience
        while not (saved := list(runs.rglob(LAST))) and process.poll() is None and time.monotonic() < until:
            time.sleep(0.01)
        process.kill()
    if not saved:
        raise RuntimeError(f"the run that was to be killed saved nothing; it ended with status {process.returncode}")
    if saved[0].with_name(FILE).exists():
        raise RuntimeError("the run was over before it could be killed")
    return saved[0]
