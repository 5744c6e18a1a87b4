"""Two processes that train one run together, off the cluster: they stop after the same step, and one speaks."""

import json
import signal

import pytest
import torch

from convrepro.runs.folder import state
from support.small_runs import STATEFUL, before_hook, ended, science, start
from support.variants import identity, named

#: 2 epochs of 16 steps; processes that share a core exchange gradients slowly.
PAIR = [word for word in STATEFUL if not word.startswith(("recipe.epochs", "recipe.batch_size", "budget"))]
PAIR += ["recipe.epochs=2", "recipe.batch_size=2", "budget.train_examples=32", "budget.test_examples=20"]
PAIR += ["trainer.devices=2", "trainer.strategy=ddp"]
PAIR = named(PAIR)
RANK = "os.environ.get('LOCAL_RANK', '0')"
NAN = f"""
import os
from convrepro.training.module import Classifier
def training_step(self, *args, then=Classifier.training_step):
    bad = {RANK} == '1' and self.trainer.global_step == 11
    return then(self, *args) * (float('nan') if bad else 1)
Classifier.training_step = training_step
"""


def folder(runs):
    return identity(PAIR).folder(runs)


@pytest.mark.exhaustive
def test_a_signal_to_one_process_stops_all_after_the_same_step_and_they_continue_as_if_unbroken(tmp_path):
    runs = {name: tmp_path / name for name in ("whole", "broken")}
    code, output, errors = ended(start(PAIR, runs["whole"]))
    assert code == 0, errors
    assert output.count("  epoch 2/2") == 1, "the second process speaks too"

    asks = before_hook("training_step", f"{RANK} == '0' and self.trainer.global_step == 3 and os.kill(os.getpid(), 10)")
    code, _, errors = ended(start(PAIR, runs["broken"], first=asks))
    assert code == 128 + signal.SIGUSR1
    assert errors.count("last.ckpt of step 10 (epoch 1) is saved, and the same command continues from it") == 1
    assert torch.load(folder(runs["broken"]) / "last.ckpt", weights_only=True)["global_step"] == 10
    assert state(folder(runs["broken"])).kind == "started"

    code, _, errors = ended(start(PAIR, runs["broken"]))
    assert code == 0, errors
    whole, broken = (json.loads((folder(path) / "result.json").read_text()) for path in runs.values())
    assert science(broken) == science(whole)
    assert broken["history"][-1]["step"] == 32


def test_a_loss_that_one_process_alone_has_ends_both_with_one_sentence(tmp_path):
    code, _, errors = ended(start(PAIR, tmp_path, first=NAN))
    assert code == 2
    assert errors.count("training diverged: the loss of step 12 (epoch 1) is not finite") == 1
    assert "Traceback" not in errors
    assert state(folder(tmp_path)).kind == "failed"
