"""`submit`, `status`, `resubmit`, `cancel` and the job that collects, on a real Slurm."""

import math
import os
import re
import shutil
import signal
import threading
from pathlib import Path

import pytest
import torch

from convrepro.cluster import slurm
from convrepro.errors import ConvReproError
from support import lab_table
from support.cluster import LocalCluster
from support.small_runs import science
from support.table_on_cluster import Lab, result, undisturbed

pytestmark = [pytest.mark.cluster]

EPOCHS, EXAMPLES = 20, 2000
WORK = f"budget.epochs={EPOCHS}, budget.train_examples={EXAMPLES}"
LONG = f"  - {{id: long, label: Long, overrides: [{WORK}], published: {{}}}}\n"
HELD = "--hold"


def numbers(told: str) -> list[str]:
    """The ids of the jobs that a submission says it queued."""
    return re.findall(r"^queued (\d+):", told, re.MULTILINE)


def test_a_table_from_the_command_to_the_collected_result(cluster, tmp_path, monkeypatch):
    """Two rows and two that take their weights: one of the first fails, so that its follower never starts; both are
    named, and repaired by `resubmit`.
    """
    torn_row = lab_table.PLAIN.replace("plain", "torn")
    late = lab_table.SHIFT.replace("shift,", "late,").replace("m: plain", "m: torn")
    lab = Lab(cluster, tmp_path, monkeypatch, lab_table.PLAIN, lab_table.SHIFT, torn_row, late)
    torn = lab.job("torn").folder / "last.ckpt"
    torn.parent.mkdir(parents=True)
    torn.write_bytes(b"no checkpoint")
    words = ["submit", lab_table.NAME, "--budget", "smoke", "--seeds", "0", *lab_table.EXTRA, "--", "-t", "60"]
    full = lab.preempt("--nodes=2", "--exclusive", seconds=3600)
    told = cluster.run("convrepro", *words, cwd=tmp_path, env=lab.env).stdout
    first, second, collect = numbers(told)
    assert cluster.job(f"{second}_0")["Dependency"].startswith(f"aftercorr:{first}_")
    assert cluster.job(collect)["JobState"] == "PENDING", "submit waits for none of its jobs"
    assert re.search(r"shift +pending Dependency", lab.call("status"))
    cluster.run("scancel", full)

    states = cluster.wait_until_over(first, second, collect)
    assert states == {
        f"{first}_0": "COMPLETED",
        f"{first}_1": "FAILED",
        f"{second}_0": "COMPLETED",
        f"{second}_1": "CANCELLED",
        collect: "FAILED",
    }
    assert f"smoke {result(lab.job('shift').folder)['metrics']['last']['top1']:.2f}" in lab.collected()
    assert result(lab.job("shift").folder)["config"]["weights"] == str(lab.job("plain").folder / "last.ckpt")
    reason = re.escape(f"torn, seed 0: failed: {torn} cannot be resumed from")
    assert re.search(f"^no result: {reason}", lab.collected(), re.MULTILINE)
    status = lab.call("status")
    assert re.search(f"^{reason}", status, re.MULTILINE)
    assert re.search(r"plain +done \d", status)
    assert "late, seed 0: cancelled: row torn, whose weights it takes, is failed" in status

    before = (lab.job("plain").folder / "result.json").stat().st_mtime_ns
    torn.unlink()
    told = lab.call("resubmit")
    assert "4 runs, 2 finished, 0 queued already, 2 to queue" in told
    cluster.wait_until_over(*numbers(told))
    assert "4 runs: 4 done" in lab.collected()
    assert (lab.job("plain").folder / "result.json").stat().st_mtime_ns == before
    assert "nothing to queue" in lab.submit()


@pytest.mark.exhaustive
def test_a_preempted_run_goes_on_at_the_step_where_it_stopped(cluster, tmp_path, monkeypatch):
    lab = Lab(cluster, tmp_path, monkeypatch, LONG)
    (job,) = lab.jobs
    array = lab.submit_alone()
    lab.wait_for_epoch(job, 2)
    with lab.stopped(job):
        urgent = lab.preempt("--nodes=2", "--exclusive", seconds=3600)
        cluster.wait(lambda: lab.asked_to_stop(job))
    cluster.wait(lambda: slurm.state(f"{array}_0") == "PENDING")
    assert re.search(r"long +pending \w+, requeued 1x", lab.call("status"))
    cluster.run("scancel", urgent)
    saved = torch.load(job.folder / "last.ckpt", weights_only=True)["global_step"]
    assert saved == int(re.search(r"last\.ckpt of step (\d+)", lab.log(job))[1])

    cluster.wait_until_over(array)
    assert cluster.job(f"{array}_0")["Restarts"] == "1"
    assert lab.log(job).count("goes back into the queue") == 1
    assert lab.epochs(job) == list(range(1, EPOCHS + 1)), "every epoch once"
    assert science(result(job.folder)) == science(undisturbed(job, tmp_path / "calm"))


