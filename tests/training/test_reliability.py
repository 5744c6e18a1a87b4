"""Interrupted, killed, diverged: a run stops where its state is whole, says so, and goes on as if nothing had been."""

import os
import random
import signal
import time

import pytest
import torch

from convrepro.errors import Interrupted
from convrepro.runs import interruption
from convrepro.runs.folder import state
from convrepro.training.module import Classifier
from support.patience import wait
from support.small_runs import EPOCHS, MNIST_FC, STATEFUL, STEPS, before_hook, before_step, ended, science, start, train
from support.versions import needs_exact_mean

RANDOM = random.Random(4)
FIRST, *OTHERS = sorted(RANDOM.sample(range(1, EPOCHS * STEPS - 1), 3))
MOMENTS = [1, FIRST, *(pytest.param(step, marks=pytest.mark.exhaustive) for step in OTHERS)]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    return science(train(STATEFUL, tmp_path_factory.mktemp("unbroken")))


@pytest.fixture
def listening(monkeypatch):
    """This process takes signals as a run's process does."""
    before = {number: signal.getsignal(number) for number in interruption.SIGNALS}
    monkeypatch.setattr(interruption, "_listening", False)
    monkeypatch.setattr(interruption, "_request", None)
    interruption.listen()
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def signalled(monkeypatch, hook, condition, number):
    """Send this process a signal when the module's `hook` is called and `condition(module)` holds."""
    original = getattr(Classifier, hook)

    def with_signal(self, *args):
        if condition(self):
            os.kill(os.getpid(), number)
        return original(self, *args)

    monkeypatch.setattr(Classifier, hook, with_signal)


def interrupted(words, runs, monkeypatch) -> tuple[Interrupted, dict]:
    """The interruption of a run, and the checkpoint that it left; the process is as good as new afterwards."""
    with pytest.raises(Interrupted) as stop:
        train(words, runs)
    monkeypatch.setattr(interruption, "_request", None)
    checkpoints = list(runs.rglob("last.ckpt"))
    return stop.value, torch.load(checkpoints[0], weights_only=True) if checkpoints else {}


@pytest.mark.parametrize("step", MOMENTS)
def test_a_run_interrupted_at_any_step_stops_there_and_continues_as_an_unbroken_one(
    tmp_path, monkeypatch, listening, unbroken, step
):
    with monkeypatch.context() as patch:
        signalled(patch, "training_step", lambda m: m.trainer.global_step == step - 1, signal.SIGTERM)
        stop, checkpoint = interrupted(STATEFUL, tmp_path, monkeypatch)
    assert checkpoint["global_step"] == step
    assert f"last.ckpt of step {step} (epoch {(step - 1) // STEPS + 1}) is saved" in str(stop)
    assert not stop.requeue
    assert len(checkpoint["history"]) == step // STEPS
    assert state(next(tmp_path.rglob("last.ckpt")).parent).kind == "started"
    assert science(train(STATEFUL, tmp_path)) == unbroken


@pytest.mark.parametrize(
    "precision", ["32-true", pytest.param("64-true", marks=[needs_exact_mean, pytest.mark.exhaustive])]
)
def test_an_average_and_mixtures_survive_an_interruption(tmp_path, monkeypatch, listening, unbroken, precision):
    words = [*STATEFUL, "recipe.ema=0.9", "recipe.mixup=0.4", "recipe.cutmix=1", "recipe.clip_grad=1"]
    words += [f"trainer.precision={precision}"]
    whole = science(train(words, tmp_path / "whole"))
    assert whole != unbroken
    with monkeypatch.context() as patch:
        signalled(patch, "training_step", lambda m: m.trainer.global_step == STEPS + 6, signal.SIGTERM)
        interrupted(words, tmp_path / "broken", monkeypatch)
    assert science(train(words, tmp_path / "broken")) == whole
    states = []
    for runs in ("whole", "broken"):
        (path,) = (tmp_path / runs).rglob("last.ckpt")
        states.append(torch.load(path, weights_only=True))
    for key in ("state_dict", "current_model_state"):
        assert all(torch.equal(states[0][key][name], states[1][key][name]) for name in states[0][key])

    (path.parent / "result.json").unlink()
    assert science(train(words, tmp_path / "broken")) == whole, "made again from the last checkpoint"


@pytest.mark.parametrize(
    ("hook", "step"), [("training_step", 2 * STEPS), ("on_validation_epoch_start", STEPS), ("validation_step", STEPS)]
)
def test_at_the_end_of_an_epoch_the_validation_is_finished_before_it_stops(
    tmp_path, monkeypatch, listening, unbroken, hook, step
):
    with monkeypatch.context() as patch:
        before = step - (hook == "training_step")
        signalled(patch, hook, lambda m: m.trainer.global_step == before, signal.SIGUSR1)
        stop, checkpoint = interrupted(STATEFUL, tmp_path, monkeypatch)
    assert stop.requeue
    assert checkpoint["global_step"] == step
    assert len(checkpoint["history"]) == step // STEPS
    assert science(train(STATEFUL, tmp_path)) == unbroken


