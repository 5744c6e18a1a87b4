"""A run's folder: one process at a time, torn files, and what is read from it without training."""

import json
import os
import pickle
import signal
from pathlib import Path

import pytest
import torch

from convrepro.errors import Busy, ConvReproError
from convrepro.runs import folder as run_folder
from convrepro.runs.folder import hold, record_error, state
from convrepro.training.module import Classifier
from support.patience import wait
from support.results import result
from support.small_runs import EPOCHS, STATEFUL, STEPS, before_hook, before_step, ended, science, start, train
from support.variants import identity, named

#: Names the run's folder before it is there.
NAMED = named(STATEFUL)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    return science(train(NAMED, tmp_path_factory.mktemp("unbroken")))


def folder(runs: Path) -> Path:
    return identity(STATEFUL).folder(runs)


def waits_for(path: Path) -> str:
    """Code that has a process stop before its first step until there is a file at `path`."""
    return before_hook("on_train_start", f"while not pathlib.Path({str(path)!r}).exists(): time.sleep(0.02)")


def test_of_two_processes_that_start_a_run_at_once_one_trains_and_the_other_says_so(tmp_path, unbroken):
    go = tmp_path / "go"
    both = [start(NAMED, tmp_path, first=waits_for(go)) for _ in range(2)]
    ends = wait(lambda: [process for process in both if process.poll() is not None])
    (loser,), (winner,) = ends, [process for process in both if process not in ends]
    there = {path.name for path in folder(tmp_path).iterdir()}
    code, output, errors = ended(loser)
    assert code == 2
    assert f"is being trained by pid {winner.pid} on " in errors
    assert len(errors.splitlines()) == 1
    assert not output
    assert there <= {".lock", "progress.json"}, "the loser has touched the folder"
    assert json.loads((folder(tmp_path) / ".lock").read_text())["pid"] == winner.pid
    go.touch()
    assert ended(winner)[0] == 0
    result = json.loads((folder(tmp_path) / "result.json").read_text())
    assert science(result) == unbroken


def test_the_lock_of_a_killed_process_is_gone_though_a_child_of_it_lives(tmp_path, unbroken):
    """As a decoding worker may, that has not noticed yet."""
    child = tmp_path / "child"
    forks = f"p = os.fork(); p and pathlib.Path({str(child)!r}).write_text(str(p)); time.sleep(600)"
    process = start(NAMED, tmp_path, first=before_hook("on_train_start", forks))
    pid = int(wait(lambda: child.exists() and child.read_text(), process))
    try:
        with pytest.raises(Busy, match=rf"by pid {process.pid} on .* since 20"):
            train(NAMED, tmp_path)
        process.kill()
        process.wait()
        os.kill(pid, 0)
        assert science(train(NAMED, tmp_path)) == unbroken
    finally:
        process.kill()
        os.kill(pid, signal.SIGKILL)


def test_a_folder_is_held_by_one_block_and_free_after_it(tmp_path):
    with hold(tmp_path), pytest.raises(Busy, match=str(os.getpid())), hold(tmp_path):
        pytest.fail("held twice")
    with hold(tmp_path):
        assert not (tmp_path / "error.txt").exists(), "an error of another process was recorded here"


def test_a_holder_in_a_job_array_is_named_with_its_job(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "12")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    with hold(tmp_path), pytest.raises(Busy, match=r"\(job 12_3\)"), hold(tmp_path):
        pass


def test_a_file_system_without_locks_is_warned_about_and_used(tmp_path, monkeypatch):
    def refuses(descriptor, operation):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(run_folder.fcntl, "flock", refuses)
    with pytest.warns(UserWarning, match="without locks"), hold(tmp_path):
        pass


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(ConvReproError, match=r"file/run cannot be written \(Not a directory\)"),
        hold(tmp_path / "file" / "run"),
    ):
        pass


def test_the_next_attempt_clears_what_a_broken_one_left(tmp_path):
    for name in ("error.txt", ".last.ckpt.1.part", ".result.json.2.part"):
        (tmp_path / name).write_text("left")
    with hold(tmp_path):
        assert [path.name for path in tmp_path.iterdir()] == [".lock"]


