"""How far a converted network is from the one that it was converted from, on a batch of the bundled sample."""

import copy
import math
from functools import cache
from itertools import pairwise

import timm
import torch
from torch import Tensor, nn

import convrepro.models.zoo  # noqa: F401 (registers the zoo)
from convrepro.data.sample import fit_to, load_sample
from convrepro.models.surgery import replace_convs

NOISE = 1.05
"""An error that should not grow may by this factor."""


@cache
@torch.no_grad()
def original(name: str) -> tuple[nn.Module, Tensor, Tensor]:
    """A network of the zoo with fixed random weights, 16 images, whose statistics its norms have, and their logits."""
    torch.manual_seed(0)
    images = fit_to(load_sample("test"), 3, 32).images[:16].permute(0, 3, 1, 2).float() / 255
    images = (images - images.mean()) / images.std()
    network = timm.create_model(name)
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = 1.0
    network(images)
    return network, images, network.eval()(images)


@torch.no_grad()
def distance(name: str, changed: nn.Module) -> float:
    """Between the logits of `changed` and those of the network of this name, relative to the norm of these."""
    _, images, logits = original(name)
    return float((changed(images) - logits).norm() / logits.norm())


def converted(name: str, operator: str, knobs: dict[str, object]) -> tuple[nn.Module, list[str]]:
    """The network with every KxK convolution but the first converted, and the names of these."""
    network = copy.deepcopy(original(name)[0])
    report = replace_convs(network, operator, "dense_kxk", knobs, convert=True)
    return network, [swap.name for swap in report.replaced]


def error(name: str, operator: str, knobs: dict[str, object]) -> float:
    """The distance of the converted network."""
    return distance(name, converted(name, operator, knobs)[0])


def error_by_layer(name: str, operator: str, knobs: dict[str, object]) -> float:
    """Root mean square, over the layers, of the distance once that layer alone is converted.

    Where all layers are converted coarsely, the network is as far off as it can be, and how far is chance; this is not.
    """
    whole, layers = converted(name, operator, knobs)
    distances = []
    network = copy.deepcopy(original(name)[0])
    for layer in layers:
        before = network.get_submodule(layer)
        network.set_submodule(layer, whole.get_submodule(layer))
        distances.append(distance(name, network))
        network.set_submodule(layer, before)
    return math.sqrt(sum(d * d for d in distances) / len(distances))


def assert_never_worse(errors: list[float]) -> None:
    """Each error is no larger than the coarser one before it, but for noise, and the last is far below the first."""
    assert all(finer <= NOISE * coarser for coarser, finer in pairwise(errors)), errors
    assert errors[-1] < errors[0] / 2, errors
