"""MobileNet in all its forms against published counts and timm's network; the network of one convolution."""

import pytest
import timm
import torch
from torch import nn

from convrepro import complexity
from convrepro.errors import ConvReproError
from convrepro.models.build import build
from convrepro.ops import SqueezeExcite


def count(image_size: int = 224, **model_args: object) -> complexity.Count:
    return complexity.count(timm.create_model("mobilenet_v1", **model_args), (3, image_size, image_size))


@pytest.mark.parametrize(
    ("model_args", "image_size", "macs", "conv_macs", "weights", "params"),
    [
        ({}, 224, 568_740_352, 567_716_352, 4_209_088, 4_231_976),
        ({}, 192, 418_121_728, 417_097_728, 4_209_088, 4_231_976),
        ({}, 160, 290_675_200, 289_651_200, 4_209_088, 4_231_976),
        ({}, 128, 186_400_768, 185_376_768, 4_209_088, 4_231_976),
        ({"width": 0.75}, 224, 325_400_448, 324_632_448, 2_568_144, 2_585_560),
        ({"width": 0.75}, 128, 106_770_432, 106_002_432, 2_568_144, 2_585_560),
        ({"width": 0.5}, 224, 149_497_088, 148_985_088, 1_319_648, 1_331_592),
        ({"width": 0.5}, 160, 76_524_800, 76_012_800, 1_319_648, 1_331_592),
        ({"width": 0.25}, 224, 41_030_272, 40_774_272, 463_600, 470_072),
        ({"blocks": "dense"}, 224, 4_867_293_184, 4_866_269_184, 29_281_120, 29_294_088),
        ({"shallow": True}, 224, 307_323_392, 306_299_392, 2_875_328, 2_887_976),
    ],
)
def test_counts_at_each_width_resolution_and_kind(model_args, image_size, macs, conv_macs, weights, params):
    counted = count(image_size, **model_args)
    totals = [counted.total(rule) for rule in ("conv_fc", "conv_only", "weights", "params")]
    assert totals == [macs, conv_macs, weights, params]


def test_squeeze_excite_after_each_block_costs_what_senet_prints():
    """SENet's table 3: 572 M, which counts the products with the gates too, and 4.7 M parameters."""
    model = timm.create_model("mobilenet_v1", se_reduction=16)
    counted = complexity.count(model, (3, 224, 224))
    gated = []
    gates = [module for module in model.modules() if isinstance(module, SqueezeExcite)]
    for gate in gates:
        gate.register_forward_hook(lambda module, args, output: gated.append(output.numel()))
    with torch.no_grad():
        model.eval()(torch.zeros(1, 3, 224, 224))
    assert [block.se for block in model.layers] == gates
    assert len(gates) == 13
    assert counted.total("conv_fc") == 569_220_096
    assert counted.total("conv_fc") + sum(gated) == 571_929_600
    biases = sum(layer.bias.numel() for gate in gates for layer in (gate.squeeze, gate.excite))
    assert counted.total("params") - biases == 4_711_720


def test_equals_timms_with_its_weights():
    """timm's network, with ReLU in the place of its ReLU6, in evaluation with running statistics of some training."""
    torch.manual_seed(0)
    theirs = timm.create_model("mobilenetv1_100").train()
    for module in list(theirs.modules()):
        if isinstance(getattr(module, "act", None), nn.ReLU6):
            module.act = nn.ReLU()
    assert not any(isinstance(module, nn.ReLU6) for module in theirs.modules())
    with torch.no_grad():
        for _ in range(2):
            theirs(torch.randn(8, 3, 64, 64))
    ours = timm.create_model("mobilenet_v1")
    state = dict(zip(ours.state_dict(), theirs.state_dict().values(), strict=True))
    ours.load_state_dict(state)
    x = torch.randn(2, 3, 96, 128)
    with torch.no_grad():
        expected = theirs.eval()(x)
        torch.testing.assert_close(ours.eval()(x), expected, rtol=1e-4, atol=1e-5)
    assert expected.std() > 0.01


