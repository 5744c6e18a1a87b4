"""A real Slurm on the loopback for tests: `slurm/local_cluster.sh`, started, asked and stopped from Python.

Tests take the session's cluster by the fixture `cluster` (conftest.py), or start one of their own where it has to be
another one. They carry the mark `cluster`, and `tiers.py` says which files share one.

What Slurm has not done yet, it may do later: nothing here takes a busy machine, or a controller that restarts, for a
failure before `PATIENCE` has passed.
"""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import pytest

from convrepro.cluster.slurm import SILENCE
from support.command import CONVREPRO, convrepro, write_python
from support.patience import PATIENCE, wait

SCRIPT = Path(__file__).parents[2] / "slurm" / "local_cluster.sh"
NOT_INSTALLED = 4  # the script's exit code
OVER = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "OUT_OF_MEMORY", "DEADLINE"}
#: How often, and for how long, nodes are asked what they run after a crash of slurmctld, in seconds. It believes a node
#: that misses a job only 20 seconds after the job's start (BatchStartTimeout and MessageTimeout).
ASK_AGAIN, ASK_UNTIL = 10, 60
#: Commands that may be repeated where the controller did not answer.
REPEATABLE = {"squeue", "sinfo", "scontrol", "scancel", "sacct"}

T = TypeVar("T")


