"""The throw-away Slurm: it starts, runs what clusters run, and leaves nothing behind."""

import os
import re
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

import pytest

from support.cluster import NOT_INSTALLED, SCRIPT, LocalCluster
from support.patience import PATIENCE

pytestmark = [pytest.mark.cluster]
NOBODY = 65534


def script(folder: Path, text: str, name: str = "job.sh") -> Path:
    path = folder / name
    path.write_text(f"#!/bin/bash\n{text}")
    return path


def test_start_again_stop_and_purge(tmp_path):
    folder = tmp_path / "cluster"
    with LocalCluster(folder, "--nodes", "3", "--cpus", "1", "--max-array", "11") as cluster:
        assert cluster.run("sinfo", "--noheader", "--format=%D %c", "--partition=main").stdout.split() == ["3", "1"]
        assert "MaxArraySize = 11" in re.sub(" +", " ", cluster.scontrol("show", "config"))
        first = sorted(cluster.processes())
        assert cluster.script("start", "--nodes", "3").returncode == 0
        assert sorted(cluster.processes()) == first, "a second start starts nothing twice"
        cluster.sbatch("--wrap=true", "--output=/dev/null")
        cluster.wait_until_over()

        assert cluster.script("stop").returncode == 0
        assert cluster.processes() == []
        assert cluster.script("status").returncode == 3
        assert cluster.script("start").returncode == 0
        assert list(cluster.queue().values()) == ["COMPLETED"], "a cluster that comes back knows its jobs"
        assert cluster.script("env").stdout == f"export SLURM_CONF={folder}/slurm.conf\n"
        assert cluster.script("status").returncode == 0
    assert not folder.exists()
    assert cluster.processes() == []


def test_an_array_runs_on_both_nodes(cluster, tmp_path):
    job = script(tmp_path, 'echo $SLURM_ARRAY_TASK_ID $SLURMD_NODENAME > "$SLURM_ARRAY_TASK_ID.txt"; sleep 1\n')
    array = cluster.sbatch("--array=0-3", "--output=log_%a.txt", job, cwd=tmp_path)
    states = cluster.wait_until_over(array)
    assert states == {f"{array}_{index}": "COMPLETED" for index in range(4)}
    lines = [(tmp_path / f"{index}.txt").read_text().split() for index in range(4)]
    assert [line[0] for line in lines] == ["0", "1", "2", "3"]
    assert {line[1] for line in lines} == {"n1", "n2"}


def test_a_task_that_fails_is_failed_and_names_its_exit_code(cluster, tmp_path):
    array = cluster.sbatch("--array=0-1", "--output=/dev/null", script(tmp_path, "exit $((SLURM_ARRAY_TASK_ID * 7))\n"))
    assert cluster.wait_until_over(array) == {f"{array}_0": "COMPLETED", f"{array}_1": "FAILED"}
    assert cluster.job(f"{array}_1")["ExitCode"] == "7:0"


RESTARTED = 'echo "restarts ${SLURM_RESTART_COUNT:-0}"; [[ $SLURM_RESTART_COUNT ]] && exit\n'


def test_a_requeued_job_runs_again_and_counts_it(cluster, tmp_path):
    text = RESTARTED + 'trap "scontrol requeue $SLURM_JOB_ID" USR1; echo up; for i in {1..6000}; do sleep 0.1; done\n'
    log = tmp_path / "log.txt"
    job = cluster.sbatch("--requeue", "--open-mode=append", f"--output={log}", script(tmp_path, text))
    cluster.wait(lambda: log.exists() and "up" in log.read_text())
    cluster.run("scancel", "--batch", "--signal=USR1", job)
    assert cluster.wait_until_over(job) == {job: "COMPLETED"}
    assert re.findall(r"restarts (\d)", log.read_text()) == ["0", "1"]


def test_urgent_preempts_main_after_its_signal(cluster, tmp_path):
    """Both nodes full of main: its job hears USR1 on both, makes room, and comes back when the urgent job is over."""
    text = RESTARTED + "exec srun bash -c 'trap \"echo heard\" USR1; echo up; for i in {1..6000}; do sleep 0.1; done'\n"
    log = tmp_path / "log.txt"
    whole = ["--nodes=2", "--ntasks=2", "--exclusive"]
    main = cluster.sbatch(
        *whole, "--requeue", "--open-mode=append", "--signal=USR1@90", f"--output={log}", script(tmp_path, text)
    )
    cluster.wait(lambda: log.exists() and log.read_text().count("up") == 2)
    urgent = cluster.sbatch(*whole, "--partition=urgent", "--output=/dev/null", "--wrap=sleep 1")
    assert cluster.wait_until_over(main, urgent) == {main: "COMPLETED", urgent: "COMPLETED"}
    assert log.read_text().count("heard") == 2
    assert re.findall(r"restarts (\d)", log.read_text()) == ["0", "1"]


def test_the_controller_restarts_under_running_jobs(cluster, tmp_path):
    job = cluster.sbatch("--output=/dev/null", "--wrap=sleep 4")
    cluster.wait(lambda: cluster.queue()[job] == "RUNNING")
    cluster.restart_controller()
    assert cluster.queue()[job] in {"RUNNING", "COMPLETED"}
    assert cluster.wait_until_over(job) == {job: "COMPLETED"}


