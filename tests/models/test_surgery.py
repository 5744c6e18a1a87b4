"""How surgery replaces, what it keeps and why, and what it refuses."""

import copy

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.models.swin_transformer_v2 import WindowAttention
from torch import Tensor, nn

import convrepro.models.zoo  # noqa: F401 (registers the zoo)
from convrepro.errors import ConvReproError
from convrepro.models.surgery import replace_convs
from convrepro.ops import (
    DepthwisePointwise,
    GroupPointwise,
    HetConv2d,
    ShiftConv2d,
    ShiftLinear,
    SqueezeExcite,
    SqueezeExciteConv,
)

pytestmark = pytest.mark.unit


@pytest.fixture(scope="module")
def networks() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    names = ("resnet20_cifar", "mobilenet_v1_cifar", "resnet18", "efficientnet_b0")
    built = {name: timm.create_model(name, num_classes=10) for name in names}
    narrow_classifier = {"mlp_ratio": 1 / 64}
    return built | {"vgg16_bn": timm.create_model("vgg16_bn", num_classes=10, **narrow_classifier)}


HETCONV = ("hetconv", "dense_kxk", {"p": 4})
GROUPED = ("gwc_pwc", "dense_kxk", {"num_groups": 4})
DEPTHWISE = ("dwc_pwc", "dense_kxk", {})
PAIR = ("hetconv", "dw_pw_pair", {"p": 8})
SHIFT = ("shift", "all", {})


@pytest.mark.parametrize("network", ["resnet18", "efficientnet_b0", "vgg16_cifar"])
def test_standard_changes_nothing(network):
    torch.manual_seed(3)
    plain = timm.create_model(network, num_classes=10)
    drawn = torch.rand(())
    torch.manual_seed(3)
    model = timm.create_model(network, num_classes=10)
    report = replace_convs(model, "standard", "dense_kxk", init="fan_out")
    assert torch.equal(torch.rand(()), drawn)
    assert not report.replaced
    assert report.summary() == "standard: no layer replaced"
    assert list(model.state_dict()) == list(plain.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), plain.state_dict().values(), strict=True))


def test_what_is_kept_has_a_reason(networks):
    model = copy.deepcopy(networks["vgg16_bn"])
    report = replace_convs(model, *HETCONV)
    assert report.kept == {"features.0": "first", "pre_logits.fc1": "classifier", "pre_logits.fc2": "classifier"}
    assert report.summary() == "hetconv at dense_kxk: 12 replaced; kept 1 first, 2 classifier"
    assert type(model.pre_logits.fc1) is nn.Conv2d
    assert report.replaced[0].before == repr(networks["vgg16_bn"].features[3])


def test_a_pair_becomes_one_convolution_with_the_stride_of_the_depthwise(networks):
    model = copy.deepcopy(networks["mobilenet_v1_cifar"]).eval()
    block = model.layers[1]
    x = torch.randn(2, 64, 8, 8)
    before = block(x)
    report = replace_convs(model, "hetconv", "dw_pw_pair", {"p": 4})
    assert "groups=64" in report.replaced[1].before
    assert "kernel_size=(1, 1)" in report.replaced[1].before
    y = F.conv2d(x, block.conv2.dense_weight(), stride=2, padding=1)
    oracle = F.batch_norm(y, block.bn2.running_mean, block.bn2.running_var, block.bn2.weight, block.bn2.bias).relu()
    assert block(x).shape == before.shape
    torch.testing.assert_close(block(x), oracle, rtol=1e-4, atol=1e-5)
    assert all(isinstance(m, nn.Identity) for m in (block.conv1, block.bn1, block.act1))
    assert isinstance(block.act2, nn.ReLU)
    assert report.kept == {"conv1": "first"}


def test_squeeze_excite_inside_a_pair_stays_and_sees_the_input(networks):
    model = copy.deepcopy(networks["efficientnet_b0"])
    gate = model.blocks[1][0].se
    replace_convs(model, "dwc_pwc", "dw_pw_pair")
    block = model.blocks[1][0]
    assert block.se is gate
    assert isinstance(block.bn2, nn.Identity)
    assert isinstance(block.conv_pwl, DepthwisePointwise)
    assert (block.conv_pwl.in_channels, block.conv_pwl.out_channels, block.conv_pwl.stride) == (96, 24, (2, 2))


