"""The zoo's networks against published and derived counts, and against a second implementation with shared weights."""

import math

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.data import resolve_data_config
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from convrepro.errors import ConvReproError
from convrepro.models.zoo import MODELS
from convrepro.models.zoo.resnet_cifar import PadShortcut

PARAMETERS = {
    "vgg16_cifar": 14_991_946,
    "resnet8_cifar": 75_290,
    "resnet20_cifar": 269_722,
    "resnet32_cifar": 464_154,
    "resnet44_cifar": 658_586,
    "resnet56_cifar": 853_018,
    "resnet110_cifar": 1_727_962,
    "resnet1202_cifar": 19_421_274,
    # 3*32*9 + 13 pairs (9*M + M*N) + batch norms 2*(32 + sum(M + N)) + 1024*10 + 10
    "mobilenet_v1_cifar": 3_217_226,
    "mobilenet_v1": 4_231_976,
    # stem 16*3 + 16, convolution 16*16*9, classifier 10*16 + 10
    "one_conv": 2_538,
    "deepshift_mnist_fc": 669_706,
    "deepshift_mnist_conv": 431_080,
    # by the exact arithmetic of tests/test_zoo_deepshift.py
    "resnet18_cifar": 11_000_138,
    "deepshift_mobilenet_v2_cifar": 2_296_922,
    # by the exact arithmetic of tests/test_zoo_senet.py and tests/test_zoo_shufflenet.py, batch norms and biases added
    "resnet50_stride1x1": 25_557_032,
    "resnet101_stride1x1": 44_549_160,
    "resnet152_stride1x1": 60_192_808,
    "se_vgg16_bn": 138_596_784,
    "shufflenet_v1": 1_865_728,
    # as torchvision documents them, GoogLeNet's without auxiliary classifiers
    "alexnet": 61_100_840,
    "googlenet": 6_624_904,
    "squeezenet1_0": 1_248_424,
    "squeezenet1_1": 1_235_496,
    # by the exact arithmetic of tests/test_zoo_igc.py
    "igcv1_plain_cifar": 155_962,
    "igcv1_residual_cifar": 157_498,
    "igcv1_imagenet": 8_637_900,
    "regconv_plain_cifar": 341_020,
    "regconv_residual_cifar": 344_476,
    "regconv_imagenet": 11_689_512,
    "igcv2_plain_cifar": 104_650,
    "igcv2_c416_cifar": 500_458,
    "igcv3_d": 3_491_688,
    "igcv3_w": 5_724_968,
    "igcv3_d_cifar": 2_223_498,
    "mobilenet_v2_cifar": 2_236_682,
}

LARGE = {"resnet1202_cifar", "resnet101_stride1x1", "resnet152_stride1x1", "se_vgg16_bn"}
SMALL = [name for name in MODELS if name not in LARGE]


