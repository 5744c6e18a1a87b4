"""The average of weights equals one computed by hand, is evaluated and saved; a gradient is clipped to its norm."""

from collections import OrderedDict
from itertools import pairwise

import pytest
import torch
from timm.models import register_model
from torch import Tensor, nn

from convrepro.config.compose import compose_config
from convrepro.errors import ConvReproError
from convrepro.training.module import Classifier
from convrepro.training.rehearsal import rehearse
from support.small_runs import TINY, train


@register_model
def averaging_test_network(num_classes: int, in_chans: int, **_: object) -> nn.Module:
    conv, norm = nn.Conv2d(in_chans, 4, 3, stride=2), nn.BatchNorm2d(4)
    pool, flat = nn.AdaptiveAvgPool2d(1), nn.Flatten()
    return nn.Sequential(OrderedDict(conv=conv, norm=norm, pool=pool, flat=flat, fc=nn.Linear(4, num_classes)))


WORDS = ["model=averaging_test_network", *TINY, "recipe.epochs=2", "recipe.batch_size=64"]
SGD = ["recipe.optimizer.momentum=0", "recipe.optimizer.nesterov=false", "recipe.optimizer.weight_decay=0"]
SGD += ["recipe.optimizer.lr=1", "recipe.schedule.name=constant", "recipe.schedule.args=null"]


@pytest.fixture
def steps(monkeypatch) -> list[dict[str, Tensor]]:
    """The state of the network after each step, from when it is asked for."""
    states: list[dict[str, Tensor]] = []
    original = Classifier.optimizer_step

    def optimizer_step(self, *args, **kwargs) -> None:
        if not states:
            states.append({key: value.clone() for key, value in self.network.state_dict().items()})
        original(self, *args, **kwargs)
        states.append({key: value.clone() for key, value in self.network.state_dict().items()})

    monkeypatch.setattr(Classifier, "optimizer_step", optimizer_step)
    return states


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_average_is_that_of_its_definition_and_is_evaluated_and_started_from(tmp_path, steps, accumulate):
    result = train([*WORDS, "recipe.ema=0.8", f"trainer.accumulate={accumulate}"], tmp_path)
    (path,) = tmp_path.rglob("last.ckpt")
    saved = torch.load(path, weights_only=True)
    _, *after = steps
    assert len(after) == 8
    average = {key: value.double() for key, value in after[0].items()}
    for state in after[1:]:
        average = {key: 0.8 * average[key] + 0.2 * state[key].double() for key in average}
    average["norm.num_batches_tracked"] = torch.tensor(8.0 * accumulate)
    for key, value in average.items():
        torch.testing.assert_close(saved["state_dict"][f"network.{key}"].double(), value.double(), msg=key)
        assert torch.equal(saved["current_model_state"][f"network.{key}"], after[-1][key]), "and the weights beside it"

    again = train([*WORDS, f"weights={path}", "train=false"], tmp_path / "again")
    last = {key: again["metrics"]["last"][key] for key in ("top1", "top5", "loss")}
    assert last == pytest.approx({key: result["metrics"]["last"][key] for key in last})


def distances(steps: list[dict[str, Tensor]]) -> list[float]:
    """How far each step moved the parameters: with SGD and a rate of 1, the norm of its gradient."""
    trained = [key for key in steps[0] if "running" not in key and "tracked" not in key]
    pairs = pairwise(steps)
    return [float(sum((b[k] - a[k]).double().square().sum() for k in trained)) ** 0.5 for a, b in pairs]


def test_a_gradient_is_clipped_to_its_norm(tmp_path, steps):
    train([*WORDS, *SGD], tmp_path)
    free = distances(steps)
    assert min(free) > 0.1
    steps.clear()
    train([*WORDS, *SGD, "recipe.clip_grad=0.1"], tmp_path)
    clipped = distances(steps)
    assert max(clipped) == pytest.approx(0.1, rel=1e-3)
    assert clipped[0] == pytest.approx(0.1, rel=1e-3)
    assert len(list(tmp_path.rglob("result.json"))) == 2, "clipping is a part of the protocol"


@pytest.mark.unit
def test_a_clipped_gradient_that_a_fused_optimizer_would_scale_is_rejected():
    words = ["recipe.optimizer.name=adamw", "+recipe.optimizer.args.fused=true", "trainer=cpu"]
    rehearse(compose_config([*words, "recipe.clip_grad=1"]))
    with pytest.raises(ConvReproError, match=r"recipe\.clip_grad=1\.0 cannot be used with a fused .*name=adamw at"):
        rehearse(compose_config([*words, "recipe.clip_grad=1", "trainer.precision=16-mixed"]))