def test_state_of_the_replaced_layer_is_kept(networks):
    model = copy.deepcopy(networks["resnet20_cifar"]).double().to(memory_format=torch.channels_last)
    model.layer1.requires_grad_(False).eval()
    replace_convs(model, *HETCONV)
    frozen, free = model.layer1[0].conv1, model.layer2[0].conv2
    for conv, trains in ((frozen, False), (free, True)):
        assert conv.training is trains
        assert conv.weight_kxk.requires_grad is trains
        assert conv.weight_kxk.dtype == torch.float64
        assert conv.weight_kxk.is_contiguous(memory_format=torch.channels_last)
        assert not conv.weight_kxk.is_contiguous()
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64).to(memory_format=torch.channels_last)
    assert model.forward_features(x).is_contiguous(memory_format=torch.channels_last)

    elsewhere = copy.deepcopy(networks["resnet20_cifar"]).to("meta")
    replace_convs(elsewhere, *HETCONV, se_reduction=4)
    assert {p.device.type for p in elsewhere.parameters()} == {"meta"}
    assert free.weight_kxk.device.type == "cpu"


def test_bias_and_geometry_follow_the_layer():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.Conv2d(8, 4, (3, 5), stride=(2, 1), padding=(1, 2), dilation=(2, 1), padding_mode="reflect"),
        nn.Conv2d(4, 4, 3, padding="same", bias=False),
    )
    shape = model(torch.zeros(1, 3, 16, 16)).shape
    words = ("kernel_size", "stride", "padding", "dilation", "padding_mode", "in_channels", "out_channels")
    before = [getattr(model[1], w) for w in words]
    replace_convs(model, "hetconv", "dense_kxk", {"p": 2})
    assert [getattr(model[1], w) for w in words] == before
    assert model[1].bias is not None
    assert model[2].bias is None
    assert model(torch.zeros(1, 3, 16, 16)).shape == shape


def test_fresh_weights_follow_init():
    def weights(init: str) -> Tensor:
        model = nn.Sequential(nn.Conv2d(3, 64, 3), nn.Conv2d(64, 64, 3))
        replace_convs(model, "hetconv", "dense_kxk", {"p": 1}, init=init)
        return model[1].weight_kxk

    torch.manual_seed(0)
    fan = 64 * 9
    assert weights("torch").abs().max().item() == pytest.approx(fan**-0.5, rel=1e-2)
    assert weights("fan_out").std().item() == pytest.approx((2 / fan) ** 0.5, rel=0.03)
    with pytest.raises(ConvReproError, match=r"layer '1': init='he' is not a scheme; valid: torch, fan_in, fan_out"):
        weights("he")


def test_a_refusal_names_the_layer_and_leaves_the_model_alone():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Sequential(nn.Conv2d(8, 6, 3)))
    before = copy.deepcopy(model)
    with pytest.raises(ConvReproError, match=r"layer '2.0': p=4 must divide out_channels=6"):
        replace_convs(model, *HETCONV)
    with pytest.raises(ConvReproError, match=r"layer '2.0': reduction=4 must divide channels=6"):
        replace_convs(model, "standard", "dense_kxk", se_reduction=4)
    assert repr(model) == repr(before)
    grouped = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=2), nn.Conv2d(8, 8, 3))
    with pytest.raises(ConvReproError, match=r"layer '1': groups=2"):
        replace_convs(grouped, "gwc_pwc", "all", {"num_groups": 1})
    assert [s.name for s in replace_convs(grouped, *HETCONV).replaced] == ["2"]


def test_unknown_words_are_answered_with_the_valid_ones(networks):
    model = networks["resnet20_cifar"]
    with pytest.raises(ConvReproError, match=r"operator 'hetcon' does not exist; valid: standard, hetconv, "):
        replace_convs(model, "hetcon", "dense_kxk")
    with pytest.raises(ConvReproError, match=r"where rule '3x3' does not exist; valid: dense_kxk, dw_pw_pair, "):
        replace_convs(model, "standard", "3x3")
    with pytest.raises(ConvReproError, match=r"operator hetconv has no knob 'parts'; valid: p, arrangement"):
        replace_convs(model, "hetconv", "dense_kxk", {"parts": 4})
    with pytest.raises(ConvReproError, match=r"operator standard has no knob 'p'; valid: none"):
        replace_convs(model, "standard", "dense_kxk", {"p": 4})


def test_a_network_without_convolutions():
    model = timm.create_model("deepshift_mnist_fc")
    with pytest.raises(ConvReproError, match=r"matches nothing: it has no convolution; rules that match: none"):
        replace_convs(model, "hetconv", "all")
    report = replace_convs(model, *SHIFT)
    assert [s.name for s in report.replaced] == ["features.1", "features.4", "linear"]
    assert model(torch.randn(2, 1, 28, 28)).shape == (2, 10)


