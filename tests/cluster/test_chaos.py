"""A sweep that is disturbed without mercy: nothing is lost, nothing is trained twice.

CONVREPRO_CHAOS_SEED chooses the moments and the victims (default 0). The sweep of twelve rows is exhaustive.
"""

import os
import random
import re
import signal
import subprocess
import time
from collections import Counter
from dataclasses import dataclass

import pytest

from convrepro.runs.plan import Job
from support import lab_table
from support.command import CONVREPRO, Python
from support.small_runs import science
from support.table_on_cluster import Lab, result

pytestmark = [pytest.mark.cluster]

SEED = int(os.environ.get("CONVREPRO_CHAOS_SEED", "0"))
EPOCHS = 12
#: A task is given up after more ends than this without getting farther.
OFTEN = 3
#: Slurm writes its state so many seconds after a change at the latest. What a controller has not written, it forgets
#: when it is killed: a job that it was about to queue again can be lost, which no program that runs in jobs can help.
SAVED = 6
BAD = "bad"
KNOBS = ["conv=standard", "conv=shift", "conv=shift conv.variant=q", "recipe.optimizer.lr=0.02"]
KNOBS += ["recipe.batch_size=32", "recipe.optimizer.weight_decay=0.001"]


def row(name: str, overrides: str, more: str = "") -> str:
    words = [f"budget.epochs={EPOCHS}", "budget.train_examples=1024", *overrides.split()]
    return f"  - {{id: {name}, label: {name}, overrides: [{', '.join(words)}], published: {{}}{more}}}\n"


def rows(number: int) -> list[str]:
    alike = [row(f"row{n}", f"{KNOBS[n % len(KNOBS)]} recipe.optimizer.momentum=0.{80 + n}") for n in range(number)]
    return [*alike, row("late", "conv=shift", ", weights_from: row0"), row(BAD, "conv=standard")]


@dataclass(frozen=True)
class Size:
    """How many rows are trained, besides one that starts from another and one that fails, and what happens to them."""

    rows: int
    kills: int
    terminations: int
    preemptions: int


SMALL, FULL = Size(3, 1, 1, 1), Size(10, 4, 3, 2)


