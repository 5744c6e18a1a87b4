"""`convrepro sync`: what was recorded offline, or not taken in time, arrives once and in order."""

import math
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from convrepro.cli.main import main
from convrepro.errors import ConvReproError, Interrupted
from convrepro.runs.folder import hold
from convrepro.runs.result import FILE
from convrepro.runs.storage import write_json
from convrepro.runs.summary import summary
from convrepro.tables import load_table
from convrepro.tracking.offline import Fragment, fragments
from convrepro.tracking.sync import Synced, There, missing, sync
from support.command import convrepro
from support.variants import identity
from support.wandb_runs import (
    BRIEF,
    IDENTITY,
    LONGER,
    SHIFT,
    TABLE,
    attempt,
    client,
    composed,
    end,
    history,
    result,
    served,
    start,
    train,
    wait,
)
from support.wandb_server import RunRecord, WandbServer

NAME = f"{IDENTITY.name} (paper)"
PREEMPTED = Interrupted("preempted", requeue=True)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[WandbServer]:
    with served(monkeypatch, tmp_path) as server:
        yield server


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return IDENTITY.folder(tmp_path)


def send(runs: Path, **changed: Any) -> Synced:
    client("online")
    return sync(TABLE, runs, {**composed()["logger"], **changed}, print)


def epochs(run: RunRecord) -> list[int]:
    """The epochs that arrived, after a look at the steps: they only rise."""
    steps = run.series("trainer/global_step")
    assert steps == sorted(set(steps))
    assert steps == [10 * epoch for epoch in run.series("epoch")]
    assert [row["_step"] for row in run.history()] == list(range(len(steps)))
    return run.series("epoch")


def test_attempts_at_a_requeued_run_merge_in_order_and_are_not_sent_twice(server, folder, tmp_path):
    client("offline")
    attempt(folder, 2, PREEMPTED)
    attempt(folder, 3, ValueError("it failed in between"))
    attempt(folder, 3, PREEMPTED)
    attempt(folder, 5)
    assert [fragment.epochs for fragment in fragments(folder)] == [(1, 2), (3,), (), (4, 5)]
    assert send(tmp_path).sent == {NAME: "sent 3 attempts"}
    run = server.run(IDENTITY.run_id)
    assert epochs(run) == [1, 2, 3, 4, 5]
    assert (run.name, run.group, run.job_type, run.state) == (IDENTITY.name, TABLE, "train", "finished")
    assert (run.summary["best/top1"], run.summary["best/epoch"], run.summary["last/top1"]) == (90.0, 2, 64.0)
    assert (run.values["conv_name"], run.values["row"], "shift" in run.tags) == ("shift", IDENTITY.row, True)
    assert send(tmp_path).skipped == {NAME: "is there, as far as it went"}
    write_json(folder / FILE, result(5))
    assert send(tmp_path).skipped == {NAME: "is there"}
    assert epochs(run) == [1, 2, 3, 4, 5]


def test_the_runs_of_all_tables_of_a_paper_are_sent(server, folder, tmp_path, monkeypatch, capsys):
    client("offline")
    attempt(folder, 2)
    monkeypatch.setenv("WANDB_MODE", "offline")  # and what the command makes of it is undone
    with pytest.raises(SystemExit) as stop:
        main(["sync", TABLE.partition("/")[0], f"--runs={tmp_path}"])
    assert stop.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    assert f"{TABLE}: 1 sent, 0 skipped, 0 failed" in lines
    assert sum(": 0 sent, 0 skipped, 0 failed" in line for line in lines) >= 1
    assert epochs(server.run(IDENTITY.run_id)) == [1, 2]


def test_each_of_several_runs_is_sent_by_its_attempt_alone(server, tmp_path):
    """W&B's client keeps the list of runs that it was told first."""
    client("offline")
    for seed in (0, 1, 2):
        train([f"seed={seed}"], tmp_path)
    assert set(send(tmp_path).sent.values()) == {"sent 1 attempt"}
    assert len(server.runs) == 3


def test_what_an_online_attempt_made_up_for_is_not_sent_again(server, folder, tmp_path):
    client("offline")
    attempt(folder, 2, PREEMPTED)
    client("online")
    attempt(folder, 4, PREEMPTED)
    assert epochs(server.run(IDENTITY.run_id)) == [1, 2, 3, 4]
    assert send(tmp_path).counts == "0 sent, 1 skipped, 0 failed"
    client("offline")
    attempt(folder, 6)
    assert send(tmp_path).sent == {NAME: "sent 1 attempt"}
    assert epochs(server.run(IDENTITY.run_id)) == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("mode", ["online", "offline"])
