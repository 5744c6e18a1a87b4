"""`convrepro train -m` on Slurm by Hydra's submitit launcher: failures are failures, for Slurm too."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from convrepro.errors import ConvReproError
from convrepro.training.sweep import sweep
from support.cluster import LocalCluster
from support.patience import PATIENCE
from support.standstill import all_asked, standing_still

pytestmark = [pytest.mark.cluster]

#: The network's second convolution has 20 input channels: hetconv takes p=2 and 5, but not 3.
ROW = ["model=deepshift_mnist_conv", "conv=hetconv", "logger=none", "trainer=cpu", "hydra/launcher=submitit_slurm"]
ROW += ["recipe.epochs=10", "recipe.batch_size=16", "budget.train_examples=256", "budget.test_examples=100"]
REASON = "layer 'features.3': p=3 must divide"


@pytest.fixture(scope="module")
def accounting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    with LocalCluster(tmp_path_factory.mktemp("accounting") / "cluster", "--accounting") as started:
        del started.env["CONVREPRO_SLURM_PYTHON"]  # here each task starts Python itself, as at a site
        yield started


def job_log(runs: Path, job: str) -> str:
    """What the job has printed so far."""
    return "".join(path.read_text() for path in runs.glob(f"sweep/.submitit/{job}/*_log.out"))


def processes(runs: Path, index: int) -> list[int]:
    """The Python processes that train this member of the sweep."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().decode().split("\0")
            env = (process / "environ").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        ours = "submitit.core._submit" in words and any(str(runs) in word for word in words)
        if ours and "python" in Path(words[0]).name and f"SLURM_ARRAY_TASK_ID={index}" in env:
            found.append(int(process.name))
    return found


def accounts(cluster: LocalCluster, job: str) -> dict[str, str]:
    """State by job id as sacct has it, which learns of an end a little after squeue."""
    told = cluster.run("sacct", "--noheader", "--allocations", "--format=jobid,state", f"--jobs={job}").stdout
    return dict(line.split() for line in told.splitlines())


def results(runs: Path) -> dict[int, dict]:
    """Finished runs by their p."""
    found = [json.loads(path.read_text()) for path in runs.rglob("result.json")]
    return {result["config"]["conv"]["p"]: result for result in found}


def test_of_three_runs_one_fails_one_is_queued_again_and_two_have_results(accounting, tmp_path):
    """The run with p=2 gets, after its first epoch, the signal that Slurm sends at a time limit or a preemption."""
    words = [*ROW, "conv.p=2,3,5", f"runs={tmp_path}"]
    with accounting.launch("convrepro", "train", "-m", *words, cwd=tmp_path) as waiting:
        accounting.wait(lambda: "epoch 1/10" in job_log(tmp_path, "1_0"))
        pids = processes(tmp_path, 0)
        with standing_still(pids):
            accounting.run("scancel", "--signal=USR2", "1_0")
            accounting.wait(lambda: all_asked(pids))
        out, err = waiting.communicate(timeout=PATIENCE)
    states = accounting.wait_until_over("1")
    assert states == {"1_0": "COMPLETED", "1_1": "FAILED", "1_2": "COMPLETED"}, out + err
    assert accounting.job("1_1")["ExitCode"] == "1:0"
    assert accounting.job("1_0")["Restarts"] == "1"
    accounting.wait(lambda: accounts(accounting, "1") == states)

    assert waiting.returncode == 1
    failed = [line for line in err.splitlines() if line.startswith("failed: ")]
    assert len(failed) == 1, out + err + job_log(tmp_path, "1_0")
    assert "conv.p=3" in failed[0]
    assert REASON in failed[0]
    assert REASON in job_log(tmp_path, "1_1")
    assert out.count("done: ") == 2
    finished = results(tmp_path)
    assert sorted(finished) == [2, 5]
    assert [line["epoch"] for line in finished[2]["history"]] == list(range(10))
    assert "resumes from" in job_log(tmp_path, "1_0")
    assert "interrupted: " in job_log(tmp_path, "1_0")


def test_a_job_that_is_lost_is_told(accounting, tmp_path):
    words = [*ROW, "conv.p=2", "+hydra.launcher.additional_parameters.hold=true", f"runs={tmp_path}"]
    known = set(accounting.queue())
    with accounting.launch("convrepro", "train", "-m", *words, cwd=tmp_path) as waiting:
        (job,) = accounting.wait(lambda: set(accounting.queue()) - known)
        accounting.run("scancel", job)
        _, err = waiting.communicate(timeout=PATIENCE)
    assert waiting.returncode == 2
    assert "a job of the sweep left no result; the others go on" in err
    assert "CANCELLED" in err
    assert "Traceback" not in err


@pytest.mark.exhaustive
def test_without_accounting_it_says_what_that_means_and_a_failure_still_ends_it(cluster, tmp_path):
    done = cluster.run("convrepro", "train", "-m", *ROW, "conv.p=3", f"runs={tmp_path}", cwd=tmp_path, check=False)
    assert done.returncode == 1
    told, *_, last = done.stderr.splitlines()
    assert "sacct does not work" in told
    assert "waits for ever" in told
    assert last.startswith("failed: ")
    assert REASON in last
    (job,) = [path.parent.name for path in tmp_path.glob("sweep/.submitit/*/*_log.out")]
    assert cluster.wait_until_over(job) == {job: "FAILED"}


def test_a_missing_plugin_and_a_missing_slurm_are_one_sentence(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConvReproError, match=r"submitit_slurm needs Slurm, but there is no sbatch here"):
        sweep(ROW)
    monkeypatch.setitem(sys.modules, "hydra_plugins.hydra_submitit_launcher", None)
    with pytest.raises(ConvReproError, match=r"not installed: pip install 'convrepro\[slurm\]'"):
        sweep(ROW)


def test_a_bad_override_is_told_before_anything_is_submitted(cluster, tmp_path):
    words = ["hydra/launcher=submitit_slurm", "conv=hetconv", "conv.q=2,4", f"runs={tmp_path}"]
    before = cluster.queue()
    done = cluster.run("convrepro", "train", "-m", *words, cwd=tmp_path, check=False)
    assert done.returncode == 2
    assert "conv.q" in done.stderr
    assert "Traceback" not in done.stderr
    assert cluster.queue() == before
