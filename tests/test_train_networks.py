"""Each operator trains in each of six networks of timm, by the line a user would type, or says why it cannot."""

import math

import pytest

from convrepro.config import compose_config
from convrepro.errors import ConvReproError
from convrepro.train import run

NETWORKS = ("resnet18", "vgg16_bn", "mobilenetv2_100", "densenet121", "efficientnet_b0", "convnext_atto")
OPERATORS = {
    "standard": [],
    "hetconv": ["conv.p=4"],
    "gwc_pwc": ["conv.num_groups=4"],
    "dwc_pwc": [],
    "shift": ["conv.variant=q"],
}
NOTHING_DENSE = r"rule dense_kxk .* matches none of its .*; rules that match: dw_pw_pair"
SWAPS = ("hetconv", "gwc_pwc", "dwc_pwc")
SENSELESS = {
    **{
        (n, op): NOTHING_DENSE
        for n in ("mobilenetv2_100", "efficientnet_b0")
        for op in ("hetconv", "gwc_pwc", "dwc_pwc")
    },
    ("convnext_atto", "hetconv"): r"layer 'stages.1.downsample.1': kernel_size=\(2, 2\) must be odd",
}
BUDGET = ["data=cifar10", "budget=smoke", "budget.train_examples=16", "budget.test_examples=16", "recipe.batch_size=8"]


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("operator", OPERATORS)
def test_an_operator_trains_in_a_network_or_says_why_not(network, operator, tmp_path):
    words = [f"model={network}", f"conv={operator}", *OPERATORS[operator], *BUDGET]
    words += ["trainer=cpu", "logger=none", f"runs={tmp_path}"]
    reason = SENSELESS.get((network, operator))
    if reason:
        with pytest.raises(ConvReproError, match=reason):
            run(compose_config(words), words, echo=lambda line: None)
        return
    result = run(compose_config(words), words, echo=lambda line: None)
    assert math.isfinite(result["history"][0]["train/loss"])
    assert (result["static"]["multiplications"] == 0) == (operator == "shift")


@pytest.mark.parametrize("network", ["mobilenetv2_100", "efficientnet_b0"])
def test_a_depthwise_and_pointwise_pair_becomes_one_hetconv(network, tmp_path):
    words = [f"model={network}", "conv=hetconv", "conv.p=8", "conv.where=dw_pw_pair", *BUDGET]
    words += ["trainer=cpu", "logger=none", f"runs={tmp_path}"]
    result = run(compose_config(words), words, echo=lambda line: None)
    assert math.isfinite(result["history"][0]["train/loss"])
