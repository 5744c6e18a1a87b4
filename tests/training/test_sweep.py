"""`convrepro train -m` on this machine: a member that fails is told and stops nobody, a request to stop stops all."""

import json
import signal
import subprocess
from pathlib import Path

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
