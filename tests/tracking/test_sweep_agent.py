"""A sweep of W&B: the guide's file, and W&B's real commands, of which `wandb agent` trains what a server hands out."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from convrepro.runs.result import read_result
from support.command import CONVREPRO, write_python
from support.wandb_runs import DEADLINE, IDENTITY, client, served, train
from support.wandb_server import WandbServer

GUIDE = (Path(__file__).parents[2] / ".github" / "GUIDE.md").read_text()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[WandbServer]:
    with served(monkeypatch, tmp_path) as server:
        yield server


def wandb(folder: Path, *words: str) -> str:
    """What `wandb words` prints in `folder`, where `convrepro` can be called."""
    env = {**os.environ, "PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "WANDB_SILENT": "false"}
    command = [sys.executable, "-m", "wandb", *words]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=2 * DEADLINE)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_an_agent_trains_the_members_of_the_sweep_in_the_guide(server, tmp_path, monkeypatch):
    monkeypatch.delenv("CONVREPRO_RUNS", raising=False)
    write_python(tmp_path / "bin/convrepro", *CONVREPRO)
    (text,) = re.findall(r"`sweep.yaml`.*?```yaml\n(.*?)```", GUIDE, re.DOTALL)
    (tmp_path / "sweep.yaml").write_text(text)
    (path,) = re.findall(r"wandb agent (\S+)", wandb(tmp_path, "sweep", "sweep.yaml"))
    (sweep,) = server.sweeps.values()
    assert path == f"tester/convrepro/{sweep.id}"
    output = wandb(tmp_path, "agent", path)

    results = [read_result(folder) for folder in (tmp_path / "runs/adhoc").glob("*/smoke-seed0")]
    assert len(results) == len(sweep.members) == 2, output
    found = {result["config"]["conv"]["p"]: result for result in results}
    assert server.runs.keys() == sweep.members.keys(), "runs of ids that the sweep does not know"
    for member, parameters in sweep.members.items():
        result, run = found[parameters["conv.p"]], server.run(member)
        assert set(result["overrides"]) == {
            "model=deepshift_mnist_conv",
            *(f"{key}={value}" for key, value in parameters.items()),
        }
        assert (result["config"]["conv"]["name"], result["config"]["recipe"]["optimizer"]["lr"]) == ("hetconv", 0.02)
        assert (run.sweep, run.project, run.entity) == (sweep.id, "convrepro", "tester")
        assert (run.state, run.group, run.values["conv_name"]) == ("finished", "adhoc", "hetconv")
        assert {key: run.values[key] for key in parameters} == parameters
        metric = sweep.config["metric"]["name"]
        tops = [line[metric] for line in result["history"]]
        assert (run.series(metric), run.summary[metric]) == (tops, tops[-1])


def test_a_member_that_was_trained_before_is_told_to_its_sweep(server, tmp_path, monkeypatch):
    def ask(member: str, *words: str) -> dict:
        """What a training of the same run returns under an agent."""
        monkeypatch.setenv("WANDB_SWEEP_ID", "later")
        monkeypatch.setenv("WANDB_RUN_ID", member)
        client("online")
        return train(list(words), tmp_path)

    result = train([], tmp_path)
    assert ask("member") == result
    run = server.run("member")
    assert (run.sweep, run.state, run.exit_code) == ("later", "finished", 0)
    assert run.series("val/top1") == [line["val/top1"] for line in result["history"]]
    assert (run.name, run.summary["best/top1"]) == (IDENTITY.name, result["metrics"]["best"]["top1"])
    assert server.run(IDENTITY.run_id).sweep is None
    assert server.run(IDENTITY.run_id).resumes == 0

    server.down()
    with pytest.warns(UserWarning, match=r"W&B is not told.*no answer"):
        assert ask("lost", "logger.timeout=2") == result
    assert server.runs.keys() == {"member", IDENTITY.run_id}
