"""With a W&B server that gives no answer, or a background service of W&B that is busy, every verb ends in its time.

The bounds are measured from the first contact with the server, so that they do not depend on how fast a machine starts
a process; another process keeps the machine busy beside those that ask a server.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from convrepro.cluster.manifest import Entry
from convrepro.runs.identity import Identity
from convrepro.runs.result import read_result
from convrepro.tracking import service
from convrepro.tracking.offline import Fragment, fragments
from convrepro.tracking.service import CORE, GRACE, Unanswered, answering, close
from convrepro.tracking.sync import Server, sync
from support import small_table
from support.silent_server import DEADLINE, KINDS, SilentServer, Watched, busy_machine
from support.variants import identity, named
from support.wandb_runs import (
    BRIEF,
    IDENTITY,
    LONGER,
    PATIENT,
    SHIFT,
    TABLE,
    client,
    composed,
    impatient,
    served,
    train,
)
from support.wandb_server import WandbServer

#: Seconds that a busy machine takes for what has no bound: to schedule a process, to end an interpreter.
SLACK = 60
SMALL = ["trainer=cpu", "recipe.epochs=1", "budget.train_examples=64", "budget.test_examples=50"]
PATIENTLY = composed()["logger"]
NO_ANSWER = r"cannot be used: there was no answer within \d+ s"
#: Code that stops the background service of this process, which then is as busy as can be.
STOP = f"""
import os, signal
from convrepro.tracking import service
def stop():
    for pid, (parent, name) in service._processes().items():
        if parent == os.getpid() and name.startswith({CORE!r}):
            os.kill(pid, signal.SIGSTOP)
"""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[WandbServer]:
    with served(monkeypatch, tmp_path) as server:
        yield server


def stop_core() -> None:
    """Stop the background service of this process."""
    scope: dict = {}
    exec(STOP, scope)
    scope["stop"]()


def cores() -> list[int]:
    """The background services of this process that are alive."""
    return [pid for pid, (parent, name) in service._processes().items() if parent == os.getpid() and CORE in name]


def test_verbs_that_ask_a_server_end_in_its_time_with_one_sentence(tmp_path):
    table = ["deepshift/mnist_v5", f"logger.timeout={BRIEF}", f"--runs={tmp_path}"]
    verbs = [(["dashboard", *table], kind) for kind in KINDS]
    verbs += [(["sync", *table], kind) for kind in ("accepts", "drips")]
    verbs += [(["dashboard", *table, "--from-results"], "accepts")]
    with busy_machine(), ExitStack() as stack:
        started = [
            Watched(words, stack.enter_context(SilentServer(kind)), tmp_path, WANDB_MODE="online")
            for words, kind in verbs
        ]
        for verb in started:
            assert verb.ended() == 2, verb.output
            (when,) = verb.said("convrepro:")
            assert verb.said(NO_ANSWER) == [when], verb.output
            assert verb.end - (verb.server.contact or when) < BRIEF + GRACE + SLACK
            assert "Traceback" not in verb.output


def manifest(folder: Path) -> Path:
    """A manifest of one small run in `folder`."""
    words = named([*SHIFT, *SMALL, "seed=7", f"logger.timeout={LONGER}", f"runs={folder}"])
    who = identity(words)
    place = str(who.folder(folder))
    entry = Entry(
        index=0, table=TABLE, row=who.row, seed=7, budget="paper", overrides=tuple(words), run_id=who.run_id,
        folder=place, source=None, commit=None, dirty=None,
    )  # fmt: skip
    path = folder / "manifest.jsonl"
    path.write_text(entry.model_dump_json() + "\n")
    return path


@pytest.mark.exhaustive
def test_verbs_that_train_record_offline_and_end_in_time(tmp_path):
    lab = {"CONVREPRO_TABLES": str(small_table.write(tmp_path / "tables", LAB, "lab/tiny"))}
    ours = [*SMALL, f"logger.timeout={LONGER}", "logger.mode=online", f"runs={tmp_path}"]
    verbs = {
        "train": (["train", *named([*SHIFT, *ours])], "accepts"),
        "sweep": (["train", "-m", *named([*SHIFT, *ours, "seed=3"])], "drips"),
        "run": (["run", "lab/tiny", *ours], "accepts"),
        "task": (["task", str(manifest(tmp_path)), "0"], "drips"),
    }
    with ExitStack() as stack:
        started = [
            Watched(words, stack.enter_context(SilentServer(kind)), tmp_path, **(lab if verb == "run" else {}))
            for verb, (words, kind) in verbs.items()
        ]
        for verb in started:
            assert verb.ended() == 0, verb.output
            assert not verb.said("W&B is left out"), verb.output
            (offline,) = verb.said(rf"{NO_ANSWER}; the run is recorded offline")
            assert offline - verb.server.contact < LONGER + GRACE + SLACK
            trained, done = verb.said("epoch 1/1")[-1], verb.said(r"/[037]: top-1")[0]
            assert done - trained < LONGER + GRACE + SLACK
    found = sorted(tmp_path.glob("*/*/*/*/result.json"))
    assert len(found) == len(verbs)
    for path in found:
        assert read_result(path.parent)["status"] == "done"
        assert ((1,), True) in [(one.epochs, one.closed) for one in fragments(path.parent)]


LAB = """\
title: Tiny networks
source: {paper: lab, table: 1}
question: does everything end?
base: [model=deepshift_mnist_fc, data=mnist, recipe=deepshift_mnist_v5, budget.sample=true]
seeds: [0]
metrics: {top1: {unit: "%", tol: 0.3, why: it is a test}}
rows:
  - id: plain
    label: Plain
    overrides: [conv=standard]
    published: {top1: {value: 20.00, source: a test, confidence: found}}
