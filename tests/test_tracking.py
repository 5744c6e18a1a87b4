"""W&B with its real client: what it records offline, and that no failure of it loses a run."""

import json
import subprocess
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


@pytest.fixture
def offline(monkeypatch):
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/nonexistent")


def test_without_a_key_runs_are_recorded_offline(offline, tmp_path):
    assert offline_without_key("auto") == "offline"
    result = train(ROW, tmp_path)
    (folder,) = tmp_path.rglob("offline-run-*")
    assert folder.name.endswith(Identity("deepshift/mnist_v5", "fc_q", 0, "paper").run_id)
    recorded = json.dumps(inspect(folder, "--json"))
    for word in ("deepshift/mnist_v5", "fc_q", "multiplications", "weight_bits", "recipe"):
        assert word in recorded, word
    assert result["status"] == "done"


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