@pytest.mark.exhaustive
def test_a_run_on_two_nodes_is_preempted_as_one(cluster, tmp_path, monkeypatch):
    """Both processes stop at the same step; rank 0 alone queues the job again."""
    extra = ("trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=1", "trainer.num_nodes=2", "logger=none")
    lab = Lab(cluster, tmp_path, monkeypatch, LONG, extra=extra)
    (job,) = lab.jobs
    array = lab.submit_alone()
    lab.wait_for_epoch(job, 1)
    with lab.stopped(job):
        lab.preempt("--nodes=2", "--exclusive")
        cluster.wait(lambda: lab.asked_to_stop(job))
    cluster.wait_until_over(array)
    assert cluster.job(f"{array}_0")["Restarts"] == "1"
    assert lab.log(job).count("goes back into the queue") == 1
    assert lab.epochs(job) == list(range(1, EPOCHS + 1)), "every epoch once"
    steps = torch.load(job.folder / "last.ckpt", weights_only=True)["global_step"]
    assert steps == EPOCHS * math.ceil(EXAMPLES / 64), "64 images a step, of both processes together"


def test_a_run_that_is_terminated_alone_is_queued_again(cluster, tmp_path, monkeypatch):
    """As by a cluster that preempts with SIGTERM only, while Slurm takes the job for running."""
    lab = Lab(cluster, tmp_path, monkeypatch, LONG)
    (job,) = lab.jobs
    array, _ = numbers(lab.submit())
    lab.wait_for_epoch(job, 1)
    assert lab.kill(job, signal.SIGTERM)
    cluster.wait(lambda: slurm.state(f"{array}_0") == "PENDING")
    assert "ended by SIGTERM at step" in lab.log(job)
    lab.call("cancel")


@pytest.mark.exhaustive
def test_cancel_ends_this_tables_jobs_alone_and_resubmit_goes_on_from_there(cluster, tmp_path, monkeypatch):
    lab = Lab(cluster, tmp_path, monkeypatch, LONG)
    (job,) = lab.jobs
    other = cluster.sbatch("--hold", "--output=/dev/null", "--wrap=true")
    array, collect = numbers(lab.submit())
    lab.wait_for_epoch(job, 1)
    with lab.stopped(job):
        assert "2 jobs cancelled" in lab.call("cancel")
    assert set(cluster.wait_until_over(array, collect).values()) == {"CANCELLED"}
    assert cluster.queue()[other] == "PENDING"
    cluster.run("scancel", other)
    assert not lab.processes()
    ended = len(lab.epochs(job))
    assert 0 < ended < EPOCHS
    assert re.search("long +cancelled", lab.call("status"))

    array, collect = numbers(lab.call("resubmit"))
    cluster.run("scancel", collect)
    cluster.wait_until_over(array)
    assert lab.epochs(job) == list(range(1, EPOCHS + 1)), "every epoch once"


def test_a_run_that_is_killed_over_and_over_is_given_up_and_told(cluster, tmp_path, monkeypatch):
    """What the kernel does to a run that wants more memory than there is, here by a Python that kills itself."""
    lab = Lab(cluster, tmp_path, monkeypatch, lab_table.PLAIN)
    mortal = tmp_path / "python"
    mortal.write_text(
        f'#!/bin/bash\n[[ "$*" != *" task "* || "$*" == *--ended* ]] || kill -9 $$\nexec {os.sys.executable} "$@"\n'
    )
    mortal.chmod(0o755)
    monkeypatch.setenv("CONVREPRO_SLURM_PYTHON", str(mortal))
    array = lab.submit_alone()
    cluster.wait_until_over(array)
    assert cluster.job(f"{array}_0")["Restarts"] == "3"
    reason = "plain, seed 0: failed: ended by SIGKILL 3 times in a row without getting beyond step 0"
    assert reason in lab.call("status")


def test_arrays_are_cut_at_the_clusters_limit_and_waves_wait_for_earlier_submissions(tmp_path, monkeypatch):
    with LocalCluster(tmp_path / "cluster", "--max-array", "3") as small:
        lab = Lab(small, tmp_path, monkeypatch, seeds=2)
        plain = [job for job in lab.jobs if not job.source]
        first, collect = numbers(lab.submit(HELD, jobs=plain))
        told = lab.submit(HELD)
        assert "4 runs, 0 finished, 2 queued already, 2 to queue" in told
        second, last = numbers(told)
        assert set(small.queue()) == {f"{first}_0", f"{first}_1", collect, f"{second}_0", f"{second}_1", last}
        waits = small.job(f"{second}_0")["Dependency"]
        assert {f"{first}_0", f"{first}_1"} <= set(re.findall(r"\d+_\d+", waits.replace("*", "")))
        assert "nothing to queue" in lab.submit(HELD)
        lab.call("cancel")

        rows = [lab_table.PLAIN.replace("plain", f"plain{n}") for n in range(7)]
        (tmp_path / "more").mkdir()
        lab = Lab(small, tmp_path / "more", monkeypatch, *rows)
        told = lab.submit(HELD)
        *arrays, collect = numbers(told)
        queue = [job for job in small.queue() if job.split("_")[0] in arrays]
        assert len(arrays) == 3
        assert sorted(queue) == sorted(f"{arrays[n // 3]}_{n % 3}" for n in range(7))
        assert all(array in small.job(collect)["Dependency"] for array in arrays)


