"""A table of tiny networks on a real Slurm: submitted, watched and disturbed from Python."""

import json
import os
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from convrepro.cluster.manifest import Submission, submissions
from convrepro.cluster.site import load_site
from convrepro.cluster.status import logs_of
from convrepro.cluster.submission import submit
from convrepro.config.compose import compose_config
from convrepro.runs.plan import Job
from convrepro.training.run import run
from support import lab_table
from support.cluster import LocalCluster
from support.standstill import all_asked, send, standing_still


class Lab:
    """A table in `folder`, whose runs go to `folder/runs`, on `cluster`.

    Commands run in processes of their own, but for `submit`, which has to load torch.
    """

    def __init__(
        self,
        cluster: LocalCluster,
        folder: Path,
        monkeypatch: pytest.MonkeyPatch,
        *rows: str,
        seeds: int = 1,
        extra: tuple[str, ...] = lab_table.EXTRA,
    ) -> None:
        self.cluster = cluster
        self.extra = extra
        self.runs = folder / "runs"
        self.root = lab_table.write(folder / "tables", *rows)
        self.seeds = tuple(range(seeds))
        foreign = ("SLURM_", "SBATCH_", "CONVREPRO_", "PYTHONUNBUFFERED")
        for name in [name for name in os.environ if name.startswith(foreign)]:
            monkeypatch.delenv(name)
        self.env = {**cluster.env, "CONVREPRO_TABLES": str(self.root), "CONVREPRO_SLURM_SITE": ""}
        for name, value in self.env.items():
            monkeypatch.setenv(name, value)
        monkeypatch.chdir(folder)

    @property
    def jobs(self) -> list[Job]:
        table = lab_table.load_table(lab_table.NAME, self.root)
        return [job for job in lab_table.jobs(table, self.runs, extra=self.extra) if job.identity.seed in self.seeds]

    def job(self, row: str, seed: int = 0) -> Job:
        return next(job for job in self.jobs if (job.row.id, job.identity.seed) == (row, seed))

    def submit(self, *flags: str, jobs: list[Job] | None = None) -> str:
        """Submit the table, or some of its jobs; what was told."""
        told: list[str] = []
        jobs = jobs or self.jobs
        request = lab_table.request(jobs, flags=flags, overrides=self.extra)
        submit(jobs, request, load_site(flags), self.runs, told.append, dry_run=False)
        return "\n".join(told)

    def submit_alone(self) -> str:
        """Submit the table's only run without the job that collects; the id of its array."""
        array, collect = re.findall(r"^queued (\d+):", self.submit(), re.MULTILINE)
        self.cluster.run("scancel", collect)
        return array

    def call(self, verb: str, *words: str, check: bool = True) -> str:
        """What `convrepro VERB lab/tiny WORDS` prints."""
        done = self.cluster.run(
            "convrepro", verb, lab_table.NAME, *words, f"runs={self.runs}", env=self.env, check=check
        )
        return done.stdout + done.stderr

    def submissions(self) -> list[Submission]:
        return submissions(self.runs / lab_table.NAME / ".slurm")

    def collected(self, number: int = -1) -> str:
        """What the job that collects has said."""
        log = self.submissions()[number].folder / "logs" / "collect.log"
        return log.read_text() if log.exists() else ""

    def log(self, job: Job) -> str:
        """All that the tasks of a run have printed, submission after submission."""
        texts = []
        for submission in self.submissions():
            for entry, log in zip(submission.entries, logs_of(submission), strict=True):
                if entry.folder == str(job.folder) and log.exists():
                    texts.append(log.read_text(errors="replace"))
        return "".join(texts)

    def epochs(self, job: Job) -> list[int]:
        """The epochs that a run has ended, in the order of its log."""
        return [int(number) for number in re.findall(r"^  epoch (\d+)/", self.log(job), re.MULTILINE)]

    def progress(self, job: Job) -> dict[str, Any]:
        try:
            return json.loads((job.folder / "progress.json").read_text())
        except (OSError, ValueError):
            return {}

    def wait_for_epoch(self, job: Job, epoch: int) -> None:
        self.cluster.wait(lambda: self.progress(job).get("epoch", -1) >= epoch)

    def processes(self) -> dict[Path, list[int]]:
        """The Python processes that train, by run folder."""
        found: dict[Path, list[int]] = {}
        for process in Path("/proc").glob("[0-9]*"):
            try:
                words = (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
            except OSError:
                continue
            task = [word for word in words[1:] if word != "-P"]
            if task[:3] == ["-m", "convrepro.cli", "task"] and "--ended" not in task:
                manifest = Path(task[3])
                if manifest.is_relative_to(self.runs):
                    entry = Submission(manifest.parent).entries[int(task[4])]
                    found.setdefault(Path(entry.folder), []).append(int(process.name))
        return found

    def kill(self, job: Job, how: signal.Signals) -> bool:
        """Send a signal to the run's Python alone; False where there is none."""
        return send(self.processes().get(job.folder, []), how)

    @contextmanager
    def stopped(self, job: Job) -> Iterator[None]:
        """The run's processes stand still within the block."""
        with standing_still(self.processes().get(job.folder, [])):
            yield

    def asked_to_stop(self, job: Job) -> bool:
        """Whether each process of a run that is stopped has got a signal since."""
        return all_asked(self.processes().get(job.folder, []))

    def preempt(self, *words: str, seconds: int = 1) -> str:
        """Queue an urgent job of so many seconds, that takes its place from the table's runs; its id."""
        return self.cluster.sbatch("--partition=urgent", "--output=/dev/null", *words, f"--wrap=sleep {seconds}")


def undisturbed(job: Job, runs: Path) -> dict[str, Any]:
    """The result of the same run in this process, without anything in its way."""
    overrides = [o for o in job.overrides if not o.startswith("runs=")] + [f"runs={runs}"]
    return run(compose_config(overrides), overrides, echo=lambda line: None, table=job.table)


def result(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "result.json").read_text())
