"""Small runs for the tests of W&B: real ones of a paper's row, and ones that only log."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import wandb

from convrepro.config.compose import compose_config
from convrepro.runs.summary import summary
from convrepro.tables import load_table
from convrepro.tracking import logger as tracking_logger
from convrepro.tracking import service
from convrepro.tracking.logger import RunLogger, build_logger
from convrepro.tracking.offline import fragments
from convrepro.tracking.service import answering
from convrepro.training.run import run
from support.command import CONVREPRO, Python
from support.variants import TABLE, identity, named
from support.wandb_server import WandbServer

ROW = ["model=deepshift_mnist_fc", "recipe=deepshift_mnist_v5", "recipe.epochs=3", "trainer=cpu"]
ROW += ["budget.train_examples=256", "budget.test_examples=100"]
SHIFT = named([*ROW, "conv=shift"])
IDENTITY = identity(SHIFT)
STATIC = {"macs": 668672, "params": 669706, "multiplications": 0, "shifts": 668672, "weight_bits": 3343360}
SECRETS = {"SLURM_JWT": "a-token-of-the-cluster", "OTHER_API_KEY": "a-key-of-something-else"}
#: Seconds that a test waits for what takes a moment on a quiet machine.
DEADLINE = 240
#: `logger.timeout` where the server answers, in seconds: no test waits so long on a quiet machine.
PATIENT = 60
#: The same where it does not.
BRIEF = 2
#: The same where it answers at first, or a run has to be opened a second time, offline, on a busy machine.
LONGER = 8


def silent(line: str) -> None:
    """Nobody watches."""


def train(words: list[str], runs: Path, echo: Callable[[str], None] = silent, row: list[str] = SHIFT) -> dict[str, Any]:
    """Train in this process."""
    overrides = named([*row, *words, f"runs={runs}"])
    return run(compose_config(overrides), overrides, echo=echo)


def start(words: list[str], runs: Path) -> Python:
    """Train by the command line."""
    words = [*CONVREPRO, "train", *named([*SHIFT, *words, f"runs={runs}"])]
    return Python(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def end(process: subprocess.Popen, after: Callable[[], bool], sent: signal.Signals) -> None:
    """Send a signal, SIGKILL to the children too, once `after` is true; waits until the process has ended."""
    wait(lambda: after() or process.poll() is not None)
    assert process.poll() is None, process.communicate()[0]
    children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()
    process.send_signal(sent)
    for child in children if sent == signal.SIGKILL else ():
        os.kill(int(child), sent)
    process.communicate(timeout=DEADLINE)


def wait(until: Callable[[], Any]) -> None:
    deadline = time.monotonic() + DEADLINE
    while not until():
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.02)


def history(epochs: int) -> list[dict[str, Any]]:
    """What a run's module holds after so many epochs, the second one being its best."""
    keys = ("train/loss", "val/loss", "val/top5", "lr", "seconds")
    tops = [50.0, 90.0, *(60.0 + epoch for epoch in range(2, 20))]
    lines = [{"epoch": e, "step": 10 * e + 10, **dict.fromkeys(keys, 1 / (e + 1))} for e in range(epochs)]
    return [{**line, "val/top1": tops[line["epoch"]]} for line in lines]


@cache
def composed() -> dict[str, Any]:
    """The configuration of a run that only logs."""
    return compose_config([*SHIFT, f"logger.timeout={PATIENT}"]).model_dump()


def result(epochs: int, **changed: Any) -> dict[str, Any]:
    """A finished run's record."""
    lines = history(epochs)
    found = {"table": TABLE, "row": IDENTITY.row, "seed": 0, "budget": "paper", "schema": 1, "status": "done"}
    found |= {"config": composed(), "overrides": [], "static": STATIC}
    pick = {"epoch": "epoch", "val/top1": "top1", "val/top5": "top5", "val/loss": "loss"}
    best = max(lines, key=lambda line: line["val/top1"])
    metrics = {"last": {pick[key]: lines[-1][key] for key in pick}, "best": {pick[key]: best[key] for key in pick}}
    return found | {"history": lines, "metrics": metrics, "time": {"images_per_second": 7.0}} | changed


def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on W&B has `BRIEF` seconds for each answer, and its background service as many more to end.

    For a server that no longer answers; before that, a test that waits so briefly fails on a busy machine.
    """
    monkeypatch.setattr(service, "GRACE", BRIEF)
    monkeypatch.setattr(tracking_logger, "answering", lambda seconds=0.0: answering(min(seconds, BRIEF)))


def attempt(
    folder: Path,
    epochs: int,
    error: BaseException | None = None,
    *,
    steps: int = 0,
    kill: bool = False,
    timeout: float = PATIENT,
) -> RunLogger | None:
    """One attempt at a run that logs up to so many epochs, and steps of which an epoch has ten; it ends well, by
    `error`, or never (`kill`).
    """
    words = {**composed()["logger"], "timeout": timeout}
    logger = build_logger(words, IDENTITY, folder, composed(), STATIC, load_table(TABLE))
    if logger is None:
        return None
    rows = [{"step": step, "loss": 1 / step, "images_per_second": 7.0} for step in range(5, steps + 1, 5)]
    logger.catch_up(history(epochs), rows)
    if error:
        logger.fail(error)
    elif not kill:
        logger.finish(summary(result(epochs), load_table(TABLE)))
    if not kill and not logger.broken and logger.run.offline:
        assert fragments(folder)[-1].closed, "the record is not whole on the disk"
    return logger


def client(mode: str) -> None:
    """Have W&B's client of this process look at the environment anew, and be in this mode."""
    wandb.teardown()
    os.environ["WANDB_MODE"] = mode


@contextmanager
def served(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[WandbServer]:
    """A server that this process's client and its children's are led to, with secrets in their environment."""
    with WandbServer() as server:
        home = {f"WANDB_{kind}_DIR": str(tmp_path / "home") for kind in ("CONFIG", "CACHE", "DATA")}
        machine = {"NETRC": str(tmp_path / "netrc"), "SLURM_JOB_ID": "4711"}
        for name, value in {**server.environment(), **home, **machine, **SECRETS}.items():
            monkeypatch.setenv(name, value)
        client("online")
        yield server
        assert server.unknown == []
        sent = server.everything()
        assert [name for name, value in {**SECRETS, "key": server.key}.items() if value.encode() in sent] == []
        server.recovers()
        wandb.teardown()