class LocalCluster:
    """One cluster in `folder`; `with LocalCluster(...)` starts it, and in the end stops it and removes the folder.

    folder: new or empty. knobs: of `local_cluster.sh start`, such as "--nodes", "3" or "--accounting".
    env: what to merge into os.environ for a process that talks to the cluster; the command `convrepro` in its PATH and,
        by CONVREPRO_SLURM_PYTHON, tasks of tables are forks (`command.write_python`).
    Entering skips the test where Slurm is not installed.
    """

    def __init__(self, folder: Path, *knobs: str) -> None:
        self.folder = folder
        self.knobs = knobs
        self._crashed: float | None = None  # when slurmctld was killed, by time.monotonic()
        self._asked = 0.0  # when the nodes were last asked what they run
        self.env = {
            "SLURM_CONF": str(folder / "slurm.conf"),
            "PATH": f"{folder / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}:/usr/sbin:/sbin",
            "CONVREPRO_SLURM_PYTHON": str(folder / "python"),
        }

    def __enter__(self) -> "LocalCluster":
        started = self.script("start", *self.knobs)
        if started.returncode == NOT_INSTALLED:
            pytest.skip(started.stderr.strip())
        assert started.returncode == 0, started.stderr + self.logs()
        write_python(self.folder / "python")
        write_python(self.folder / "bin" / "convrepro", *CONVREPRO)
        return self

    def __exit__(self, *_: object) -> None:
        stopped = self.script("stop", "--purge")
        assert stopped.returncode == 0, stopped.stderr

    def script(self, command: str, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a command of the script on this cluster's folder."""
        line = [SCRIPT, command, "--folder", self.folder, *words]
        return subprocess.run(line, capture_output=True, text=True, timeout=PATIENCE, env=_clean())

    def run(
        self,
        *command: str | Path,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        check: bool = True,
    ) -> subprocess.CompletedProcess[str]:
        """A command that talks to the cluster, with this interpreter's `convrepro` and `python` first in its PATH.

        Asks again a controller that does not answer, where that does no harm. Raises AssertionError with all output and
        the cluster's logs where the command fails, unless `check` is false.
        """
        words = [str(word) for word in command]
        settings = {"cwd": cwd, "env": {**_clean(), **self.env, **(env or {})}}
        deadline = time.monotonic() + PATIENCE
        while True:
            if words[0] == "convrepro":
                done = convrepro(*words[1:], **settings, timeout=PATIENCE)
            else:
                done = subprocess.run(words, **settings, capture_output=True, text=True, timeout=PATIENCE)
            silent = done.returncode and words[0] in REPEATABLE and SILENCE.search(done.stderr)
            if not (check and silent) or time.monotonic() > deadline:
                break
            time.sleep(0.5)
        if check and done.returncode:
            raise AssertionError(f"{command} ended with {done.returncode}\n{done.stdout}{done.stderr}\n{self.logs()}")
        return done

    def launch(self, *command: str | Path, cwd: Path | None = None) -> subprocess.Popen[str]:
        """As `run`, not waited for; leave it by `with`, or by `communicate`."""
        return subprocess.Popen(
            [str(word) for word in command],
            cwd=cwd,
            env={**_clean(), **self.env},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def sbatch(self, *words: str | Path, cwd: Path | None = None) -> str:
        """Submit a job with `sbatch --parsable words`; its id."""
        return self.run("sbatch", "--parsable", *words, cwd=cwd).stdout.strip()

    def queue(self) -> dict[str, str]:
        """State by job id, an array's by `<array id>_<index>`; finished jobs stay for an hour."""
        lines = self.run("squeue", "--noheader", "--array", "--states=all", "--format=%i %T").stdout.splitlines()
        return dict(line.split() for line in lines)

    def scontrol(self, *words: str) -> str:
        return self.run("scontrol", *words).stdout

    def job(self, job: str) -> dict[str, str]:
        """What `scontrol show job` says of one job or array task, such as ExitCode, Restarts, Reason."""
        words = self.scontrol("--oneliner", "show", "job", job).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def wait(self, predicate: Callable[[], T]) -> T:
        """The first true value of `predicate`; raises AssertionError with queue and logs where there never is one."""
        deadline = time.monotonic() + PATIENCE
        while not (value := predicate()):
            if time.monotonic() > deadline:
                jobs = self.run("squeue", "--states=all", check=False)
                raise AssertionError(f"waited in vain; jobs: {jobs.stdout}{jobs.stderr}\n{self.logs()}")
            time.sleep(0.2)
            if self._crashed is not None:
                self._put_right(time.monotonic() - self._crashed)
        return value

    def _put_right(self, since: float) -> None:
        """What an administrator does `since` seconds after a crash of slurmctld.

        It has forgotten which jobs it started just before, takes them for duplicates when it starts them again, drains
        their nodes and holds them. And it takes a job that had ended just before for running until the nodes tell what
        they run, by default every five minutes.
        """
        if since < ASK_UNTIL and time.monotonic() - self._asked > ASK_AGAIN:
            self.run("scontrol", "reconfigure", check=False)
            self._asked = time.monotonic()
        drained = set(self.run("sinfo", "-Nh", "-o", "%N %E").stdout.splitlines())
        for node in (line.split()[0] for line in drained if line.endswith("Duplicate jobid")):
            self.run("scontrol", "update", f"nodename={node}", "state=resume", check=False)
        held = self.run("squeue", "-rh", "-t", "PD", "-o", "%i %r").stdout.splitlines()
        for job in (line.split()[0] for line in held if line.endswith("launch failed requeued held")):
            self.run("scontrol", "release", job, check=False)

    def wait_until_over(self, *jobs: str) -> dict[str, str]:
        """Wait until these jobs (arrays: all their tasks; none given: every job) have ended; their states."""

        def over() -> dict[str, str]:
            states = {k: v for k, v in self.queue().items() if not jobs or k in jobs or k.split("_")[0] in jobs}
            return states if states and set(states.values()) <= OVER else {}

        return self.wait(over)

    def restart_controller(self, how: signal.Signals = signal.SIGTERM) -> None:
        """End slurmctld by a signal, SIGKILL if asked, and start it again."""
        self.end_controller(how)
        started = self.script("start")
        assert started.returncode == 0, started.stderr + self.logs()
        if how == signal.SIGKILL:
            self._crashed = time.monotonic()

    def end_controller(self, how: signal.Signals = signal.SIGTERM) -> None:
        """End slurmctld by a signal: nothing of Slurm answers after that."""
        pid = int((self.folder / "run" / "slurmctld.pid").read_text())
        os.kill(pid, how)
        wait(lambda: not _lives(pid))

    def forgotten(self) -> int:
        """How many jobs ran that a controller, after it was killed, took for waiting; it has them killed."""
        log = (self.folder / "log" / "slurmctld.log").read_text(errors="replace")
        return len(re.findall(r"Registered PENDING JobId=\S+ StepId=\S+\.batch", log))

    def logs(self) -> str:
        """The last lines of each of the cluster's logs."""
        parts = []
        for path in sorted((self.folder / "log").glob("*.log")):
            parts += [f"--- {path.name}", *path.read_text(errors="replace").splitlines()[-30:]]
        return "\n".join(parts)

    def processes(self) -> list[str]:
        """Command lines of what runs for this cluster: its daemons, and whatever a job has left."""
        own = str(self.folder).encode()
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                line, environment = (process / "cmdline").read_bytes(), (process / "environ").read_bytes()
            except OSError:
                continue
            if _lives(int(process.name)) and (own in line or b"SLURM_CONF=" + own in environment):
                found.append(line.replace(b"\0", b" ").decode(errors="replace").strip())
        return found


def _lives(pid: int) -> bool:
    """Whether the process is there; a zombie, that nobody has waited for yet, is not."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def _clean() -> dict[str, str]:
    """This process's environment without what another cluster, or a job that it is itself in, put there."""
    return {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "SBATCH_", "SRUN_"))}