def test_what_sbatch_refuses_is_told_and_leaves_nothing(cluster, tmp_path, monkeypatch):
    lab = Lab(cluster, tmp_path, monkeypatch, lab_table.PLAIN)
    before = set(cluster.queue())
    with pytest.raises(ConvReproError, match=r"^sbatch failed: .*[Ii]nvalid partition") as error:
        lab.submit("--partition=nowhere")
    assert "\n" not in str(error.value)
    with pytest.raises(ConvReproError, match=r"^sbatch failed: .*partiton"):
        lab.submit("--partiton=main")
    assert set(cluster.queue()) == before
    assert lab.submissions() == []


def test_a_collect_job_that_is_refused_takes_the_arrays_back(cluster, tmp_path, monkeypatch):
    """An sbatch that works once: all of a submission is queued, or nothing."""
    lab = Lab(cluster, tmp_path, monkeypatch, lab_table.PLAIN)
    wrap(lab, tmp_path, monkeypatch, 'if [ -e "$mark" ]; then echo "sbatch: error: too many jobs" >&2; exit 1; fi\n')
    with pytest.raises(ConvReproError, match="too many jobs"):
        lab.submit(HELD)
    assert [queued for queued in slurm.queue() if queued.script.is_relative_to(tmp_path)] == []
    assert lab.submissions() == []


def test_a_script_whose_answer_got_lost_is_not_queued_twice(cluster, tmp_path, monkeypatch):
    """An sbatch that queues the job and then says that the controller did not answer in time."""
    lab = Lab(cluster, tmp_path, monkeypatch, lab_table.PLAIN)
    timeout = 'touch "$mark"; echo "Socket timed out on send/recv operation" >&2; exit 1'
    lost = f'[ -e "$mark" ] || {{ "$real" "$@"; {timeout}; }}\n'
    wrap(lab, tmp_path, monkeypatch, lost)
    array, collect = numbers(lab.submit(HELD))
    mine = {queued.job for queued in slurm.queue() if queued.script.is_relative_to(tmp_path)}
    assert mine == {f"{array}_0", collect}
    lab.call("cancel")


def wrap(lab: Lab, folder: Path, monkeypatch: pytest.MonkeyPatch, before: str) -> None:
    """Put an `sbatch` first in the PATH that runs some shell before the real one, and then `touch $mark`."""
    real = shutil.which("sbatch")
    (folder / "bin").mkdir()
    script = folder / "bin" / "sbatch"
    script.write_text(f'#!/bin/bash\nreal={real}\nmark={folder}/mark\n{before}"$real" "$@" && touch "$mark"\n')
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder / 'bin'}:{lab.env['PATH']}")


def test_a_shell_that_is_a_job_itself_does_not_change_what_is_asked_for(cluster, tmp_path, monkeypatch):
    lab = Lab(cluster, tmp_path, monkeypatch, lab_table.PLAIN)
    foreign = {"SBATCH_ARRAY_INX": "0-9", "SBATCH_NO_REQUEUE": "1", "SBATCH_OPEN_MODE": "truncate"}
    for name, value in {**foreign, "SLURM_JOB_ID": "1", "SLURM_NTASKS": "2", "SLURM_ARRAY_TASK_ID": "5"}.items():
        monkeypatch.setenv(name, value)
    array, collect = numbers(lab.submit(HELD))
    assert {queued.job for queued in slurm.queue() if queued.array in (array, collect)} == {f"{array}_0", collect}
    assert cluster.job(f"{array}_0")["Requeue"] == "1"
    lab.call("cancel")


def test_a_controller_that_comes_back_is_waited_for(cluster, tmp_path, monkeypatch):
    lab = Lab(cluster, tmp_path, monkeypatch, lab_table.PLAIN)
    pid = int((cluster.folder / "run" / "slurmctld.pid").read_text())
    os.kill(pid, signal.SIGTERM)
    back = threading.Timer(3, cluster.script, ["start"])
    back.start()
    array, collect = numbers(lab.submit(HELD))
    back.join()
    assert {f"{array}_0", collect} <= set(cluster.queue())
    lab.call("cancel")
