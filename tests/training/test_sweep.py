"""`convrepro train -m` on this machine: a member that fails is told and stops nobody, a request to stop stops all."""

import json
import signal
import subprocess
from pathlib import Path

import pytest

from support.command import CONVREPRO, Python
from support.patience import PATIENCE, wait

#: The network's second convolution has 20 input channels: hetconv takes p=2 and 5, but not 3.
ROW = ["model=deepshift_mnist_conv", "conv=hetconv", "logger=none", "trainer=cpu"]
ROW += ["recipe.batch_size=16", "budget.train_examples=256", "budget.test_examples=100"]


def start(runs: Path, *words: str) -> Python:
    command = [*CONVREPRO, "train", "-m", *ROW, *words, f"runs={runs}"]
    return Python(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finished(runs: Path) -> list[int]:
    return sorted(json.loads(path.read_text())["config"]["conv"]["p"] for path in runs.rglob("result.json"))


def test_a_member_that_fails_is_told_and_the_others_run(tmp_path):
    with start(tmp_path, "recipe.epochs=1", "budget.max_batch_size=8", "conv.p=2,3,5") as process:
        out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1, out + err
    assert finished(tmp_path) == [2, 5]
    configurations = [json.loads(path.read_text())["config"] for path in tmp_path.rglob("result.json")]
    assert [c["recipe"]["batch_size"] for c in configurations] == [8, 8], "the budget shrinks it, as without -m"
    (failed,) = [line for line in err.splitlines() if line.startswith("failed: ")]
    assert "conv.p=3" in failed
    assert "layer 'features.3': p=3 must divide" in failed
    assert out.count("done: ") == 2


def test_a_secret_is_refused_before_anything_is_written(tmp_path):
    with start(tmp_path, "weights='https://reader:hunter2@models.org/net-0123abcd.pth'", "conv.p=2,5") as process:
        out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 2
    assert "carries a password or key" in err
    assert "hunter2" not in out + err
    assert list(tmp_path.iterdir()) == []


def test_a_request_to_stop_stops_the_whole_sweep(tmp_path):
    with start(tmp_path, "recipe.epochs=200", "conv.p=2,5") as process:
        wait(lambda: list(tmp_path.rglob("last.ckpt")), process)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 128 + signal.SIGTERM, err
    assert finished(tmp_path) == []
    assert len(list(tmp_path.rglob("progress.json"))) == 1, "the second member was not started"


OPTUNA = ["hydra/sweeper=optuna", "hydra.sweeper.n_trials=2", "hydra.sweeper.n_jobs=1", "hydra.sweeper.sampler.seed=1"]
SMALL = ["recipe.epochs=1", "budget.train_examples=64", "budget.test_examples=50"]


def test_optuna_finds_the_run_of_the_highest_accuracy(tmp_path):
    with start(tmp_path, *OPTUNA, *SMALL, "conv.p=choice(2,5)", "recipe.optimizer.lr=interval(0.01,0.1)") as process:
        out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, out + err
    results = [json.loads(path.read_text()) for path in tmp_path.rglob("result.json")]
    assert len(results) == 2
    best = max(results, key=lambda result: result["metrics"]["last"]["top1"])
    top1 = best["metrics"]["last"]["top1"]
    (line,) = [line for line in out.splitlines() if line.startswith("best: ")]
    assert line.endswith(f"top-1 {top1:.2f} %")
    equal = [r for r in results if r["metrics"]["last"]["top1"] == top1]
    assert any(f"recipe.optimizer.lr={r['config']['recipe']['optimizer']['lr']}" in line for r in equal)


def test_a_trial_that_cannot_run_is_told(tmp_path):
    with start(tmp_path, *OPTUNA, *SMALL, "conv.p=choice(3,7)") as process:
        out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 2, out + err
    assert "layer 'features.3': p=" in err.splitlines()[-1]
    assert "Traceback" not in err
    assert not finished(tmp_path)


@pytest.mark.parametrize("words", [["conv=standard,low_rank"], ["conv=glob(low*,exclude=low_precision)"]], ids=str)
def test_operators_are_swept_by_name_and_by_pattern(tmp_path, words):
    row = [word for word in ROW if not word.startswith("conv=")]
    command = [*CONVREPRO, "train", "-m", *row, *SMALL, *words, f"runs={tmp_path}"]
    with Python(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, out + err
    names = sorted(json.loads(path.read_text())["config"]["conv"]["name"] for path in tmp_path.rglob("result.json"))
    assert names == (["low_rank", "standard"] if "standard" in words[0] else ["low_rank"])
