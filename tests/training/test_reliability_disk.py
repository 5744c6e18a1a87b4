"""A full disk, for real: one sentence, nothing torn, and the run goes on when there is space."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from convrepro.errors import ConvReproError
from convrepro.models.weights import read_checkpoint
from convrepro.runs.folder import state
from convrepro.training.module import Classifier
from support.small_runs import EPOCHS, STATEFUL, STEPS, ended, parts, science, start, train

#: A checkpoint of `STATEFUL` (669,706 parameters with two moments each, float32), in bytes, somewhat less than it is.
CHECKPOINT = 3 * 4 * 669_706


def mount(path: Path, size: int, *, again: bool = False) -> None:
    command = ["mount", "-t", "tmpfs", "-o", f"{'remount,' * again}size={size}", "tmpfs", str(path)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {done.stderr.strip()}")


@pytest.fixture
def disk(tmp_path):
    """A disk with room for one checkpoint and a half."""
    if not shutil.which("mount"):
        pytest.skip("there is no mount here")
    path = tmp_path / "disk"
    path.mkdir()
    mount(path, CHECKPOINT * 3 // 2)
    yield path
    subprocess.run(["umount", "-l", str(path)], check=True)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    return science(train(STATEFUL, tmp_path_factory.mktemp("unbroken")))


def test_a_checkpoint_that_does_not_fit_ends_the_run_with_one_sentence(disk, unbroken):
    code, _, errors = ended(start(STATEFUL, disk))
    assert code == 2
    assert len(errors.splitlines()) == 1, errors
    assert "last.ckpt cannot be written (No space left on device)" in errors
    assert f"last.ckpt of step {STEPS} (epoch 1) is complete, and the same command continues from it" in errors
    (checkpoint,) = disk.rglob("*.ckpt")
    assert read_checkpoint(checkpoint)["global_step"] == STEPS
    assert not parts(disk)
    assert state(checkpoint.parent).kind == "failed"
    assert "No space left" in state(checkpoint.parent).error
    mount(disk, 4 * CHECKPOINT, again=True)
    assert science(train(STATEFUL, disk)) == unbroken
    assert state(checkpoint.parent).kind == "done"


def test_a_disk_without_room_for_the_first_checkpoint(disk, unbroken):
    mount(disk, CHECKPOINT // 2, again=True)
    with pytest.raises(ConvReproError, match=r"No space left on device\); no checkpoint was saved before"):
        train(STATEFUL, disk)
    assert not parts(disk)
    assert not list(disk.rglob("*.ckpt"))
    mount(disk, 4 * CHECKPOINT, again=True)
    assert science(train(STATEFUL, disk)) == unbroken


def test_a_result_that_does_not_fit_is_written_later_without_training_again(disk, unbroken, monkeypatch):
    mount(disk, 4 * CHECKPOINT, again=True)
    filler = disk / "filler"

    def fill(self):
        with filler.open("wb", buffering=0) as file:
            while True:
                try:
                    file.write(os.urandom(4096))
                except OSError:
                    return

    with monkeypatch.context() as patch:
        patch.setattr(Classifier, "on_fit_end", fill)
        sentence = r"result\.json cannot be written \(No space left on device\); .*last\.ckpt is intact"
        with pytest.raises(ConvReproError, match=sentence):
            train(STATEFUL, disk)
    assert not parts(disk)
    assert not list(disk.rglob("result.json"))
    filler.unlink()

    def trains(*args):
        raise AssertionError("trained twice")

    monkeypatch.setattr(Classifier, "training_step", trains)
    result = train(STATEFUL, disk)
    assert science(result) == unbroken
    assert len(result["history"]) == EPOCHS


def test_a_disk_that_is_full_from_the_start_is_one_sentence(disk):
    mount(disk, 4096, again=True)
    (disk / "filler").write_bytes(bytes(4096))
    with pytest.raises(ConvReproError, match="No space left on device"):
        train(STATEFUL, disk)
