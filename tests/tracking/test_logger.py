"""What a run tells W&B, by its real client: everything, in order, once, no secret; and no failure of it loses a run."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import wandb

from convrepro.config.compose import compose_config
from convrepro.errors import ConvReproError, Interrupted
from convrepro.runs import interruption
from convrepro.runs.identity import Identity
from convrepro.runs.result import read_result
from convrepro.runs.summary import summary
from convrepro.tables import load_table
from convrepro.tracking.logger import LOGGED, build_logger, offline_without_key, without_secrets
from convrepro.tracking.offline import FIRST, fragments
from convrepro.tracking.sync import sync
from support.variants import identity
from support.wandb_runs import (
    BRIEF,
    IDENTITY,
    PATIENT,
    ROW,
    SECRETS,
    SHIFT,
    STATIC,
    TABLE,
    attempt,
    client,
    composed,
    history,
    impatient,
    served,
    train,
)
from support.wandb_server import RunRecord, WandbServer

TROUBLE = {"down": WandbServer.down, "slow": lambda server: server.slow(60), "500": WandbServer.breaks}
CLOCKS = {"_step", "_runtime", "_timestamp"}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[WandbServer]:
    with served(monkeypatch, tmp_path) as server:
        yield server


def full(tree: dict) -> dict:
    """The tree without its empty branches, which W&B's client leaves out."""
    whole = {key: full(value) if isinstance(value, dict) else value for key, value in tree.items()}
    return {key: value for key, value in whole.items() if value != {}}


def rows(run: RunRecord) -> list[dict]:
    """The history without W&B's own clocks."""
    return [{key: value for key, value in row.items() if key not in CLOCKS} for row in run.history()]


def told(result: dict) -> list[dict]:
    """The history that W&B should have of a result."""
    lines = enumerate(result["history"], 1)
    return [
        {"epoch": n, FIRST: 1, "trainer/global_step": x["step"], **{key: x[key] for key in LOGGED}} for n, x in lines
    ]


def test_everything_of_a_run_arrives_once_and_in_order(server, tmp_path):
    words = [f"data.root={tmp_path}"]
    result = train(words, tmp_path / "runs")
    (run,) = server.runs.values()
    commit = result["environment"]["commit"]
    assert (run.id, run.project, run.entity) == (IDENTITY.run_id, "convrepro", "tester")
    assert (run.name, run.group, run.job_type) == (IDENTITY.name, TABLE, "train")
    assert run.tags == ["deepshift_mnist_fc", "shift", "fashion-sample", "paper", *([commit[:8]] if commit else [])]
    assert (run.state, run.exit_code, run.was_preempting) == ("finished", 0, False)

    tree = compose_config([*SHIFT, *words, f"runs={tmp_path / 'runs'}"]).model_dump()
    scalars = {"conv_name": "shift", "data_name": "fashion-sample", "budget_name": "paper", "commit": commit}
    scalars["epochs"] = 3
    assert run.values == full({**tree, **scalars, "dirty": result["environment"]["dirty"]})
    assert {key: run.values[key] for key in ("table", "row", "seed")} == {
        "table": TABLE,
        "row": IDENTITY.row,
        "seed": 0,
    }

    assert rows(run) == told(result)
    assert [row["_step"] for row in run.history()] == [0, 1, 2]
    assert [row["trainer/global_step"] for row in run.history()] == [4, 8, 12]
    assert '"trainer/global_step"' in json.dumps(run.config["_wandb"]["value"]["m"]), "no step axis was named"

    final = summary(result, load_table(TABLE))
    assert {key: run.summary[key] for key in final} == final
    assert set(run.summary) - set(final) == {*LOGGED, "epoch", FIRST, "trainer/global_step", *CLOCKS, "_wandb"}
    assert final.keys() >= {"last/top1", "best/top1", "best/epoch", "static/convention", "published/top1"}
    assert final["multiplications_left"] == 0
    assert final["images_per_second"] > 0
    assert json.loads(run.files["wandb-metadata.json"])["slurm"] == {"job_id": "4711"}


