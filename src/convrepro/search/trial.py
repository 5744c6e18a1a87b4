"""One trial of a search on disk: `trials/<number>/trial.json`, beside the lock of the worker that is at it."""

import os
import socket
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

from pydantic import with_config
from typing_extensions import NotRequired, TypedDict

from convrepro.config.strict import ON_DISK

FILE = "trial.json"

State = Literal["running", "complete", "stopped", "infeasible", "failed"]


@with_config(ON_DISK)
class Trial(TypedDict):
    """A trial: a network, and what came of it.

    params: its choices. system_attrs: what the sampler keeps with it. macs, params_count: of one image, counted.
    excess: by which share of the bound it is beyond a constraint; 0 where it is within all. accuracies: top-1 in
    percent on held-out training images after each epoch, counted from 1. top1: the last of them. run: the run folder,
    below the folder of runs. same_as: the number of an earlier trial of the same network, which was not trained again.
    latency: the time of a batch as a share of the dense network's, where that is bounded.
    reason: why it failed, was stopped or is infeasible.
    """

    number: int
    state: State
    params: dict[str, str]
    system_attrs: dict[str, Any]
    macs: int
    params_count: int
    excess: float
    accuracies: dict[str, float]
    top1: float | None
    run: NotRequired[str]
    same_as: NotRequired[int]
    latency: NotRequired[float]
    reason: NotRequired[str]
    worker: str
    started: str
    ended: str | None


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def worker() -> str:
    """The name of this process: its number, its machine, and its job of Slurm, if there is one."""
    job = os.environ.get("SLURM_JOB_ID")
    return f"pid {os.getpid()} on {socket.gethostname()}" + (f" (job {job})" if job else "")


def folder_name(number: int) -> str:
    """The name of a trial's folder."""
    return f"{number:05d}"


def path_of(trials: Path, number: int) -> Path:
    """The file of a trial."""
    return trials / folder_name(number) / FILE


def trained(trials: Sequence[Trial]) -> list[Trial]:
    """The trials that were trained to their last epoch, each network once, in the order of their numbers."""
    return [trial for trial in trials if trial["state"] == "complete" and "same_as" not in trial]


def points(trials: Sequence[Trial]) -> dict[int, tuple[float, int]]:
    """Held-out top-1 in percent and MACs of what was trained to its last epoch, by the number of the trial."""
    return {trial["number"]: (float(trial["top1"] or 0.0), trial["macs"]) for trial in trained(trials)}


def front(found: Mapping[int, tuple[float, int]]) -> list[int]:
    """The trials that no other dominates, by their MACs: none is as accurate at the same or a lower cost.

    Of trials with the same accuracy and cost the first counts.
    """
    best: list[int] = []
    highest = float("-inf")
    for number, (accuracy, _) in sorted(found.items(), key=lambda item: (item[1][1], -item[1][0], item[0])):
        if accuracy > highest:
            best.append(number)
            highest = accuracy
    return best


def hypervolume(found: Mapping[int, tuple[float, int]], macs: int) -> float:
    """The share of the rectangle from 0 to 100 % and from 0 to `macs` MACs that the front dominates, in [0, 1].

    A point dominates what is less accurate and costs more. Points that cost more than `macs` count for nothing.
    """
    area = 0.0
    lowest = 0.0
    for number in front({n: p for n, p in found.items() if p[1] < macs}):
        accuracy, cost = found[number]
        area += max(accuracy - lowest, 0.0) / 100 * (1 - cost / macs)
        lowest = max(lowest, accuracy)
    return area
