"""A loss that is not finite: the run stops at once and names the step, and the healthy checkpoint stays."""

import json

import pytest
import torch

from convrepro.errors import ConvReproError
from convrepro.runs.folder import state
from convrepro.training.module import Classifier
from support.small_runs import STATEFUL, STEPS, science, train


def harm(monkeypatch, hook, step, then):
    """Call `then(module, result)` in place of the result of the module's `hook` in that step, counted from 1."""
    original = getattr(Classifier, hook)

    def harmed(self, *args, **named):
        found = original(self, *args, **named)
        return then(self, found) if self.trainer.fit_loop.total_batch_idx == step - 1 else found

    monkeypatch.setattr(Classifier, hook, harmed)


def fill_with_nan(module, _):
    with torch.no_grad():
        next(module.parameters()).view(-1)[0] = torch.nan


def failed(words, runs) -> tuple[str, dict]:
    """What a diverged run says, and the checkpoint that it leaves."""
    with pytest.raises(ConvReproError, match=r"^training diverged: .*; lower recipe\.optimizer\.lr$") as error:
        train(words, runs)
    checkpoints = list(runs.rglob("last.ckpt"))
    assert not list(runs.rglob("result.json"))
    return str(error.value), torch.load(checkpoints[0], weights_only=True) if checkpoints else {}


@pytest.mark.parametrize("step", [STEPS + 1, STEPS + 13, 2 * STEPS], ids=["first", "within", "last"])
@pytest.mark.parametrize("value", [torch.nan, pytest.param(torch.inf, marks=pytest.mark.exhaustive)])
def test_the_step_is_named_and_the_run_goes_on_from_the_healthy_checkpoint(tmp_path, monkeypatch, step, value):
    with monkeypatch.context() as patch:
        harm(patch, "training_step", step, lambda module, loss: loss * value)
        said, checkpoint = failed(STATEFUL, tmp_path)
    assert f"the loss of step {step} (epoch 2) is not finite" in said
    assert f"last.ckpt of step {STEPS} (epoch 1) is the last healthy checkpoint" in said
    assert checkpoint["global_step"] == STEPS
    assert all(value.isfinite().all() for value in checkpoint["state_dict"].values() if value.is_floating_point())
    (folder,) = {path.parent for path in tmp_path.rglob("last.ckpt")}
    assert state(folder).kind == "failed"
    assert state(folder).error == said
    assert len(train(STATEFUL, tmp_path)["history"]) == 3
    assert state(folder).kind == "done"
    assert state(folder).error is None


def test_no_checkpoint_is_saved_between_a_bad_loss_and_the_next_look(tmp_path, monkeypatch):
    """Saved at each step: the newest is of the step before the bad one."""
    harm(monkeypatch, "training_step", 13, lambda module, loss: loss * torch.nan)
    said, checkpoint = failed([*STATEFUL, "trainer.checkpoint_steps=1"], tmp_path)
    assert "last.ckpt of step 12 (epoch 1) is the last healthy checkpoint" in said
    assert checkpoint["global_step"] == 12


def test_weights_that_are_not_finite_are_not_saved_though_the_loss_was(tmp_path, monkeypatch):
    harm(monkeypatch, "on_train_batch_end", 14, fill_with_nan)
    harm(monkeypatch, "optimizer_step", 14, fill_with_nan)
    said, checkpoint = failed([*STATEFUL, "trainer.checkpoint_steps=7"], tmp_path)
    assert "the weights are not finite after step 14 (epoch 1)" in said
    assert checkpoint["global_step"] == 7


def test_before_the_first_checkpoint_there_is_none_to_name(tmp_path):
    said, checkpoint = failed([*STATEFUL, "recipe.optimizer.name=sgd", "recipe.optimizer.lr=1000"], tmp_path)
    assert "no checkpoint was saved before" in said
    assert not checkpoint


def test_half_a_step_that_is_bad_is_that_step(tmp_path, monkeypatch):
    harm(monkeypatch, "training_step", 2 * STEPS + 20, lambda module, loss: loss * torch.nan)
    said, _ = failed([*STATEFUL, "trainer.accumulate=2"], tmp_path)
    assert f"the loss of step {STEPS + 10} (epoch 2) is not finite" in said


def test_a_validation_loss_that_is_not_finite_is_a_result_and_no_error(tmp_path, monkeypatch):
    """The weights are finite and the accuracy counts; an epoch may overflow in evaluation alone and recover."""
    usual = science(train(STATEFUL, tmp_path / "usual"))
    original = Classifier.validation_step

    def overflowing(self, *args):
        original(self, *args)
        self._sums["val"][0] += torch.inf * (self.current_epoch == 1)

    monkeypatch.setattr(Classifier, "validation_step", overflowing)
    said = []
    result = train(STATEFUL, tmp_path / "odd", echo=said.append)
    assert [line["val/loss"] for line in result["history"]][1] is None
    assert [line["val/top1"] for line in result["history"]] == [line["val/top1"] for line in usual["history"]]
    assert ["validation loss inf" in line for line in said if "  epoch " in line] == [False, True, False]
    (path,) = (tmp_path / "odd").rglob("result.json")

    def refuse(word):
        raise AssertionError(f"{word} is not JSON")

    assert json.loads(path.read_text(), parse_constant=refuse) == result