class Chaos:
    """Disturbs a table's runs, by a seeded choice of what, whom and when."""

    def __init__(self, lab: Lab, size: Size) -> None:
        self.lab = lab
        self.random = random.Random(SEED)
        self.events = [signal.SIGKILL] * size.kills + [signal.SIGTERM] * size.terminations
        self.events += ["preempt"] * size.preemptions
        self.random.shuffle(self.events)
        self.events.insert(len(self.events) // 2, "controller")
        self.done: list[str] = []
        self.ended: Counter[str] = Counter()  # by row
        self.killed: Counter[str] = Counter()  # of these by SIGKILL, which saves nothing

    def run(self) -> None:
        """Disturb, until nothing is left to do or nobody to do it to.

        The first to be killed is the row that another waits for.
        """
        source = self.lab.job("row0")
        self.lab.wait_for_epoch(source, 1)
        self.end(source, signal.SIGKILL)
        for event in self.events:
            time.sleep(self.random.uniform(0.2, 3))
            if event == "controller":
                time.sleep(SAVED)
                self.lab.cluster.restart_controller(self.random.choice([signal.SIGTERM, signal.SIGKILL]))
                self.done.append(event)
            elif event == "preempt":
                self.victim()
                self.lab.preempt("--nodes=1", "--exclusive")
                self.done.append(event)
            elif victim := self.victim():
                self.end(victim, event)

    def end(self, victim: Job, how: signal.Signals) -> None:
        if self.lab.kill(victim, how):
            self.ended[victim.row.id] += 1
            self.killed[victim.row.id] += how == signal.SIGKILL
            self.done.append(f"{how.name} {victim.row.id}")

    def victim(self) -> Job | None:
        """A run that has a process, in every other case one that has trained; None when all is over."""
        trained = self.random.random() < 0.5

        def candidates() -> list[Job] | str:
            folders = self.lab.processes()
            running = [job for job in self.lab.jobs if job.folder in folders and job.row.id != BAD]
            spared = [job for job in running if self.ended[job.row.id] < OFTEN]
            if trained:
                spared = [job for job in spared if self.lab.progress(job).get("pid") in folders[job.folder]]
            return spared or ("over" if self.over() else "")

        found = self.lab.cluster.wait(candidates)
        return None if isinstance(found, str) else self.random.choice(found)

    def over(self) -> bool:
        return all((job.folder / "result.json").exists() for job in self.lab.jobs if job.row.id != BAD)


def stamp(job: Job) -> tuple[int, int]:
    """What changes when a result is written again."""
    found = (job.folder / "result.json").stat()
    return found.st_mtime_ns, found.st_ino


@pytest.mark.parametrize("size", [SMALL, pytest.param(FULL, marks=pytest.mark.exhaustive)], ids=["small", "full"])
def test_every_row_finishes_as_if_nothing_had_happened(cluster, tmp_path, monkeypatch, request, size):
    lab = Lab(cluster, tmp_path, monkeypatch, *rows(size.rows))
    forgotten = cluster.forgotten()
    words = ["run", lab_table.NAME, "--budget", "smoke", "--seeds", "0", *lab.extra, f"runs={tmp_path / 'calm'}"]
    calm = Python([*CONVREPRO, *words], stdout=subprocess.DEVNULL)
    request.addfinalizer(calm.kill)
    good = [job for job in lab.jobs if job.row.id != BAD]
    bad = lab.job(BAD)
    bad.folder.mkdir(parents=True)
    (bad.folder / "last.ckpt").write_bytes(b"torn by something")
    first, second, collect = re.findall(r"^queued (\d+):", lab.submit(), re.MULTILINE)

    chaos = Chaos(lab, size)
    chaos.run()
    print(f"seed {SEED}: {', '.join(chaos.done)}")
    number = len(lab.jobs)
    assert len(chaos.done) >= len(chaos.events), "the runs were over before they were disturbed; make them longer"
    cluster.wait_until_over(first, second, collect)

    status = lab.call("status")
    named = re.findall(r"^(\w+), seed 0: (\w+): (.*)", status, re.MULTILINE)
    assert [(name, kind) for name, kind, _ in named] == [(BAD, "failed")], status + cluster.logs()
    assert "cannot be resumed from" in named[0][2]
    assert re.findall(
        r"^no result: (\w+), seed 0: failed: .*cannot be resumed from", lab.collected(), re.MULTILINE
    ) == [BAD]
    assert cluster.job(collect)["JobState"] == "FAILED"

    (bad.folder / "last.ckpt").unlink()
    written = {job.row.id: stamp(job) for job in good}
    told = lab.call("resubmit")
    assert f"{number} runs, {number - 1} finished, 0 queued already, 1 to queue" in told
    cluster.wait_until_over(*re.findall(r"^queued (\d+):", told, re.MULTILINE))
    assert f"{number} runs: {number} done" in lab.collected()

    for job in good:
        assert stamp(job) == written[job.row.id], "a result is final"
    assert calm.wait(900) == 0
    for job in lab.jobs:
        twice = len(lab.epochs(job)) - EPOCHS
        kills = chaos.killed[job.row.id] + cluster.forgotten() - forgotten
        assert 0 <= twice <= kills, f"{job.row.id} trained {twice} epochs twice"
        assert set(lab.epochs(job)) == set(range(1, EPOCHS + 1))
        undisturbed = result(tmp_path / "calm" / job.folder.relative_to(lab.runs))
        assert science(result(job.folder)) == science(undisturbed), job.row.id
    assert lab.log(bad).count("  epoch 1/") == 1
    assert "nothing to queue" in lab.submit()
    assert lab_table.NAME in lab.collected()