def test_checkpoints_are_artifacts_when_asked_and_evaluations_are_told_apart(server, tmp_path, monkeypatch):
    train(["recipe.epochs=1"], tmp_path)
    assert not server.artifacts
    train(["recipe.epochs=1", "seed=1", "logger.checkpoints=true"], tmp_path)
    (artifact,) = server.artifacts.values()
    assert (artifact.type, list(artifact.files), artifact.aliases) == ("model", ["last.ckpt"], ["latest"])
    assert artifact.committed
    (checkpoint,) = tmp_path.rglob("paper-seed1/last.ckpt")
    assert server.uploads[f"{artifact.id}/files/last.ckpt"] == checkpoint.read_bytes()

    result = train([f"weights={checkpoint}", "train=false", "seed=2"], tmp_path)
    (run,) = (run for run in server.runs.values() if run.job_type == "eval")
    assert run.summary["last/top1"] == result["metrics"]["last"]["top1"]
    assert (run.history(), run.state) == ([], "finished")


def test_the_configuration_has_the_epochs_that_a_run_really_trains(server, tmp_path):
    result = train(["budget.epochs=1"], tmp_path)
    assert server.run(identity([*SHIFT, "budget.epochs=1"]).run_id).values["epochs"] == len(result["history"]) == 1
    assert result["config"]["recipe"]["epochs"] == 3
    (evaluated,) = (train([f"weights={c}", "train=false"], tmp_path) for c in tmp_path.rglob("last.ckpt"))
    (run,) = (run for run in server.runs.values() if run.job_type == "eval")
    assert (run.values["epochs"], evaluated["history"]) == (0, [])


def log(run: RunRecord) -> list[str]:
    """The run's log, without the times that W&B's client puts in front."""
    return [run.lines["output.log"][number].partition(" ")[2] for number in sorted(run.lines["output.log"])]


def test_what_a_run_says_is_its_log_also_if_it_is_recorded_offline_and_interrupted(server, tmp_path, monkeypatch):
    said: list[str] = []

    def stop(line: str) -> None:
        said.append(line)
        if "epoch 2/" in line:
            monkeypatch.setattr(interruption, "_request", "stop")

    client("offline")
    with pytest.raises(Interrupted) as stopped:
        train([], tmp_path, stop)
    monkeypatch.setattr(interruption, "_request", None)
    said.append(str(stopped.value))
    print("of the process, not of the run")
    train([], tmp_path, said.append)
    assert [line.split()[1] for line in said if line.startswith("  epoch")] == ["1/3", "2/3", "3/3"]
    client("online")
    sync(TABLE, tmp_path, composed()["logger"], print)
    assert log(server.run(IDENTITY.run_id)) == said


def test_the_log_of_a_run_that_failed_ends_with_its_traceback_and_holds_no_secret(server, tmp_path):
    try:
        raise ValueError(f"a node was lost\n{SECRETS['SLURM_JWT']}")
    except ValueError as error:
        attempt(tmp_path, 1, error)
    run = server.run(IDENTITY.run_id)
    assert log(run)[0].startswith("Traceback")
    assert log(run)[-1] == "ValueError: a node was lost"
    assert run.summary["error"] == "ValueError: a node was lost"


def test_a_run_that_fails_is_failed_there_too(server, tmp_path):
    with pytest.raises(ConvReproError, match="diverged"):
        train(["recipe.optimizer.lr=1000"], tmp_path, row=ROW)
    run = server.run(identity([*ROW, "recipe.optimizer.lr=1000"]).run_id)
    assert (run.state, run.exit_code) == ("failed", 1)
    assert "diverged" in run.summary["error"]
    assert "training diverged" in log(run)[-1]
    assert run.summary["static/macs"] == 668672
    assert run.summary["published/top1"] == 97.03


@pytest.mark.parametrize("trouble", TROUBLE)
def test_a_server_in_trouble_holds_up_a_run_for_a_while_and_gets_everything_later(
    server, tmp_path, trouble, monkeypatch
):
    def break_down(line: str) -> None:
        if "epoch 1/" in line:
            TROUBLE[trouble](server)
            impatient(broken)

    with monkeypatch.context() as broken, pytest.warns(UserWarning, match=r"W&B is left out.*convrepro sync"):
        result = train([f"logger.timeout={PATIENT}"], tmp_path, break_down)
    assert [line["epoch"] for line in result["history"]] == [0, 1, 2]
    assert read_result(IDENTITY.folder(tmp_path)) == result

    server.recovers()
    client("online")
    for _ in range(2):
        outcome = sync(TABLE, tmp_path, composed()["logger"], print)
        run = server.run(IDENTITY.run_id)
        assert rows(run) == told(result)
        assert (run.state, run.exit_code) == ("finished", 0)
        assert {key: run.summary[key] for key in summary(result, load_table(TABLE))} == summary(
            result, load_table(TABLE)
        )
    assert outcome.counts == "0 sent, 1 skipped, 0 failed"


