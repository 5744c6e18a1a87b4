"""A table of tiny networks, to be run for real in seconds, and what a submission of it is made of."""

import os
import shutil
from pathlib import Path

import pytest

from convrepro.cluster.manifest import Request, Submission
from convrepro.cluster.manifest import write as write_submission
from convrepro.cluster.submission import Left, arrange
from convrepro.config.compose import compose_config
from convrepro.config.overrides import without
from convrepro.runs.plan import Job, plan
from convrepro.tables import Table, load_table
from support import small_table

NAME = "lab/tiny"
HEAD = """\
title: Tiny networks
source: {paper: lab, table: 1}
question: does everything arrive?
base: [model=deepshift_mnist_fc, data=mnist, recipe=deepshift_mnist_v5]
seeds: [0, 1]
metrics:
  top1: {unit: "%", tol: 0.3, why: it is a test}
rows:
"""
EXTRA = ("trainer=cpu", "logger=none")
PLAIN = "  - {id: plain, label: Plain, overrides: [conv=standard], published: {}}\n"
SHIFT = "  - {id: shift, label: Shift, overrides: [conv=shift], published: {}, weights_from: plain}\n"


def write(root: Path, *rows: str) -> Path:
    """Put the table into a folder of tables; each of `rows` is a line of YAML."""
    return small_table.write(root, HEAD + "".join(rows or (PLAIN, SHIFT)), NAME)


def load(root: Path, *rows: str) -> Table:
    return load_table(NAME, write(root, *rows))


def jobs(table: Table, runs: Path, budget: str = "smoke", extra: tuple[str, ...] = EXTRA) -> list[Job]:
    return plan(table, budget=budget, rows=(), seeds=table.seeds, extra=extra, runs=runs)


def request(jobs: list[Job], **changed) -> Request:
    values = {
        "table": jobs[0].identity.table,
        "budget": jobs[0].identity.budget,
        "runs": tuple((job.row.id, job.identity.seed) for job in jobs),
        "overrides": EXTRA,
        "flags": (),
    }
    return Request(**values | changed)


def left(jobs: list[Job]) -> Left:
    return Left(jobs, finished=0, live={})


def result(job: Job, top1: float = 90.0, overrides: list[str] | None = None) -> dict:
    """A result as a run at a known commit writes it."""
    own = [o for o in job.overrides if o.split("=")[0] in ("model", "data", "recipe", "conv")]
    config = compose_config(without(job.overrides, "weights")).model_dump()
    who = job.identity
    return {
        "schema": 1,
        "status": "done",
        "table": who.table,
        "row": who.row,
        "seed": who.seed,
        "budget": who.budget,
        "overrides": overrides or own,
        "config": config | {"weights": str(job.source / "last.ckpt") if job.source else None},
        "metrics": {when: {"top1": top1, "top5": 99.0, "loss": 1.0, "epoch": 0} for when in ("last", "best")},
        "static": {},
        "history": [{"epoch": 0, "val/top1": top1}],
        "environment": {"commit": "0" * 40, "dirty": False, "versions": {}, "device": "cpu", "threads": 1},
        "time": {"seconds": 1.0},
    }


def submitted(jobs: list[Job], runs: Path, number: int = 1, **changed) -> Submission:
    """A submission as it lies on the disk."""
    entries, _ = arrange(left(jobs), 1001)
    submission = Submission(runs / NAME / ".slurm" / str(number))
    (submission.folder / "logs").mkdir(parents=True)
    (submission.folder / "runs-0.sh").write_text("")
    write_submission(submission, request(jobs, **changed), entries)
    return submission


@pytest.fixture
def no_slurm(tmp_path, monkeypatch):
    """A machine without Slurm and without a site file."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("git", "bash"):
        (programs / name).symlink_to(shutil.which(name))
    monkeypatch.setenv("PATH", str(programs))
    for name in [name for name in os.environ if name.startswith(("SLURM_", "CONVREPRO_SLURM_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("CONVREPRO_SLURM_SITE", "")
