"""W&B with its real client: what it records offline, and that no failure of it loses a run."""

import json
import subprocess
import time
from pathlib import Path

import pytest
import wandb

from convrepro.config import compose_config
from convrepro.identity import Identity
from convrepro.tracking import offline_without_key
from convrepro.train import run

ROW = ["model=deepshift_mnist_fc", "conv=shift", "recipe=deepshift_mnist_v5", "recipe.epochs=2", "trainer=cpu"]
ROW += ["table=deepshift/mnist_v5", "row=fc_q", "budget.train_examples=256", "budget.test_examples=100"]


def train(overrides, runs):
    overrides = [*overrides, f"runs={runs}"]
    return run(compose_config(overrides), overrides, echo=lambda line: None)


def inspect(folder: Path, *flags: str) -> list[dict]:
    """What the recorded run holds, read by the reader that the wandb package ships."""
    core = Path(wandb.__file__).parent / "bin" / "wandb-core"
    done = subprocess.run([core, "leet", "inspect", *flags, str(folder.parent)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines() if line.strip()]


def recorded(folder: Path) -> str:
    """The whole record of a run as text, once it is closed on disk."""
    deadline = time.monotonic() + 30
    while True:
        records = inspect(folder, "--json")
        if any(record["type"] == "exit" for record in records):
            return json.dumps(records)
        assert time.monotonic() < deadline, records
        time.sleep(0.2)


@pytest.fixture
def offline(monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")


def test_without_a_key_runs_are_recorded_offline(offline, tmp_path):
    result = train(ROW, tmp_path)
    (folder,) = tmp_path.rglob("offline-run-*")
    assert folder.name.endswith(Identity("deepshift/mnist_v5", "fc_q", 0, "paper").run_id)
    record = recorded(folder)
    for word in ("deepshift/mnist_v5", "fc_q", "multiplications", "weight_bits", "recipe"):
        assert word in record, word
    assert result["status"] == "done"


def test_the_mode_is_offline_without_a_key(monkeypatch, tmp_path):
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert offline_without_key("auto") == "offline"
    assert offline_without_key("disabled") == "disabled"


@pytest.mark.parametrize("where", ["init", "log", "finish"])
def test_a_failure_of_wandb_never_loses_a_run(offline, tmp_path, monkeypatch, where):
    def fails(*args, **kwargs):
        raise OSError("disk full")

    if where == "init":
        monkeypatch.setattr(wandb, "init", fails)
    else:
        monkeypatch.setattr(wandb.sdk.wandb_run.Run, where, fails)
    with pytest.warns(UserWarning, match="W&B is left out"):
        result = train(ROW, tmp_path)
    assert list(tmp_path.rglob("result.json"))
    assert len(result["history"]) == 2
    monkeypatch.undo()
    train([*ROW, "seed=1"], tmp_path)
    (folder,) = tmp_path.glob("**/paper-seed1/wandb/offline-run-*")
    assert "fc_q" in recorded(folder), "the next run is not recorded as itself"


def test_a_mode_that_wandb_refuses_does_not_stop_a_run(offline, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "sideways")
    with pytest.warns(UserWarning, match="W&B is left out"):
        assert train(ROW, tmp_path)["status"] == "done"
