"""Three sources for the same number: fvcore, torch's own counter, and what each operator promises."""

import pytest
import timm
import torch
from torch import nn

from convrepro.complexity import count, cross_check
from convrepro.errors import ConvReproError
from convrepro.ops import HetConv2d
from convrepro.ops.init import RepeatedFill


def test_it_names_the_layer_whose_operator_promises_something_else():
    class Boasting(HetConv2d):
        def macs(self, out_h, out_w):
            return super().macs(out_h, out_w) - 1

    model = nn.Sequential(HetConv2d(4, 8, 3, p=4), Boasting(8, 8, 3, p=4))
    true = 16 * 8 * (2 * 9 + 6)
    with pytest.raises(ConvReproError, match=rf"'1' \(Boasting\).* {true:,} MACs, Boasting.macs\(\) {true - 1:,}"):
        cross_check(model, (4, 8, 8))


def test_a_count_says_which_layers_do_not_execute_what_they_promise():
    class Boasting(HetConv2d):
        def macs(self, out_h, out_w):
            return super().macs(out_h, out_w) - 1

    true = 36 * 8 * (2 * 9 + 6)
    counted = count(nn.Sequential(HetConv2d(8, 8, 3, padding=1, p=4), Boasting(8, 8, 3, p=4)), (8, 8, 8))
    assert counted.layers[2].macs == true
    last = counted.summary().splitlines()[-1]
    assert "not what macs() says in 1 of the layers" in last
    assert f"'1': Boasting.macs() returns {true - 1:,}, and {true:,} are executed" in last
    assert "macs()" not in count(HetConv2d(8, 8, 3, p=4), (8, 8, 8)).summary()


class SummedFirst(nn.Module):
    """A product of which torch sums one index beforehand, so that no matrix product is left."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 1)

    def forward(self, x):
        return torch.einsum("ab,ac->ac", x[0, 0], self.conv(x)[0, 0])


def test_it_names_the_first_layer_that_torch_counts_differently():
    model = nn.Sequential(nn.Conv2d(1, 1, 1), SummedFirst(), nn.Linear(5, 5))
    with pytest.raises(ConvReproError, match=r"'1' \(SummedFirst\).* fvcore counts 75 MACs, torch's FlopCounterMode 0"):
        cross_check(model, (1, 3, 5))


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("resnet18", {}),
        ("vgg16_bn", {}),
        ("mobilenetv2_100", {}),
        ("densenet121", {}),
        ("efficientnet_b0", {}),
        ("convnext_atto", {}),
        ("vit_tiny_patch16_224", {"img_size": 64}),
    ],
)
def test_timm_models_are_counted_as_torch_counts_them(name, arguments):
    with RepeatedFill():
        model = timm.create_model(name, **arguments)
    counted = cross_check(model, (3, 64, 64))
    assert counted.total("params") == sum(p.numel() for p in model.parameters())
    assert counted.total("macs") > counted.total("conv_only") > 0
    assert all(layer.in_channels for layer in counted.layers if layer.kind in ("conv", "linear"))