def test_an_ad_hoc_run_that_is_recorded_offline_is_sent_by_the_command_that_is_told(server, tmp_path):
    adhoc = Identity("adhoc", "net-standard-12345678", 0, "paper")
    folder = adhoc.folder(tmp_path)
    server.breaks()
    with pytest.warns(UserWarning, match="recorded offline") as caught:
        logger = build_logger({**composed()["logger"], "timeout": BRIEF}, adhoc, folder, composed(), STATIC, None)
    logger.catch_up(history(2))
    logger.finish({})
    server.recovers()
    command = re.search(r"`(wandb sync .*)`", str(caught[0].message))[1]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    subprocess.run(command, shell=True, check=True, env={**os.environ, "PATH": path, "WANDB_MODE": "online"})
    assert [row["epoch"] for row in server.run(adhoc.run_id).history()] == [1, 2]


@pytest.mark.parametrize("trouble", TROUBLE)
def test_a_run_that_starts_without_its_server_is_recorded_offline(server, tmp_path, trouble):
    folder = IDENTITY.folder(tmp_path)
    TROUBLE[trouble](server)
    began = time.monotonic()
    with pytest.warns(UserWarning, match=r"recorded offline.*convrepro sync"):
        attempt(folder, 3, timeout=BRIEF)
    assert time.monotonic() - began < 60, "30 s to ask who the key belongs to and 2 to open the run were too many"
    assert [fragment.epochs for fragment in fragments(folder)] == [(), (1, 2, 3)]
    server.recovers()
    client("online")
    assert sync(TABLE, tmp_path, composed()["logger"], print).counts == "1 sent, 0 skipped, 0 failed"
    assert server.run(IDENTITY.run_id).series("epoch") == [1, 2, 3]


def test_a_training_anew_of_what_is_there_is_warned_of(server, tmp_path):
    attempt(tmp_path / "first", 4)
    with pytest.warns(UserWarning, match="epochs up to 4 .* from an earlier training"):
        attempt(tmp_path / "second", 1)
    assert server.run(IDENTITY.run_id).series("epoch") == [1, 2, 3, 4]


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")
    client("offline")


def test_without_a_server_a_run_is_recorded_offline(offline, tmp_path):
    attempt(tmp_path, 2)
    (fragment,) = fragments(tmp_path)
    assert fragment.path.name.startswith("offline-run-")
    assert (fragment.epochs, fragment.closed) == ((1, 2), True)


def test_the_mode_is_offline_without_a_key(monkeypatch, tmp_path):
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    wandb.teardown()
    assert offline_without_key("auto") == "offline"
    assert offline_without_key("disabled") == "disabled"


def fails(*args: object, **kwargs: object) -> None:
    raise OSError("disk full")


@pytest.mark.parametrize("where", ["init", "finish"])
def test_a_client_that_fails_is_left_out(offline, tmp_path, monkeypatch, where):
    monkeypatch.setattr(wandb if where == "init" else wandb.sdk.wandb_run.Run, where, fails)
    with pytest.warns(UserWarning, match=r"W&B is left out.*disk full"):
        attempt(tmp_path, 2)


def test_a_client_that_fails_in_the_middle_loses_no_run_and_not_the_next_one(offline, tmp_path, monkeypatch):
    with monkeypatch.context() as broken:
        broken.setattr(wandb.sdk.wandb_run.Run, "log", fails)
        with pytest.warns(UserWarning, match=r"W&B is left out.*disk full"):
            result = train([], tmp_path)
    assert read_result(IDENTITY.folder(tmp_path)) == result
    assert len(result["history"]) == 3
    train(["seed=1"], tmp_path)
    (fragment,) = fragments(next(tmp_path.rglob("paper-seed1")))
    assert fragment.epochs == (1, 2, 3), "the next run is not recorded as itself"


def test_a_mode_that_wandb_refuses_does_not_stop_a_run(offline, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "sideways")
    with pytest.warns(UserWarning, match="W&B is left out"):
        attempt(tmp_path, 1)


def test_secrets_are_left_out_of_the_configuration(monkeypatch):
    monkeypatch.setenv("SOME_PASSWORD", "correct horse")
    tree = {"a": {"auth_token": "x", "num_tokens": 4}, "root": "/data/correct horse", "list": ["b", "correct horse"]}
    assert without_secrets(tree) == {"a": {"num_tokens": 4}, "list": ["b"]}