def count_parameters(model: nn.Module, *, norms: bool = True) -> int:
    modules = [m for m in model.modules() if norms or not isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
    return sum(p.numel() for m in modules for p in m.parameters(recurse=False))


def count_macs(model: nn.Module) -> int:
    """Multiply-accumulates of convolutions and linear layers for one image, as PyTorch itself counts them."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(torch.zeros(1, *model.default_cfg["input_size"]))
    return counter.get_total_flops() // 2


def image(model: nn.Module, batch: int = 2) -> Tensor:
    torch.manual_seed(0)
    first = next((m.in_channels for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    in_chans = getattr(model, "in_chans", first)  # timm 1.0.15 has no such attribute
    return torch.randn(batch, in_chans, *model.default_cfg["input_size"][1:])


@pytest.fixture(scope="module")
def models() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    return {name: timm.create_model(name).eval() for name in SMALL}


def test_every_model_has_its_parameter_count():
    assert set(MODELS) == set(PARAMETERS)
    with torch.device("meta"):
        assert {name: count_parameters(timm.create_model(name)) for name in MODELS} == PARAMETERS


def test_vgg_parameters_without_norm(models):
    assert count_parameters(models["vgg16_cifar"], norms=False) == 14_982_474


@pytest.mark.parametrize(
    ("name", "macs", "se"),
    [
        ("vgg16_cifar", 313_463_808, 452_608),
        ("resnet56_cifar", 125_485_696, 12_096),
        ("mobilenet_v1_cifar", 46_354_432, 959_488),
    ],
)
def test_macs_plain_and_with_squeeze_excite(models, name, macs, se):
    assert count_macs(models[name]) == macs
    assert count_macs(timm.create_model(name, se_reduction=8)) == macs + se


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.exhaustive] * (place % 3 > 0)) for place, n in enumerate(SMALL)]
)
def test_timm_protocol(models, name):
    model = models[name]
    x = image(model)
    with torch.no_grad():
        logits = model(x)
        features = model.forward_features(x)
        assert logits.shape == (2, model.default_cfg["num_classes"])
        assert torch.equal(model.forward_head(features), logits)
        assert torch.equal(model.get_classifier()(model.forward_head(features, pre_logits=True)), logits)

    config = model.default_cfg
    assert config["architecture"] == name
    assert resolve_data_config(config)["input_size"] == config["input_size"]
    assert model.get_submodule(config["classifier"]) is model.get_classifier()
    if config.get("first_conv"):
        convs = [n for n, m in model.named_modules() if isinstance(m, nn.Conv2d)]
        assert config["first_conv"] == convs[0]
    assert timm.is_model(name)
    assert name in timm.list_models()


@pytest.mark.parametrize(
    "name",
    [
        "vgg16_cifar",
        "resnet20_cifar",
        "mobilenet_v1_cifar",
        "mobilenet_v1",
        "shufflenet_v1",
        "one_conv",
        "igcv1_plain_cifar",
        "igcv1_residual_cifar",
        "igcv2_plain_cifar",
        "igcv3_d_cifar",
        "deepshift_mnist_fc",
        "deepshift_mnist_conv",
    ],
)
def test_other_classes_channels_and_classifier(name):
    model = timm.create_model(name, num_classes=7, in_chans=2, drop_rate=0.5)
    x = image(model)
    logits = model(x)
    assert logits.shape == (2, 7)
    logits.logsumexp(1).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())

    model.eval()
    model.reset_classifier(0)
    assert model(x).shape == (2, model.num_features)
    model.double().reset_classifier(4)
    assert model(x.double()).shape == (2, 4)
    assert model.get_classifier().weight.dtype == torch.float64
    with pytest.raises(ConvReproError, match="global_pool='max'"):
        model.reset_classifier(4, "max")
    with pytest.raises(ConvReproError, match=f"no weights for {name}"):
        timm.create_model(name, pretrained=True)


@pytest.mark.parametrize("name", ["vgg16_cifar", "resnet20_cifar", "deepshift_mnist_fc"])
def test_drop_rate_reaches_every_dropout(name):
    dropouts = [m.p for m in timm.create_model(name, drop_rate=0.25).modules() if isinstance(m, nn.Dropout)]
    assert dropouts
    assert set(dropouts) == {0.25}


def test_mnist_fc_drops_a_fifth_of_both_hidden_layers():
    model = timm.create_model("deepshift_mnist_fc").train()
    assert [m.p for m in model.modules() if isinstance(m, nn.Dropout)] == [0.2, 0.2]
    torch.manual_seed(0)
    dropped = model.head_drop(torch.ones(100, 512))
    assert (dropped == 0).float().mean().item() == pytest.approx(0.2, abs=0.01)


def test_shortcut_keeps_every_second_position_and_pads_with_zeros():
    x = torch.randn(2, 3, 5, 4)
    y = PadShortcut(3, 8, stride=2)(x)
    oracle = torch.zeros(2, 8, 3, 2)
    for channel in range(3):
        for i in range(3):
            for j in range(2):
                oracle[:, 2 + channel, i, j] = x[:, channel, 2 * i, 2 * j]
    assert torch.equal(y, oracle)


def resnet20(x: Tensor, weights: dict[str, Tensor]) -> Tensor:
    """ResNet-20 in evaluation, written from He et al., section 4.2, on named weights."""

    def conv_norm(x: Tensor, conv: str, norm: str, stride: int = 1) -> Tensor:
        y = F.conv2d(x, weights[f"{conv}.weight"], stride=stride, padding=1)
        mean, var, scale, shift = (
            weights[f"{norm}.{w}"][:, None, None] for w in ("running_mean", "running_var", "weight", "bias")
        )
        return (y - mean) / (var + 1e-5).sqrt() * scale + shift

    x = conv_norm(x, "conv1", "bn1").clamp(min=0)
    for stage, width in ((1, 16), (2, 32), (3, 64)):
        for block in range(3):
            name = f"layer{stage}.{block}"
            stride = 2 if stage > 1 and block == 0 else 1
            y = conv_norm(x, f"{name}.conv1", f"{name}.bn1", stride).clamp(min=0)
            y = conv_norm(y, f"{name}.conv2", f"{name}.bn2")
            zeros = torch.zeros(len(x), (width - x.shape[1]) // 2, *y.shape[2:])
            x = (y + torch.cat([zeros, x[..., ::stride, ::stride], zeros], dim=1)).clamp(min=0)
    return x.mean((2, 3)) @ weights["linear.weight"].T + weights["linear.bias"]


def test_resnet20_equals_a_second_implementation():
    torch.manual_seed(0)
    model = timm.create_model("resnet20_cifar").train()
    for _ in range(3):
        model(torch.randn(16, 3, 32, 32))  # running statistics other than 0 and 1
    model.eval()
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(model(x), resnet20(x, model.state_dict()), rtol=1e-4, atol=1e-6)


def test_squeeze_excite_scales_before_the_addition_in_a_resnet():
    model = timm.create_model("resnet20_cifar", se_reduction=8).eval()
    block = model.layer2[0]
    x = torch.randn(2, 16, 8, 8)
    inner = block.bn2(block.conv2(block.bn1(block.conv1(x)).relu()))
    torch.testing.assert_close(block(x), (block.se(inner) + block.shortcut(x)).relu())
    assert len([n for n, _ in model.named_modules() if n.endswith(".se")]) == 9


@pytest.mark.parametrize("name", ["vgg16_cifar", "mobilenet_v1_cifar"])
def test_cifar_initialisation(models, name):
    checked = 0
    for layer in models[name].modules():
        if isinstance(layer, nn.Conv2d):
            fan_out = layer.out_channels // layer.groups * math.prod(layer.kernel_size)
            spread = 5 / math.sqrt(2 * layer.weight.numel())  # five standard errors of a standard deviation
            assert layer.weight.std().item() == pytest.approx(math.sqrt(2 / fan_out), rel=spread)
        elif isinstance(layer, nn.Linear):
            assert layer.weight.std().item() == pytest.approx(0.01, rel=5 / math.sqrt(2 * layer.weight.numel()))
        else:
            continue
        assert layer.bias is None or not layer.bias.any()
        checked += 1
    assert checked >= 15


def test_bad_se_reduction_is_named():
    with pytest.raises(ValueError, match=r"reduction=7 must divide channels=64"):
        timm.create_model("vgg16_cifar", se_reduction=7)