def test_interrupted_again_and_again_it_still_is_the_same_run(tmp_path, monkeypatch, listening, unbroken):
    steps = iter((7, 8, STEPS, STEPS + 1, 2 * STEPS + 20))
    with monkeypatch.context() as patch:
        at = [next(steps)]
        signalled(patch, "training_step", lambda m: m.trainer.global_step == at[0] - 1, signal.SIGUSR1)
        while at[0]:
            stop, checkpoint = interrupted(STATEFUL, tmp_path, monkeypatch)
            assert stop.requeue
            assert checkpoint["global_step"] == at[0]
            at[0] = next(steps, 0)
        assert science(train(STATEFUL, tmp_path)) == unbroken


def test_the_best_epoch_is_still_known_after_an_interruption(tmp_path, monkeypatch, listening):
    words = [word.replace("gamma: 0.5", "gamma: 1000") for word in STATEFUL]
    with monkeypatch.context() as patch:
        signalled(patch, "training_step", lambda m: m.trainer.global_step == 2 * STEPS + 3, signal.SIGTERM)
        interrupted(words, tmp_path, monkeypatch)
    result = train(words, tmp_path)
    first, *others = result["history"]
    assert first["val/top1"] > max(line["val/top1"] for line in others)
    assert result["metrics"]["best"] == {"epoch": 0, **{k: first[f"val/{k}"] for k in ("top1", "top5", "loss")}}


def test_asked_to_stop_in_its_last_validation_a_run_finishes(tmp_path, monkeypatch, listening, unbroken):
    signalled(monkeypatch, "on_validation_epoch_start", lambda m: m.current_epoch == EPOCHS - 1, signal.SIGTERM)
    assert science(train(STATEFUL, tmp_path)) == unbroken
    with pytest.raises(Interrupted, match="before adhoc"):
        train([*STATEFUL, "seed=1"], tmp_path)
    assert not list(tmp_path.rglob("paper-seed1"))


def test_accumulated_gradients_are_not_lost(tmp_path, monkeypatch, listening):
    """Half a step is no place to stop: the gradients of the first half are in no checkpoint."""
    words = [*STATEFUL, "trainer.accumulate=2"]
    whole = science(train(words, tmp_path / "whole"))
    with monkeypatch.context() as patch:
        signalled(patch, "training_step", lambda m: m.trainer.fit_loop.total_batch_idx == 34, signal.SIGTERM)
        _, checkpoint = interrupted(words, tmp_path / "broken", monkeypatch)
    assert checkpoint["global_step"] == 18
    assert science(train(words, tmp_path / "broken")) == whole


def test_an_evaluation_stops_and_is_made_again(tmp_path, monkeypatch, listening):
    train([*MNIST_FC, "recipe.epochs=1"], tmp_path / "trained")
    (weights,) = tmp_path.rglob("last.ckpt")
    words = [*MNIST_FC, f"weights={weights}", "train=false"]
    with monkeypatch.context() as patch:
        signalled(patch, "validation_step", lambda m: True, signal.SIGTERM)
        stop, _ = interrupted(words, tmp_path / "evaluated", monkeypatch)
    assert "starts from the beginning" in str(stop)
    assert not list((tmp_path / "evaluated").rglob("result.json"))
    assert train(words, tmp_path / "evaluated")["status"] == "done"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGUSR1, 138), (signal.SIGTERM, 143)])
def test_a_process_that_gets_a_signal_at_a_random_moment_saves_says_so_and_ends(tmp_path, unbroken, number, code):
    """From outside, wherever it is: at its first steps, within an epoch, in a validation."""
    stepping = tmp_path / "stepping"
    slow = before_step(EPOCHS * STEPS - 1, stepping, pause=0.02)
    slow += before_hook("on_validation_epoch_start", "time.sleep(0.2)")
    process = start(STATEFUL, tmp_path, first=slow)
    wait(stepping.exists, process)
    (progress,) = tmp_path.rglob("progress.json")
    time.sleep(RANDOM.uniform(0, 1.5))
    process.send_signal(number)
    found, output, errors = ended(process)
    assert found == code, (output, errors)
    assert "last.ckpt of step" in errors
    assert "is saved" in errors
    assert "Traceback" not in errors
    assert state(progress.parent).kind == "started"
    assert science(train(STATEFUL, tmp_path)) == unbroken


def test_a_process_that_gets_a_signal_while_it_starts_ends_before_the_first_step(tmp_path, unbroken):
    process = start(STATEFUL, tmp_path, first=before_hook("__init__", "os.kill(os.getpid(), signal.SIGTERM)"))
    code, _, errors = ended(process)
    assert code == 143
    assert "nothing to save yet" in errors
    assert not list(tmp_path.rglob("*.ckpt"))
    assert science(train(STATEFUL, tmp_path)) == unbroken


def test_ctrl_c_ends_a_run_as_interrupted_and_the_same_command_goes_on(tmp_path, unbroken):
    stepping = tmp_path / "stepping"
    slow = before_step(EPOCHS * STEPS - 1, stepping)
    listens = "signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it\n"
    process = start(STATEFUL, tmp_path, first=slow + listens)
    wait(lambda: stepping.exists() and list(tmp_path.rglob("last.ckpt")), process)
    process.send_signal(signal.SIGINT)
    code, output, errors = ended(process)
    assert code == 130, (output, errors)
    assert "the same command continues from the last checkpoint" in errors
    assert "Traceback" not in errors
    assert science(train(STATEFUL, tmp_path)) == unbroken