def test_of_attempts_that_log_steps_too_each_arrives_once_and_in_order(server, folder, tmp_path, mode):
    client(mode)
    attempt(folder, 0, PREEMPTED, steps=5)
    attempt(folder, 1, PREEMPTED, steps=15)
    attempt(folder, 1, PREEMPTED, steps=10)
    attempt(folder, 3, steps=30)
    outcome = send(tmp_path)
    assert outcome.counts == ("0 sent, 1 skipped, 0 failed" if mode == "online" else "1 sent, 0 skipped, 0 failed")
    run = server.run(IDENTITY.run_id)
    assert run.series("trainer/global_step") == [5, 10, 10, 15, 20, 20, 25, 30, 30]
    assert run.series("step/loss") == [1 / step for step in range(5, 31, 5)]
    assert run.series("epoch") == [1, 2, 3]
    assert send(tmp_path).counts == "0 sent, 1 skipped, 0 failed"


@pytest.mark.parametrize("mode", ["online", "offline"])
def test_a_run_of_version_0_1_0_goes_on_with_each_epoch_once(server, folder, tmp_path, mode):
    client(mode)
    logger = attempt(folder, 0, kill=True)
    for line in history(2):
        logger.run.log({"epoch": line["epoch"], "trainer/global_step": line["step"]})
    logger.fail(PREEMPTED)
    attempt(folder, 3, PREEMPTED)
    attempt(folder, 4)
    assert [fragment.epochs for fragment in fragments(folder)] == [(1, 2), (3,), (4,)]
    outcome = send(tmp_path)
    assert outcome.counts == ("0 sent, 1 skipped, 0 failed" if mode == "online" else "1 sent, 0 skipped, 0 failed")
    run = server.run(IDENTITY.run_id)
    assert run.series("trainer/global_step") == [10, 20, 30, 40]
    assert run.series("epoch") == [0, 1, 3, 4]
    write_json(folder / FILE, result(4))
    assert send(tmp_path).skipped == {NAME: "is there"}


def test_of_a_run_that_is_there_in_part_the_rest_is_sent_once_it_is_done(server, folder, tmp_path):
    logger = attempt(folder, 2, kill=True, timeout=LONGER)
    run = server.run(IDENTITY.run_id)
    logger.run.mark_preempting()  # which has the client send at once what it would collect for a quarter of a minute
    wait(lambda: run.series("epoch") == [1, 2])
    server.breaks()
    logger.catch_up(history(4))
    with pytest.warns(UserWarning, match=rf"no answer within {LONGER} s.*convrepro sync"):
        logger.fail(PREEMPTED)
    server.recovers()
    assert send(tmp_path).skipped == {NAME: "is there up to epoch 2; the rest goes when the run is done"}
    client("offline")
    attempt(folder, 5)
    write_json(folder / FILE, result(5))
    assert send(tmp_path).sent == {NAME: "sent the rest from its result"}
    assert epochs(run) == [1, 2, 3, 4, 5]
    assert {key: run.summary[key] for key in summary(result(5), load_table(TABLE))} == summary(
        result(5), load_table(TABLE)
    )
    assert (run.state, run.exit_code) == ("finished", 0)
    assert send(tmp_path).skipped == {NAME: "is there"}


