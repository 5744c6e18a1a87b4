"""What SENet's tables count besides multiply-accumulates: residual additions and channel-wise scalings, by hand."""

import pytest
import timm
import torch
from torch import Tensor, nn

from convrepro.complexity import count
from convrepro.ops import HetConv2d, SqueezeExcite

pytestmark = pytest.mark.unit


class Function(nn.Module):
    """A module whose forward pass is `function(x, scale)`, `scale` being a parameter (1, 4, 1, 1)."""

    def __init__(self, function):
        super().__init__()
        self.function = function
        self.scale = nn.Parameter(torch.ones(1, 4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, self.scale)


@pytest.mark.parametrize(
    ("function", "additions", "scalings"),
    [
        (lambda x, s: x + x.relu(), 4 * 5 * 6, 0),
        (lambda x, s: x.relu().add_(x), 4 * 5 * 6, 0),
        (lambda x, s: x.flatten(2) + x.flatten(2), 4 * 5 * 6, 0),
        (lambda x, s: x + 1, 0, 0),
        (lambda x, s: 1 + x + s, 0, 0),
        (lambda x, s: x.reshape(x.shape[0] + x.shape[1] - 1, -1), 0, 0),
        (lambda x, s: x * s.sigmoid(), 0, 4 * 5 * 6),
        (lambda x, s: s * x, 0, 4 * 5 * 6),
        (lambda x, s: x.relu().mul_(x.mean((2, 3), keepdim=True)), 0, 4 * 5 * 6),
        (lambda x, s: x * x.sigmoid(), 0, 0),
        (lambda x, s: x * 2, 0, 0),
        (lambda x, s: x * x.mean(1, keepdim=True), 0, 0),
        (lambda x, s: x.reshape(x.shape[0] * x.shape[1], -1), 0, 0),
    ],
)
def test_residuals_and_channel_factors_are_told_from_other_sums_and_products(function, additions, scalings):
    (layer,) = count(Function(function), (4, 5, 6)).layers
    assert (layer.additions, layer.scalings, layer.macs) == (additions, scalings, 0)


class Residual(nn.Module):
    """Two convolutions with squeeze-and-excitation behind the first, and a shortcut around the second."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, stride=2)
        self.se = SqueezeExcite(8, reduction=4)
        self.conv2 = nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.se(self.conv1(x))
        return self.conv2(x) + x


@pytest.mark.parametrize(("side", "positions"), [(9, 16), (3, 1)])
def test_senet_by_hand(side, positions):
    counted = count(Residual(), (3, side, side))
    conv_fc = positions * 8 * (27 + 8) + 2 * 8 * 2
    assert counted.total("conv_fc") == conv_fc
    assert counted.total("senet") == conv_fc + 8 * positions + 8 * positions
    assert counted.total("senet_biases") == conv_fc + 2 * 8 * positions + 8 * positions
    costs = {layer.name: (layer.additions, layer.scalings) for layer in counted.layers}
    assert costs.pop("") == (8 * positions, 0)
    assert costs.pop("se") == (0, 8 * positions)
    assert set(costs.values()) == {(0, 0)}


def test_the_sums_inside_an_operator_are_its_own():
    class Summed(HetConv2d):
        def forward_exact(self, x):
            return super().forward_exact(x) + super().forward_exact(x)

    counted = count(Summed(4, 8, 3, p=4), (4, 6, 6))
    assert counted.total("senet") == counted.total("conv_fc") == 2 * 16 * 8 * (9 + 3)


def test_resnet_adds_once_for_each_block():
    """Four stages of two blocks; images of 64 pixels leave 16, 8, 4 and 2 on a side."""
    counted = count(timm.create_model("resnet18"), (3, 64, 64))
    additions = 2 * (64 * 16**2 + 128 * 8**2 + 256 * 4**2 + 512 * 2**2)
    assert counted.total("senet") - counted.total("conv_fc") == counted.sum("additions") == additions