def test_two_clusters_side_by_side(cluster, tmp_path):
    with LocalCluster(tmp_path / "other", "--nodes", "1") as other:
        job = other.sbatch("--output=/dev/null", "--wrap=true", "--job-name=other")
        assert other.wait_until_over(job) == {job: "COMPLETED"}
        assert "other" not in cluster.run("squeue", "--states=all", "--format=%j").stdout.split()
    assert cluster.script("status").returncode == 0


def test_nothing_is_left_of_a_job_that_does_not_want_to_end(tmp_path):
    text = "trap '' TERM; srun bash -c 'trap \"\" TERM; touch up; while true; do sleep 0.1; done'\n"
    with LocalCluster(tmp_path / "cluster", "--nodes", "1") as cluster:
        cluster.sbatch("--output=/dev/null", script(tmp_path, text), cwd=tmp_path)
        cluster.wait((tmp_path / "up").exists)
    assert cluster.processes() == []


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["start", "--nodes", "none"], "--nodes none: must be a number from 1 to 48"),
        (["start", "--port", "80"], "--port 80: must be a number from 1024 to 65436"),
        (["start", "--gpus", "1"], "--gpus is not a word of it"),
        (["reboot"], "reboot is not a command of it"),
        (["stop", "--purge"], "there is no cluster in"),
        (["env"], "there is no cluster in"),
    ],
)
def test_a_mistake_is_one_sentence(tmp_path, words, sentence):
    folder = [] if words == ["reboot"] else ["--folder", tmp_path / "none"]
    done = subprocess.run([SCRIPT, *words, *folder], capture_output=True, text=True)
    assert done.returncode == 1
    assert sentence in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "none").exists()


def test_a_folder_that_is_not_its_own_is_neither_used_nor_removed(cluster, tmp_path):
    (tmp_path / "mine.txt").write_text("precious")
    for words in (["start"], ["stop", "--purge"]):
        done = subprocess.run([SCRIPT, *words, "--folder", tmp_path], capture_output=True, text=True)
        assert done.returncode == 1
    assert (tmp_path / "mine.txt").read_text() == "precious"
    other_knobs = cluster.script("start", "--nodes", "5")
    assert other_knobs.returncode == 1
    assert "nodes=2, not 5" in other_knobs.stderr


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("unshare"), reason="only root can hide a program")
def test_where_slurm_is_missing_the_line_that_installs_it_is_told(cluster, tmp_path):
    hidden = 'mount -t tmpfs none /usr/sbin && exec "$0" start --accounting --folder "$1"'
    command = ["unshare", "--mount", "bash", "-c", hidden, SCRIPT, tmp_path / "none"]
    done = subprocess.run(command, env={**os.environ, **cluster.env}, capture_output=True, text=True)
    if "unshare" in done.stderr or "mount:" in done.stderr:
        pytest.skip(done.stderr)
    assert done.returncode == NOT_INSTALLED
    assert "munged slurmctld slurmd slurmdbd mariadbd not found" in done.stderr
    assert "apt-get install --no-install-recommends slurm-wlm slurmctld slurmd munge slurmdbd" in done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="drops root's rights to run without them")
def test_it_runs_without_root(cluster):
    """As another user, from a copy of the script that this user can read; `install` alone needs root."""
    with tempfile.TemporaryDirectory(prefix="convrepro-") as name:
        folder = Path(name)
        copy = shutil.copy(SCRIPT, folder)
        os.chown(folder, NOBODY, NOBODY)
        environment = {**os.environ, "HOME": name, "SLURM_CONF": f"{folder}/cluster/slurm.conf"}

        def as_nobody(*words: object) -> subprocess.CompletedProcess[str]:
            rights = {"user": NOBODY, "group": NOBODY, "extra_groups": []}
            return subprocess.run(
                words, cwd=folder, env=environment, capture_output=True, text=True, timeout=PATIENCE, **rights
            )

        refused = as_nobody(copy, "install")
        assert (refused.returncode, refused.stderr.count("\n")) == (1, 1)
        assert "needs root: sudo apt-get install" in refused.stderr
        try:
            started = as_nobody(copy, "start", "--folder", folder / "cluster")
            assert started.returncode == 0, started.stderr
            assert as_nobody("srun", "--nodes=2", "id", "-u").stdout.split() == [str(NOBODY)] * 2
        finally:
            assert as_nobody(copy, "stop", "--purge", "--folder", folder / "cluster").returncode == 0


def test_jobs_that_a_crashed_controller_forgot_go_on_once_an_administrator_lets_them(cluster, tmp_path):
    job = script(tmp_path, "srun sleep 4\n")
    array = cluster.sbatch("--requeue", "--output=/dev/null", "--array=0-1", "--nodes=1", job)
    cluster.wait(lambda: "RUNNING" in cluster.queue().values())
    cluster.restart_controller(signal.SIGKILL)
    assert cluster.wait_until_over(array) == {f"{array}_0": "COMPLETED", f"{array}_1": "COMPLETED"}