def test_a_torn_attempt_is_sent_as_far_as_it_goes_and_the_next_one_continues_there(server, folder, tmp_path):
    client("offline")
    attempt(folder, 4)
    (file,) = folder.glob("wandb/offline-run-*/*.wandb")
    content = file.read_bytes()
    file.write_bytes(content[: content.rindex(b"lr", 0, len(content) * 2 // 3)])
    (torn,) = fragments(folder)
    assert 0 < len(torn.epochs) < 4
    attempt(folder, 5)
    assert send(tmp_path).sent == {NAME: "sent 2 attempts"}
    assert epochs(server.run(IDENTITY.run_id)) == [1, 2, 3, 4, 5]


def test_the_reason_of_an_attempt_that_failed_is_gone_once_the_run_is_done(server, folder, tmp_path):
    client("offline")
    attempt(folder, 2, ValueError("a node was lost"))
    send(tmp_path)
    assert "a node was lost" in server.run(IDENTITY.run_id).summary["error"]
    attempt(folder, 5)
    send(tmp_path)
    assert not server.run(IDENTITY.run_id).summary["error"]


def test_a_run_that_failed_at_once_is_sent_too_and_another_project_may_be_named(server, folder, tmp_path):
    client("offline")
    attempt(folder, 0, ValueError("no images"))
    assert send(tmp_path, project="mine").sent == {NAME: "sent 1 attempt"}
    run = server.run(IDENTITY.run_id)
    assert (run.project, run.state, run.exit_code) == ("mine", "failed", 1)
    assert send(tmp_path, project="mine").counts == "0 sent, 1 skipped, 0 failed"


def test_a_run_that_is_being_trained_is_left_alone_and_one_bad_file_does_not_stop_the_rest(server, folder, tmp_path):
    client("offline")
    attempt(folder, 2)
    with hold(folder):
        assert send(tmp_path).skipped == {NAME: "is being trained"}
    other = tmp_path / TABLE / "fc_q" / "proxy-seed7"
    (other / "wandb").mkdir(parents=True)
    (other / FILE).write_text("{")
    outcome = send(tmp_path)
    assert "not JSON" in outcome.failed[f"{TABLE}/fc_q/7 (proxy)"]
    assert outcome.sent.keys() == {NAME}


@pytest.mark.parametrize(
    ("attempts", "there", "expected"),
    [
        ([(1, 2), (3, 4)], There(), ([0, 1], False)),
        ([(1, 2), (3, 4)], There("failed", step=2), ([1], False)),
        ([(1, 2), (3, 4)], There("failed", step=3), ([], True)),
        ([(1, 2), (1, 2, 3)], There(), ([0], True)),
        ([(1, 2), (3, 4)], There("finished", step=4), ([], False)),
        ([(1, 2), (3, 4)], There("finished", 1, step=math.inf), ([], False)),
        ([(), (1,), ()], There(), ([1], False)),
        ([(), ()], There(), ([1], False)),
        ([(), ()], There("failed"), ([], False)),
    ],
)
def test_only_attempts_that_the_server_has_nothing_of_are_sent_whole(attempts, there, expected):
    found = [Fragment(Path(str(number)), (), True, steps) for number, steps in enumerate(attempts)]
    new, rest = missing(found, there)
    assert ([int(str(fragment.path)) for fragment in new], rest) == expected


@pytest.mark.parametrize("key", [None, "0" * 40, "short"])
def test_without_a_good_key_there_is_one_sentence(server, tmp_path, monkeypatch, capsys, key):
    client("online")
    monkeypatch.delenv("WANDB_API_KEY")
    if key:
        monkeypatch.setenv("WANDB_API_KEY", key)
    with pytest.raises(SystemExit) as stop:
        main(["sync", TABLE, f"--runs={tmp_path}"])
    assert stop.value.code == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("convrepro:")]
    assert len(said) == 1
    assert "key" in said[0]


def test_a_server_that_is_down_is_one_sentence(server, tmp_path):
    server.down()
    with pytest.raises(ConvReproError, match=r"W&B at http://127.0.0.1:\d+ cannot be used"):
        send(tmp_path, timeout=BRIEF)


def written(checkpoint: Path) -> int:
    """When it was written; 0 in the moment between two checkpoints, when the former has been moved away."""
    try:
        return checkpoint.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def test_a_run_that_is_requeued_and_killed_goes_on_as_the_same_one(server, tmp_path):
    """Nothing that was sent changes, nothing is sent twice, and an attempt that is killed leaves no hole."""
    words = ["recipe.epochs=4", "recipe.batch_size=16", "budget.train_examples=1000", "logger.every_n_steps=21"]
    who = identity([*SHIFT, *words])
    folder = who.folder(tmp_path)
    checkpoint = folder / "last.ckpt"
    end(start(words, tmp_path), checkpoint.exists, signal.SIGUSR1)
    run = server.run(who.run_id)
    assert (run.state, run.exit_code, run.was_preempting) == ("preempted", 128 + signal.SIGUSR1, True)
    assert run.series("epoch") == list(range(1, len(run.series("epoch")) + 1)) != []
    assert run.summary["best/top1"] == max(run.series("val/top1"))

    before, saved = run.history(), written(checkpoint)
    end(start(words, tmp_path), lambda: written(checkpoint) > saved, signal.SIGKILL)
    assert not (folder / FILE).exists(), "the kill came too late to test anything"

    finished = train(words, tmp_path)
    assert (run.state, run.exit_code, run.resumes) == ("finished", 0, 2)
    assert run.history()[: len(before)] == before
    assert run.series("epoch") == [1, 2, 3, 4]
    steps = {key: [row["trainer/global_step"] for row in run.history() if key in row] for key in ("epoch", "step/loss")}
    assert steps == {"epoch": [63, 126, 189, 252], "step/loss": list(range(21, 253, 21))}
    assert run.series("trainer/global_step") == sorted([*steps["epoch"], *steps["step/loss"]])
    assert run.series("val/top1") == [line["val/top1"] for line in finished["history"]]
    assert run.summary["best/top1"] == max(run.series("val/top1"))


@pytest.mark.exhaustive
def test_a_run_killed_offline_is_whole_after_the_next_attempt_and_a_sync(server, tmp_path):
    client("offline")
    words = ["recipe.epochs=3", "recipe.batch_size=16", "budget.train_examples=1000"]
    who = identity([*SHIFT, *words])
    folder = who.folder(tmp_path)
    end(start(words, tmp_path), (folder / "last.ckpt").exists, signal.SIGKILL)
    finished = train(words, tmp_path)
    assert len(fragments(folder)) == 2
    done = convrepro("sync", TABLE, f"--runs={tmp_path}", env=os.environ | {"WANDB_MODE": "offline"}, timeout=240)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "1 sent, 0 skipped, 0 failed"
    run = server.run(who.run_id)
    assert run.series("epoch") == [1, 2, 3]
    assert run.series("val/loss") == [line["val/loss"] for line in finished["history"]]
    assert run.state == "finished"
