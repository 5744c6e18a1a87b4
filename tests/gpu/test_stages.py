"""Stages 3 and 4 of `run.sh` on the CPU: they run, are not repeated, end in time, and say what is missing."""

import argparse
import importlib.util
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest
import torch

from support.command import Python
from support.patience import PATIENCE

FOLDER = Path(__file__).parent
sys.path.append(str(FOLDER))  # where the scripts find each other

#: A row of the table on a network that a CPU trains in a second.
ROW = "dwc_pwc"
WORDS = ["model=resnet8_cifar"]


@pytest.fixture(autouse=True)
def _own_settings():
    """The scripts have a process of their own elsewhere; here Lightning's settings must not outlive a test."""
    exact, warns = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    yield
    torch.use_deterministic_algorithms(exact, warn_only=warns)


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"gpu_{name}", FOLDER / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def words(out: Path, seconds: float = 600, only: str = "", overrides: tuple[str, ...] = ()) -> argparse.Namespace:
    given = {"device": "cpu", "seconds": seconds, "out": out, "only": only, "overrides": [*WORDS, *overrides]}
    return argparse.Namespace(**given, begun=time.time())


def forked(command: list[str], **options) -> Python:
    """A process without the seconds that libraries load for."""
    return Python(command[1:], **options)


def forbidden(*_, **__):
    raise AssertionError("a run was started again")


def test_training_is_rehearsed_once(tmp_path, monkeypatch):
    import resumed
    from records import Records

    training = script("training")
    monkeypatch.setattr(resumed, "Popen", forked)
    first = Records("training", words(tmp_path))
    training.all_cases(first)
    assert {name: case for name, case in first.cases.items() if "error" in case} == {}
    timed, killed = first.cases["throughput resnet8_cifar"], first.cases["resumed resnet8_cifar"]
    assert set(timed["images_per_second"]) == {"package", "loop", "tuned loop"}
    assert killed["equal"]
    assert killed["killed_at"] > 0
    assert killed["top1"]["device"] == killed["top1"]["cpu"]
    assert "skipped" in first.cases["syncs resnet8_cifar"]
    again = Records("training", words(tmp_path))
    training.all_cases(again)
    assert again.cases == json.loads(first.file.read_text())["cases"]


def test_a_finished_row_is_not_run_again(tmp_path, monkeypatch):
    from records import Records

    evidence = script("evidence")
    monkeypatch.setattr(evidence, "Popen", forked)
    first = Records("evidence", words(tmp_path, only=ROW))
    evidence.all_rows(first)
    case = first.cases[ROW]
    assert (case["epoch"], case["epochs"]) == (1, 1), case
    assert case["top1"]["last"] >= 0
    assert list(tmp_path.glob(f"runs/hetconv/table1/{ROW}+*/smoke-seed0/result.json"))
    monkeypatch.setattr(evidence, "Popen", forbidden)
    again = Records("evidence", words(tmp_path, only=ROW))
    evidence.all_rows(again)
    assert again.cases[ROW] == case


def test_a_row_is_stopped_in_time_and_goes_on(tmp_path, monkeypatch):
    from records import Records

    evidence = script("evidence")

    def wait(process: subprocess.Popen, seconds: float) -> bool:
        """The time is up once the run has taken a step."""
        until = time.monotonic() + PATIENCE
        while process.poll() is None and not list(tmp_path.rglob("last.ckpt")) and time.monotonic() < until:
            time.sleep(0.01)
        return False

    def waits(process: subprocess.Popen, seconds: float) -> bool:
        monkeypatch.setattr(evidence, "wait", waited)
        return wait(process, seconds)

    waited = evidence.wait
    monkeypatch.setattr(evidence, "Popen", forked)
    monkeypatch.setattr(evidence, "STOP", PATIENCE)
    monkeypatch.setattr(evidence, "wait", waits)
    long = ("budget.train_examples=4000", "trainer.checkpoint_steps=1")
    stopped = Records("evidence", words(tmp_path, 3 * PATIENCE, ROW, long))
    evidence.all_rows(stopped)
    case = stopped.cases[ROW]
    assert case["saved"], case
    assert (case["epoch"], case["epochs"]) == (0, 1)
    assert "top1" not in case
    said = (tmp_path / f"{ROW}.log").read_text()
    assert re.search(r"interrupted: \S+last\.ckpt of step \d+ \(epoch 1\) is saved", said), said
    started: list[str] = []
    monkeypatch.setattr(evidence, "train", lambda records, row: started.append(row))
    evidence.all_rows(Records("evidence", words(tmp_path, 3 * PATIENCE, ROW, long)))
    assert started == [ROW]


def test_no_row_is_begun_without_time(tmp_path, monkeypatch):
    from records import Records

    evidence = script("evidence")
    monkeypatch.setattr(evidence, "Popen", forbidden)
    records = Records("evidence", words(tmp_path, seconds=1))
    evidence.all_rows(records)
    assert [case["error"] for case in records.cases.values()] == ["not reached"] * len(evidence.ROWS)


@pytest.mark.parametrize("name", ["training", "evidence"])
def test_missing_packages_are_named_and_recorded(name, tmp_path, monkeypatch, capsys):
    import carried

    monkeypatch.setattr(sys, "argv", [name, "--device", "cpu", "--out", str(tmp_path)])
    monkeypatch.setattr(carried, "find_spec", lambda package: None if package in ("hydra", "fvcore") else package)
    script(name).main()
    said = "this stage needs packages that are not installed: hydra, fvcore"
    assert f"skipped: {said}\n" in capsys.readouterr().out
    assert json.loads((tmp_path / f"{name}.json").read_text())["skipped"] == said


def test_missing_data_are_named(tmp_path, monkeypatch):
    import carried

    monkeypatch.setenv("CONVREPRO_DATA", str(tmp_path))
    assert str(carried.missing_data()).startswith("cifar-10-batches-py/data_batch_1 is missing: ")


@pytest.mark.exhaustive
def test_all_stages_are_rehearsed(tmp_path):
    """A stage ends at most some seconds after its share: the case that it is at then."""
    command = [str(FOLDER / "run.sh"), "--device", "cpu", "--minutes", "2", "--out", str(tmp_path)]
    done = subprocess.run(
        command, env={**os.environ, "PYTHON": sys.executable}, capture_output=True, text=True, timeout=900, check=True
    )
    assert "ended with status" not in done.stdout, done.stdout + done.stderr
    for stage in ("speed", "correctness", "training", "candidates", "evidence"):
        assert json.loads((tmp_path / f"{stage}.json").read_text())["what"] == stage


@pytest.mark.exhaustive
def test_the_stage_ends_by_the_clock(tmp_path):
    """The run is far from its end when its time is up: it has saved, and the stage is over within its seconds."""
    seconds = 90.0
    command = [sys.executable, str(FOLDER / "evidence.py"), "--device", "cpu", "--seconds", str(seconds)]
    command += ["--out", str(tmp_path), "--only", ROW, *WORDS, "budget.train_examples=6000"]
    begun = time.monotonic()
    subprocess.run([*command, "budget.epochs=50"], timeout=300, check=True)
    assert time.monotonic() - begun < seconds + 15  # its own imports before the clock starts, and its end
    case = json.loads((tmp_path / "evidence.json").read_text())["cases"][ROW]
    assert case["saved"], case