def test_linear_layers_follow_only_the_rule_all(networks):
    model = copy.deepcopy(networks["resnet20_cifar"])
    replace_convs(model, "shift", "dense_kxk")
    assert type(model.linear) is nn.Linear
    assert type(model.conv1) is nn.Conv2d
    replace_convs(model, *SHIFT)
    assert isinstance(model.linear, ShiftLinear)
    assert isinstance(model.conv1, ShiftConv2d)


def test_squeeze_excite_follows_each_new_convolution(networks):
    x = torch.randn(2, 3, 32, 32)
    model = copy.deepcopy(networks["resnet20_cifar"]).eval()
    replace_convs(model, "standard", "dense_kxk", se_reduction=8)
    conv = model.layer1[0].conv1
    assert isinstance(conv, SqueezeExciteConv)
    assert torch.equal(conv.conv.weight, networks["resnet20_cifar"].layer1[0].conv1.weight)
    for module in model.modules():
        if isinstance(module, SqueezeExcite):
            nn.init.zeros_(module.excite.weight)
            nn.init.constant_(module.excite.bias, 20.0)  # a gate of 1
    torch.testing.assert_close(model(x), copy.deepcopy(networks["resnet20_cifar"]).eval()(x), rtol=1e-4, atol=1e-5)

    pairs = copy.deepcopy(networks["mobilenet_v1_cifar"])
    report = replace_convs(pairs, "standard", "dw_pw_pair", se_reduction=8)
    assert report.summary() == "standard at dw_pw_pair: 13 replaced; kept 1 first, 13 depthwise"
    assert isinstance(pairs.layers[0].conv1, nn.Conv2d)
    assert isinstance(pairs.layers[0].conv2, SqueezeExciteConv)
    assert pairs(torch.randn(2, 3, 32, 32)).shape == (2, 10)


@pytest.mark.parametrize(
    ("operator", "where", "knobs"), [("hetconv", "dense_kxk", {"p": 1}), ("dwc_pwc", "pointwise", {})]
)
def test_converted_network_computes_the_same_where_the_operator_can(networks, operator, where, knobs):
    model = copy.deepcopy(networks["resnet18"]).eval()
    x = torch.randn(2, 3, 32, 32)
    before = model(x)
    replace_convs(model, operator, where, knobs, convert=True)
    torch.testing.assert_close(model(x), before, rtol=1e-4, atol=1e-4)


def test_converted_shift_network_has_the_nearest_powers_of_two(networks):
    model = copy.deepcopy(networks["resnet20_cifar"])
    replace_convs(model, *SHIFT, convert=True)
    for name in ("conv1", "layer3.2.conv2", "linear"):
        w = networks["resnet20_cifar"].get_submodule(name).weight.detach().double()
        nearest = w.sign() * 2 ** w.abs().log2().round().clamp(-15, 0)
        assert torch.equal(model.get_submodule(name).quantized_weight().detach().double(), nearest)


def test_weights_that_cannot_be_carried_over_are_refused(networks):
    with pytest.raises(ConvReproError, match=r"layer 'layer1.0.conv1': operator gwc_pwc cannot take over weights"):
        replace_convs(networks["resnet20_cifar"], *GROUPED, convert=True)
    with pytest.raises(ConvReproError, match=r"weights cannot be carried over by rule dw_pw_pair"):
        replace_convs(networks["mobilenet_v1_cifar"], *PAIR, convert=True)


def test_variants_of_a_convolution_are_kept_with_a_reason():
    model = timm.create_model("tf_mobilenetv3_small_minimal_100", num_classes=10)
    report = replace_convs(model, "hetconv", "dw_pw_pair", {"p": 1})
    variants = [n for n, m in model.named_modules() if type(m).__name__ == "Conv2dSame" and m.groups > 1]
    assert len(variants) == 4
    kept = [name for name, reason in report.kept.items() if reason == "Conv2dSame, a class of its own"]
    assert [name.rpartition(".")[0] for name in kept] == [name.rpartition(".")[0] for name in variants]
    assert model(torch.randn(2, 3, 64, 64)).shape == (2, 10)

    same = nn.Sequential(nn.Conv2d(3, 4, 3), timm.layers.Conv2dSame(4, 4, 3, stride=2))
    with pytest.raises(ConvReproError, match=r"that can be replaced \(1 Conv2dSame, a class of its own\)"):
        replace_convs(same, *HETCONV)