class Runs:
    """Unpickled carelessly, this creates a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def truncated(path, tmp_path):
    path.write_bytes(path.read_bytes()[:-100])


def emptied(path, tmp_path):
    path.write_bytes(b"")


def malicious(path, tmp_path):
    torch.save({"settings": {}, "state_dict": Runs(tmp_path / "executed")}, path)


def malicious_pickle(path, tmp_path):
    path.write_bytes(pickle.dumps(Runs(tmp_path / "executed")))


@pytest.mark.parametrize(
    "harm",
    [truncated, malicious, *(pytest.param(harm, marks=pytest.mark.exhaustive) for harm in (emptied, malicious_pickle))],
)
def test_the_checkpoint_before_a_torn_one_is_taken_and_nothing_in_a_file_is_executed(tmp_path, unbroken, harm):
    run = folder(tmp_path)
    train(NAMED, tmp_path)
    (run / "result.json").unlink()
    harm(run / "last.ckpt", tmp_path)
    said = []
    assert science(train(NAMED, tmp_path, echo=said.append)) == unbroken
    assert not (tmp_path / "executed").exists()
    assert sum("last.ckpt is damaged" in line and "previous.ckpt" in line for line in said) == 1
    assert next(line for line in said if "  epoch " in line).startswith(f"  epoch {EPOCHS}/{EPOCHS}"), "trained twice"
    assert torch.load(run / "previous.ckpt", weights_only=True)["global_step"] == (EPOCHS - 1) * STEPS
    assert torch.load(run / "last.ckpt", weights_only=True)["global_step"] == EPOCHS * STEPS


def test_a_checkpoint_cut_anywhere_is_found_to_be_torn(tmp_path):
    train(NAMED, tmp_path)
    run = folder(tmp_path)
    (run / "result.json").unlink()
    (run / "previous.ckpt").unlink()
    whole = (run / "last.ckpt").read_bytes()
    for length in (0, 1, 4, 100, 1000, len(whole) // 2, len(whole) - 22, len(whole) - 1):
        (run / "last.ckpt").write_bytes(whole[:length])
        with pytest.raises(ConvReproError, match=r"last\.ckpt cannot be resumed from.*delete it"):
            train(NAMED, tmp_path)
        assert (run / "last.ckpt").stat().st_size == length


def test_a_torn_result_is_made_again_from_the_checkpoint_without_training(tmp_path, unbroken, monkeypatch):
    train(NAMED, tmp_path)
    result = folder(tmp_path) / "result.json"
    result.write_text(result.read_text()[:200])
    assert state(folder(tmp_path)).kind == "failed"
    assert "is not JSON" in state(folder(tmp_path)).error

    def trains(*args):
        raise AssertionError("trained twice")

    monkeypatch.setattr(Classifier, "training_step", trains)
    said = []
    assert science(train(NAMED, tmp_path, echo=said.append)) == unbroken
    assert any("moved to result.json.torn, and written again without" in line for line in said)
    assert state(folder(tmp_path)).kind == "done"


def test_a_torn_result_without_a_checkpoint_is_left_to_the_user(tmp_path):
    """To train for days again because a disk failed is a decision."""
    train(NAMED, tmp_path)
    for name in ("last.ckpt", "previous.ckpt"):
        (folder(tmp_path) / name).unlink()
    result = folder(tmp_path) / "result.json"
    result.write_text(result.read_text()[:200])
    with pytest.raises(ConvReproError, match=r"is not JSON.*move it away"):
        train(NAMED, tmp_path)
    assert len(result.read_text()) == 200


def test_progress_and_speed_are_told_and_survive_a_restart(tmp_path):
    process = start(NAMED, tmp_path, first=before_step(EPOCHS * STEPS - 1, pause=0.01))
    wait((folder(tmp_path) / "previous.ckpt").exists, process)
    process.kill()
    process.wait()
    found = state(folder(tmp_path))
    assert found.kind == "started"
    progress = found.progress
    assert (progress["pid"], progress["job"], progress["restarts"]) == (process.pid, None, 0)
    assert progress["epochs"] == EPOCHS
    assert 0 <= progress["epoch"] < EPOCHS
    assert progress["step"] >= 2 * STEPS
    assert 0 < progress["images_per_second"] < 1600, "16 images cannot be done in less than 10 ms here"
    assert progress["left_seconds"] >= 0
    result = train(NAMED, tmp_path)
    (kept,) = torch.load(folder(tmp_path) / "last.ckpt", weights_only=True)["callbacks"].values()
    assert len(kept["speeds"]) == EPOCHS
    assert result["time"]["images_per_second"] == sorted(kept["speeds"])[1]


def test_states_are_told_of_any_folder(tmp_path):
    assert state(tmp_path / "missing").kind == "none"
    (tmp_path / "progress.json").write_text('{"epoch": 1')
    assert state(tmp_path).kind == "none"
    (tmp_path / "progress.json").write_text('{"epoch": 1}')
    assert (state(tmp_path).kind, state(tmp_path).progress) == ("started", {"epoch": 1})
    record_error(tmp_path, ConvReproError("a sentence\nin two lines"))
    assert (state(tmp_path).kind, state(tmp_path).error) == ("failed", "a sentence in two lines")
    try:
        _ = {}["key"]
    except KeyError as error:
        record_error(tmp_path, error)
        assert state(tmp_path).error == "a sentence in two lines", "the first word stands"
        (tmp_path / "error.txt").unlink()
        record_error(tmp_path, error)
    assert state(tmp_path).error == "KeyError: 'key'"
    assert "Traceback" in (tmp_path / "error.txt").read_text()
    (tmp_path / "result.json").write_bytes(b"\xff\xfe")
    assert state(tmp_path).kind == "failed"
    (tmp_path / "result.json").write_text(json.dumps(result("lab/tiny", "plain", ("model=resnet18",))))
    assert (state(tmp_path).kind, state(tmp_path).error) == ("done", None)
