"""Each operator trains in six networks of timm, by the line a user would type, or says why it cannot.

Each in one network of the six is always tried; all pairs are exhaustive.
"""

import math

import pytest

from convrepro.config.compose import compose_config
from convrepro.errors import ConvReproError
from convrepro.training.run import run

NETWORKS = {
    "resnet18": [],
    "vgg16_bn": ["+model_args.mlp_ratio=0.015625"],  # 64 features for 4096: 120 of its 138 million weights are there
    "mobilenetv2_100": [],
    "densenet121": [],
    "efficientnet_b0": [],
    "convnext_atto": [],
}
OPERATORS = {
    "standard": [],
    "hetconv": ["conv.p=4"],
    "gwc_pwc": ["conv.num_groups=4"],
    "dwc_pwc": [],
    "shift": ["conv.variant=q"],
    "igcv1": ["conv.primary_partitions=8"],
    "igcv2": ["conv.layers=3"],
    "igcv3": ["conv.expansion=2"],
    "low_precision": ["conv.precision=binary"],
    "low_rank": ["conv.rank=0.25"],
    "sparse": ["conv.density=0.25"],
}
NOTHING_DENSE = r"rule dense_kxk .* matches none of its .*; rules that match: dw_pw_pair"
SWAPS = ("hetconv", "gwc_pwc", "dwc_pwc", "igcv1", "igcv2", "igcv3", "low_precision", "low_rank", "sparse")
SENSELESS = {
    **{(n, op): NOTHING_DENSE for n in ("mobilenetv2_100", "efficientnet_b0") for op in SWAPS},
    ("convnext_atto", "hetconv"): r"layer 'stages.1.downsample.1': kernel_size=\(2, 2\) must be odd",
}
PAIRS = [
    pytest.param(operator, network, marks=[pytest.mark.exhaustive] if (place + other) % len(NETWORKS) else [])
    for place, operator in enumerate(OPERATORS)
    for other, network in enumerate(NETWORKS)
]
BUDGET = ["data=cifar10", "budget=smoke", "budget.train_examples=8", "budget.test_examples=8", "recipe.batch_size=8"]
BUDGET += ["trainer=cpu", "logger=none"]


def assert_trains(words, runs):
    """One step, and the result's record."""
    words = [*words, *BUDGET, f"runs={runs}"]
    result = run(compose_config(words), words, echo=lambda line: None)
    assert math.isfinite(result["history"][0]["train/loss"])
    return result


@pytest.mark.parametrize(("operator", "network"), PAIRS)
def test_an_operator_trains_in_a_network_or_says_why_not(network, operator, tmp_path):
    words = [f"model={network}", *NETWORKS[network], f"conv={operator}", *OPERATORS[operator]]
    if reason := SENSELESS.get((network, operator)):
        with pytest.raises(ConvReproError, match=reason):
            assert_trains(words, tmp_path)
        return
    result = assert_trains(words, tmp_path)
    assert (result["static"]["multiplications"] == 0) == (operator == "shift")


@pytest.mark.parametrize(
    "operator",
    [
        *(["conv=low_precision", f"conv.precision={form}"] for form in ("xnor", "ternary")),
        pytest.param(["conv=low_precision", "conv.precision=shared"], marks=pytest.mark.exhaustive),
        ["conv=low_precision", "conv.precision=fixed", "conv.activation_bits=8"],
        pytest.param(["conv=sparse", "conv.density=0.1"], marks=pytest.mark.exhaustive),
    ],
    ids=" ".join,
)
def test_an_operator_trains_in_the_place_of_every_layer(operator, tmp_path):
    assert_trains(["model=mobilenetv2_100", *operator, "conv.where=all"], tmp_path)


@pytest.mark.parametrize(
    ("operator", "where"),
    [(["conv=low_rank", "conv.scheme=spatial"], "pointwise"), (["conv=sparse", "conv.structure=block"], "pointwise")],
    ids=str,
)
def test_an_operator_trains_in_the_place_of_pointwise_layers(operator, where, tmp_path):
    assert_trains(["model=mobilenetv2_100", *operator, f"conv.where={where}"], tmp_path)


@pytest.mark.parametrize("network", ["mobilenetv2_100", "efficientnet_b0"])
def test_a_depthwise_and_pointwise_pair_becomes_one_hetconv(network, tmp_path):
    assert_trains([f"model={network}", "conv=hetconv", "conv.p=8", "conv.where=dw_pw_pair"], tmp_path)