"""


@pytest.mark.parametrize("mode", ["online", "offline"])
def test_a_service_that_is_busy_in_the_middle_of_a_training_loses_no_result(server, tmp_path, monkeypatch, mode):
    client(mode)
    stopped: list[float] = []

    def stop(line: str) -> None:
        if "epoch 3/" in line:
            impatient(monkeypatch)
            stop_core()
            stopped.append(time.monotonic())

    with pytest.warns(UserWarning, match=r"W&B is left out.*no answer within 4 s.*convrepro sync"):
        result = train([f"logger.timeout={PATIENT}"], tmp_path, stop)
    assert time.monotonic() - stopped[0] < BRIEF + service.GRACE + SLACK
    assert len(result["history"]) == 3
    assert read_result(IDENTITY.folder(tmp_path)) == result
    assert cores() == []

    monkeypatch.undo()
    with monkeypatch.context() as again:
        for name, value in server.environment().items():
            again.setenv(name, value)
        client("online")
        outcome = sync(TABLE, tmp_path, PATIENTLY, print)
        assert outcome.counts == "1 sent, 0 skipped, 0 failed"
        assert server.run(IDENTITY.run_id).series("epoch") == [1, 2, 3]


def test_the_interpreter_exits_although_the_service_is_busy():
    code = f"""{STOP}
service.GRACE = 2
import wandb
os.environ.update(WANDB_MODE="offline", WANDB_SILENT="true")
with service.answering(): wandb.setup()
stop()
print("stopped", flush=True)
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        output, _ = process.communicate(timeout=DEADLINE)
    finally:
        process.kill()
    assert (process.returncode, output) == (0, "stopped\n")


def test_a_service_that_does_not_start_is_one_sentence(tmp_path):
    fake = tmp_path / CORE
    fake.write_text("#!/bin/sh\nsleep 1000\n")
    fake.chmod(0o755)
    first = f"""
from wandb.sdk.lib.service import service_process
from convrepro.tracking import service
service_process.get_core_path = lambda: {str(fake)!r}
service.GRACE = 2
"""
    with SilentServer("accepts") as server:
        words = ["dashboard", "deepshift/mnist_v5", f"logger.timeout={BRIEF}"]
        verb = Watched(words, server, tmp_path, first, WANDB_MODE="online")
        assert verb.ended() == 2
    (said,) = verb.said("convrepro:")
    assert verb.said("no answer within 4 s") == [said]
    assert server.contact is None


def test_a_server_that_falls_silent_ends_a_sync_and_the_next_one_sends_everything(server, tmp_path, monkeypatch):
    client("offline")
    runs = [Identity(TABLE, IDENTITY.row, seed, "paper") for seed in (0, 1)]
    for run in runs:
        train([f"seed={run.seed}"], tmp_path)
    silent: list[float] = []

    def send(self: Server, one: Fragment, then=Server.send) -> None:
        server.slow(3600)
        silent.append(time.monotonic())
        self.timeout = BRIEF
        then(self, one)

    client("online")
    with monkeypatch.context() as falling:
        falling.setattr(Server, "send", send)
        with pytest.raises(Unanswered, match="cannot be used: there was no answer"):
            sync(TABLE, tmp_path, PATIENTLY, print)
    assert len(silent) == 1, "the second run waited for a server that is known to be silent"
    assert time.monotonic() - silent[0] < BRIEF + GRACE + SLACK
    assert cores() == []

    server.recovers()
    outcome = sync(TABLE, tmp_path, PATIENTLY, print)
    assert not outcome.failed
    for run in runs:
        assert server.run(run.run_id).series("epoch") == [1, 2, 3]


def test_a_service_is_killed_only_where_it_does_not_end_in_time(server, monkeypatch):
    with answering(PATIENT):
        Server(PATIENTLY)
        (core,) = cores()
    os.kill(core, 0)
    os.kill(core, signal.SIGSTOP)
    began = time.monotonic()
    monkeypatch.setattr(service, "GRACE", 1)
    close()
    assert 1 <= time.monotonic() - began < SLACK
    assert cores() == []