def test_a_layer_whose_weight_its_parent_reads_is_kept():
    torch.manual_seed(0)
    attention = WindowAttention(dim=8, window_size=(4, 4), num_heads=2).eval()
    report = replace_convs(attention, *SHIFT)
    assert report.kept == {"qkv": "weight read by WindowAttention.forward"}
    assert {s.name for s in report.replaced} == {"proj", "cpb_mlp.0", "cpb_mlp.2"}
    assert attention(torch.randn(1, 16, 8)).isfinite().all()


class ReusedActivation(nn.Module):
    """A separable block with one ReLU for both of its places."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)
        self.dw = nn.Conv2d(8, 8, 3, groups=8)
        self.relu = nn.ReLU()
        self.pw = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.pw(self.relu(self.dw(self.stem(x)))))


def test_an_activation_that_is_used_twice_is_not_taken_out():
    with pytest.raises(ConvReproError, match=r"relu used more than once by ReusedActivation.forward"):
        replace_convs(ReusedActivation(), *PAIR)


@pytest.mark.parametrize("shared", ["activation", "depthwise", "pointwise"])
def test_a_pair_with_a_module_that_stands_elsewhere_too_is_kept(shared):
    act, dw, pw = nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 8, 1)
    after = {"activation": act, "depthwise": dw, "pointwise": pw}[shared]
    free = [nn.Conv2d(8, 8, 3, groups=8), nn.BatchNorm2d(8), nn.Conv2d(8, 16, 1)]
    model = nn.Sequential(nn.Conv2d(3, 8, 3), dw, act, pw, after, nn.Sequential(*free)).eval()
    x = torch.randn(1, 3, 9, 9)
    before = model[:5](x)
    report = replace_convs(model, *PAIR)
    assert [s.name for s in report.replaced] == ["5.2"]
    assert report.kept == {"0": "first", "1": "depthwise", "3": f"{type(after).__name__} registered in 2 places"}
    assert torch.equal(model[:5](x), before)


def test_an_activation_that_stands_before_a_pair_too_is_found_in_it():
    act = nn.ReLU()
    model = nn.Sequential(act, nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=8), act, nn.Conv2d(8, 8, 1))
    with pytest.raises(ConvReproError, match=r"that can be replaced \(1 ReLU registered in 2 places\)"):
        replace_convs(model, *PAIR)


def test_a_pair_in_a_block_that_the_model_uses_twice_is_replaced():
    block = nn.Sequential(nn.Conv2d(8, 8, 3, groups=8), nn.ReLU(), nn.Conv2d(8, 8, 1))
    model = nn.Sequential(nn.Conv2d(3, 8, 3), block, block)
    assert [s.name for s in replace_convs(model, *PAIR).replaced] == ["1.2"]
    assert isinstance(model[2][2], HetConv2d)


def test_only_what_follows_at_once_makes_a_pair():
    between = {
        "norm": (timm.layers.BatchNormAct2d(8), 1),
        "dropout": (nn.Dropout(0.1), 1),
        "pool": (nn.AvgPool2d(2), 0),
        "a convolution with norm": (timm.layers.ConvNormAct(8, 8, 3), 0),
        "a grouped convolution": (nn.Conv2d(8, 8, 1, groups=2), 0),
    }
    for name, (module, pairs) in between.items():
        model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=8), module, nn.Conv2d(8, 16, 1))
        kept = type(model[2])
        if pairs:
            assert [s.name for s in replace_convs(model, *PAIR).replaced] == ["3"], name
            assert type(model[2]) is (nn.Identity if name == "norm" else kept)
        else:
            with pytest.raises(ConvReproError, match=r"rule dw_pw_pair .* matches none"):
                replace_convs(model, *PAIR)


def test_a_shared_convolution_stays_shared():
    conv = nn.Conv2d(8, 8, 3)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), conv, nn.ReLU(), conv)
    report = replace_convs(model, *HETCONV)
    assert [s.name for s in report.replaced] == ["1"]
    assert model[1] is model[3]
    assert isinstance(model[3], HetConv2d)


def test_operators_already_in_place_are_left(networks):
    model = copy.deepcopy(networks["resnet20_cifar"])
    replace_convs(model, *GROUPED)
    with pytest.raises(ConvReproError, match=r"none of its 1 convolutions \(1 first\)"):
        replace_convs(model, *HETCONV)
    assert sum(isinstance(m, GroupPointwise) for m in model.modules()) == 18
