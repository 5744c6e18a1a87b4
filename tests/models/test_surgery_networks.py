"""Which layers of zoo and timm networks the rules select, and that every operator trains there or says why not."""

import copy
import re

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

import convrepro.models.zoo  # noqa: F401 (registers the zoo)
from convrepro.errors import ConvReproError
from convrepro.models.layers import WHERE
from convrepro.models.surgery import replace_convs
from convrepro.ops import HetConv2d

NETWORKS = {
    "resnet18": {},
    "vgg16_bn": {"mlp_ratio": 1 / 64},  # the classifier's two convolutions are narrow, to save memory
    "mobilenetv2_100": {},
    "densenet121": {},
    "efficientnet_b0": {},
    "convnext_atto": {},
}

SEPARABLE = ["mobilenet_v1_cifar", "mobilenetv1_100", "mobilenetv2_100", "efficientnet_b0"]


@pytest.fixture(scope="module")
def networks() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    built = {name: timm.create_model(name, num_classes=10, **args) for name, args in NETWORKS.items()}
    zoo = {name: timm.create_model(name) for name in ("vgg16_cifar", "mobilenet_v1_cifar")}
    return built | zoo | {"mobilenetv1_100": timm.create_model("mobilenetv1_100", num_classes=10)}


def train_once(model: nn.Module, size: int) -> None:
    """One forward and backward; every parameter of a network that trains has a finite gradient."""
    logits = model.train()(torch.randn(2, 3, size, size))
    assert logits.shape == (2, 10)
    F.cross_entropy(logits, torch.tensor([3, 7])).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def no_match(where: str, counts: str, others: str) -> str:
    return re.escape(
        f"rule {where} ({WHERE[where].description}) matches none of its {counts}; rules that match: {others}"
    )


HETCONV = ("hetconv", "dense_kxk", {"p": 4})
GROUPED = ("gwc_pwc", "dense_kxk", {"num_groups": 4})
DEPTHWISE = ("dwc_pwc", "dense_kxk", {})
PAIR = ("hetconv", "dw_pw_pair", {"p": 8})
SHIFT = ("shift", "all", {})

NO_KXK_MOBILENET = no_match(
    "dense_kxk", "52 convolutions (1 first, 17 depthwise, 34 pointwise)", "dw_pw_pair, pointwise, depthwise, all"
)
NO_KXK_EFFICIENTNET = no_match(
    "dense_kxk", "81 convolutions (1 first, 16 depthwise, 64 pointwise)", "dw_pw_pair, pointwise, depthwise, all"
)
NO_PAIR_DENSENET = no_match(
    "dw_pw_pair", "120 convolutions (1 first, 61 pointwise, 58 dense kxk)", "dense_kxk, pointwise, all"
)
EVEN_KERNEL = r"layer 'stages.1.downsample.1': kernel_size=\(2, 2\) must be odd"

OUTCOMES = [  # for each operator, rule and knobs: the number of layers replaced, or why there is nothing to do
    (
        swap,
        {
            "resnet18": 16,
            "vgg16_bn": 12,
            "mobilenetv2_100": NO_KXK_MOBILENET,
            "densenet121": 58,
            "efficientnet_b0": NO_KXK_EFFICIENTNET,
            "convnext_atto": convnext,
        },
    )
    for swap, convnext in ((HETCONV, EVEN_KERNEL), (GROUPED, 3), (DEPTHWISE, 3))
] + [
    (
        SHIFT,
        {
            "resnet18": 21,
            "vgg16_bn": 16,
            "mobilenetv2_100": 53,
            "densenet121": 121,
            "efficientnet_b0": 82,
            "convnext_atto": 41,
        },
    ),
    (
        PAIR,
        {
            "mobilenetv1_100": 13,
            "mobilenetv2_100": 17,
            "densenet121": NO_PAIR_DENSENET,
            "efficientnet_b0": 16,
            "convnext_atto": 12,
        },
    ),
]
MATRIX = [(network, swap, outcome) for swap, networks in OUTCOMES for network, outcome in networks.items()]


@pytest.mark.parametrize(("network", "swap", "outcome"), MATRIX, ids=[f"{n}-{o}-{w}" for n, (o, w, _), _ in MATRIX])
def test_operators_on_timm_networks(networks, network, swap, outcome):
    model = copy.deepcopy(networks[network])
    if isinstance(outcome, str):
        with pytest.raises(ConvReproError, match=outcome):
            replace_convs(model, *swap)
        assert repr(model) == repr(networks[network])
    else:
        report = replace_convs(model, *swap)
        assert len(report.replaced) == outcome
        assert all(repr(model.get_submodule(s.name)) == s.after != s.before for s in report.replaced)
        train_once(model, 32)


@pytest.mark.parametrize("network", SEPARABLE)
def test_pairs_cover_every_depthwise(networks, network):
    model = copy.deepcopy(networks[network])
    depthwise = [n for n, m in model.named_modules() if isinstance(m, nn.Conv2d) and m.groups > 1]
    report = replace_convs(model, "hetconv", "dw_pw_pair", {"p": 1})
    assert len(report.replaced) == len(depthwise)
    assert not [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.groups > 1]


@pytest.mark.parametrize("network", NETWORKS)
def test_first_convolution_is_first_in_the_forward_pass(networks, network):
    model = copy.deepcopy(networks[network]).eval()
    order: list[str] = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda *_, name=name: order.append(name))
    model(torch.zeros(1, 3, 32, 32))
    report = replace_convs(model, "standard", "all", se_reduction=1)
    assert report.replaced[0].name == order[0]
    assert len(order) == len(report.replaced)


@pytest.mark.parametrize(
    ("p", "parameters"),
    [
        (1, 14_982_474),
        (2, 8_445_258),
        (4, 5_176_650),
        (8, 3_542_346),
        (16, 2_725_194),
        (64, 2_112_330),
        ("out", 1_937_738),
    ],
)
def test_hetconv_vgg_has_the_derived_parameter_counts(networks, p, parameters):
    model = copy.deepcopy(networks["vgg16_cifar"])
    replace_convs(model, "hetconv", "dense_kxk", {"p": p})
    weighted = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear | HetConv2d)]
    assert sum(q.numel() for m in weighted for q in m.parameters()) == parameters


@pytest.mark.parametrize(("p", "macs"), [(32, 55_945_216), (64, 50_440_192), (1, 397_256_704)])
def test_hetconv_mobilenet_has_the_derived_macs(networks, p, macs):
    model = copy.deepcopy(networks["mobilenet_v1_cifar"]).eval()
    replace_convs(model, "hetconv", "dw_pw_pair", {"p": p})
    counted = [3 * 32 * 9 * 32 * 32 + 1024 * 10]  # the first convolution and the classifier
    for module in model.modules():
        if isinstance(module, HetConv2d):
            module.register_forward_hook(lambda m, _, y: counted.append(m.macs(*y.shape[2:])))
    model(torch.zeros(1, 3, 32, 32))
    assert len(counted) == 14
    assert sum(counted) == macs
