"""Weight decay of DeepShift-PS: on the weight that the latents stand for (authors' code, arXiv 1905.13298)."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convrepro.ops import ShiftConv2d, ShiftLinear
from convrepro.training.module import Classifier

DECAY = 0.03
RATE = 0.1


def network(variant: str) -> nn.Sequential:
    """A shift convolution, a norm and a shift classifier; the shifts are no integers, and some signs are 0."""
    torch.manual_seed(0)
    layers = nn.Sequential(
        ShiftConv2d(1, 3, 3, variant=variant),
        nn.BatchNorm2d(3),
        nn.Flatten(),
        ShiftLinear(3 * 4 * 4, 2, variant=variant),
    )
    with torch.no_grad():
        for name, parameter in layers.named_parameters():
            if name.endswith(("shift", "sign")):
                parameter.copy_(torch.empty_like(parameter).uniform_(*((-5, 0) if "shift" in name else (-1, 1))))
    return layers


def classifier(layers: nn.Module, decay: float, name: str = "sgd") -> Classifier:
    optimizer = {"name": name, "lr": RATE, "momentum": 0.0, "nesterov": False, "weight_decay": decay, "args": {}}
    recipe = {"optimizer": optimizer, "schedule": {"name": "constant"}, "epochs": 1, "label_smoothing": 0.0}
    recipe |= {"mixup": 0.0, "cutmix": 0.0}
    return Classifier(layers, recipe, num_classes=2, epochs=1, seed=0)


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(8, 1, 6, 6, generator=generator), torch.tensor([0, 1] * 4)


def test_the_penalty_is_half_the_sum_of_squared_powers():
    layer = network("ps")[0]
    expected = sum((2.0**p) ** 2 for p in layer.shift.flatten().tolist()) / 2
    assert layer.weight_penalty().item() == pytest.approx(expected, rel=1e-6)
    layer.weight_penalty().backward()
    assert layer.sign.grad is None
    gradient = torch.tensor([math.log(2) * 4.0**p for p in layer.shift.flatten().tolist()])
    torch.testing.assert_close(layer.shift.grad.flatten(), gradient)


def test_one_step_moves_each_parameter_by_its_own_decay(batch):
    """Latents: the gradient of the cross-entropy, and of the penalty for the shift. Everything else: as ever."""
    module = classifier(network("ps"), DECAY)
    plain = copy.deepcopy(module.network)
    F.cross_entropy(plain(batch[0]), batch[1]).backward()
    gradients = {name: p.grad for name, p in plain.named_parameters()}
    before = {name: p.detach().clone() for name, p in plain.named_parameters()}

    optimizer = module.configure_optimizers()
    module.training_step(batch, 0).backward()
    optimizer.step()
    kinds = set()
    for name, parameter in module.network.named_parameters():
        kind = name.split(".")[1]
        decayed = {"shift": math.log(2) * 4 ** before[name], "sign": 0}.get(kind, before[name])
        expected = before[name] - RATE * (gradients[name] + DECAY * decayed)
        torch.testing.assert_close(parameter.detach(), expected, rtol=1e-5, atol=1e-7)
        kinds.add(kind)
    assert kinds == {"shift", "sign", "weight", "bias"}


def test_the_history_has_the_cross_entropy_alone(batch):
    module = classifier(network("ps"), DECAY)
    expected = F.cross_entropy(copy.deepcopy(module.network)(batch[0]), batch[1])
    loss = module.training_step(batch, 0)
    assert module._sums["train"][0].item() == 8 * expected.item()
    penalty = sum(m.weight_penalty() for m in (module.network[0], module.network[3]))
    assert loss.item() == pytest.approx((expected + DECAY * penalty).item())
    assert loss > expected


@pytest.mark.parametrize(("variant", "decay"), [("q", DECAY), ("v1", DECAY), ("ps", 0.0)])
def test_other_variants_and_no_decay_are_left_to_the_optimizer(batch, variant, decay):
    """One group of parameters, and the loss is the cross-entropy to the last bit."""
    module = classifier(network(variant), decay)
    expected = F.cross_entropy(copy.deepcopy(module.network)(batch[0]), batch[1])
    (group,) = module.configure_optimizers().param_groups
    assert group["weight_decay"] == decay
    assert len(group["params"]) == len(list(module.network.parameters()))
    assert torch.equal(module.training_step(batch, 0), expected)


@pytest.mark.parametrize("name", ["radam", "lookahead_radam", "adamw"])
def test_every_optimizer_spares_the_latents(name):
    module = classifier(network("ps"), DECAY, name)
    rest, spared = module.configure_optimizers().param_groups
    assert (rest["weight_decay"], spared["weight_decay"]) == (DECAY, 0)
    latents = {id(p) for name, p in module.network.named_parameters() if name.endswith(("shift", "sign"))}
    assert {id(p) for p in spared["params"]} == latents
    assert len(rest["params"]) == 4