def test_dense_blocks_take_the_place_of_separable_ones():
    dense = timm.create_model("mobilenet_v1", blocks="dense", width=0.25)
    separable = timm.create_model("mobilenet_v1", width=0.25)
    for conv, pair in zip(dense.layers, separable.layers, strict=True):
        assert (conv.conv1.in_channels, conv.conv1.out_channels) == (pair.conv1.in_channels, pair.conv2.out_channels)
        assert (conv.conv1.kernel_size, conv.conv1.groups, conv.conv1.stride) == ((3, 3), 1, pair.conv1.stride)


def test_shallow_lacks_the_five_blocks_of_512_channels_and_no_halving():
    deep, shallow = timm.create_model("mobilenet_v1"), timm.create_model("mobilenet_v1", shallow=True)
    shapes = [[tuple(block.conv2.weight.shape[:2]) for block in model.layers] for model in (deep, shallow)]
    assert shapes[1] == [shape for shape in shapes[0] if shape != (512, 512)]
    assert len(shapes[0]) - len(shapes[1]) == 5
    assert shallow.forward_features(torch.zeros(1, 3, 224, 224)).shape == (1, 1024, 7, 7)


def test_cifar_form_differs_in_the_first_stride_alone():
    small, large = timm.create_model("mobilenet_v1_cifar"), timm.create_model("mobilenet_v1", num_classes=10)
    modules = [dict(model.named_modules()) for model in (small, large)]
    differing = [name for name, module in modules[0].items() if name and repr(module) != repr(modules[1][name])]
    assert list(modules[0]) == list(modules[1])
    assert differing == ["conv1"]
    assert (small.conv1.stride, large.conv1.stride) == ((1, 1), (2, 2))


def test_weights_are_drawn_as_in_the_authors_code():
    model = timm.create_model("mobilenet_v1")
    large = torch.cat([model.layers[12].conv2.weight.flatten(), model.linear.weight.flatten()])
    assert large.abs().max() <= 0.18
    # the standard deviation of a normal variable cut at two of its own: sqrt(1 - 4 phi(2) / (2 Phi(2) - 1)) = 0.8796
    assert large.std().item() == pytest.approx(0.8796 * 0.09, rel=0.002)
    assert not model.linear.bias.any()


@pytest.mark.parametrize(
    ("model_args", "words"),
    [
        ({"width": 0}, "width=0 must be above 0"),
        ({"blocks": "full"}, "blocks='full' is unknown; valid: separable, dense"),
    ],
)
def test_bad_arguments_are_named(model_args, words):
    with pytest.raises(ConvReproError, match=words):
        timm.create_model("mobilenet_v1", **model_args)


@pytest.mark.parametrize(("groups", "weights"), [(1, 900), (2, 450), (6, 150)])
def test_one_convolution_has_the_weights_of_the_lecture(groups, weights):
    model = timm.create_model("one_conv", in_channels=6, out_channels=6, kernel_size=5, groups=groups)
    conv = complexity.count(model, (3, 8, 8)).part("conv")
    assert (conv.total("conv_weights"), conv.total("conv_only")) == (weights, weights * 64)


@pytest.mark.parametrize(
    ("model_args", "side"),
    [({"kernel_size": 1}, 12), ({"kernel_size": 7}, 12), ({"stride": 2}, 6), ({"kernel_size": 5, "padding": 0}, 8)],
)
def test_one_convolution_gives_the_positions_of_its_arguments(model_args, side):
    model = timm.create_model("one_conv", out_channels=4, **model_args)
    assert model.forward_features(torch.zeros(1, 3, 12, 12)).shape == (1, 4, side, side)


def test_an_operator_takes_the_place_of_the_one_convolution():
    model, report = build("one_conv", conv={"name": "hetconv", "where": "dense_kxk", "p": 4}, num_classes=10)
    assert [swap.name for swap in report.replaced] == ["conv"]
    assert complexity.count(model, (3, 32, 32)).part("conv").total("macs") == 16 * 16 * 32 * 32 * (9 + 3) // 4
