"""The IGCV1, IGCV2 and IGCV3 networks against exact integers, timm's networks, and the definition of their blocks.

The integers are those of an arithmetic on layer lists that shares no code with the package.
"""

import math

import pytest
import timm
import torch
from torch import nn

from convrepro import complexity
from convrepro.errors import ConvReproError
from convrepro.models.zoo.igcv3 import Igcv3, Igcv3Block
from convrepro.ops import IGCV1Conv2d, IGCV2Conv2d
from convrepro.ops.igc import ChannelShuffle

L24M2 = {"primary_partitions": 24, "secondary_partitions": 2}
L4M8 = {"primary_partitions": 4, "secondary_partitions": 8}
L16M32 = {"primary_partitions": 16, "secondary_partitions": 32}
L450M2 = {"primary_partitions": 450, "secondary_partitions": 2}
L32M26 = {"primary_partitions": 32, "secondary_partitions": 26}
PLAIN, RESIDUAL = "igcv1_plain_cifar", "igcv1_residual_cifar"

#: (model, its arguments, convolution weights, all parameters, multiply-accumulates)
COUNTS = [
    ("regconv_plain_cifar", {"width": 16, "depth": 20}, 267_696, 269_722, 40_551_040),
    ("regconv_plain_cifar", {"width": 16, "depth": 38}, 558_000, 561_370, 83_018_368),
    ("regconv_plain_cifar", {"width": 16, "depth": 62}, 945_072, 950_234, 139_641_472),
    ("regconv_plain_cifar", {"width": 18, "depth": 20}, 338_742, 341_020, 51_260_112),
    ("regconv_plain_cifar", {"width": 18, "depth": 38}, 706_158, 709_948, 105_007_824),
    ("regconv_plain_cifar", {"width": 18, "depth": 62}, 1_196_046, 1_201_852, 176_671_440),
    (PLAIN, {**L4M8, "depth": 20}, 273_504, 277_546, 42_370_304),
    (PLAIN, {**L4M8, "depth": 38}, 569_184, 575_914, 86_213_888),
    (PLAIN, {**L4M8, "depth": 62}, 963_424, 973_738, 144_672_000),
    (PLAIN, {**L24M2, "depth": 20}, 149_904, 155_962, 28_755_840),
    (PLAIN, {**L24M2, "depth": 38}, 307_152, 317_242, 57_067_392),
    (PLAIN, {**L24M2, "depth": 62}, 516_816, 532_282, 94_816_128),
    ("regconv_residual_cifar", {"depth": 20}, 341_982, 344_476, 51_591_888),
    ("regconv_residual_cifar", {"depth": 50}, 954_342, 959_356, 141_171_408),
    ("regconv_residual_cifar", {"depth": 98}, 1_934_118, 1_943_164, 284_498_640),
    (RESIDUAL, {**L24M2, "depth": 20}, 150_864, 157_498, 28_854_144),
    (RESIDUAL, {**L24M2, "depth": 20, "quirk": True}, 157_776, 164_410, 29_738_880),
    (RESIDUAL, {**L24M2, "depth": 74}, 622_608, 641_338, 113_788_800),
    (RESIDUAL, {**L24M2, "depth": 98, "quirk": True}, 839_184, 863_290, 152_422_272),
    (RESIDUAL, L16M32, 17_626_624, 17_697_290, 2_685_947_904),
    (RESIDUAL, {**L16M32, "quirk": True}, 17_675_776, 17_746_442, 2_692_239_360),
    (RESIDUAL, {**L450M2, "num_classes": 100}, 18_931_500, 19_379_800, 4_663_656_000),
    (RESIDUAL, {**L450M2, "quirk": True}, 21_361_500, 21_485_710, 4_974_372_000),
    (RESIDUAL, L32M26, 23_940_800, 24_055_626, 3_720_577_536),
    (RESIDUAL, {**L32M26, "num_classes": 100, "quirk": True}, 24_100_544, 24_514_980, 3_741_324_288),
    ("regconv_imagenet", {}, 11_166_912, 11_689_512, 1_814_073_344),
    ("regconv_imagenet", {"width": 69}, 12_979_107, 13_542_457, 2_098_611_264),
    ("igcv1_imagenet", {}, 7_006_700, 8_637_900, 1_264_780_800),
    (
        "igcv1_imagenet",
        {"primary_partitions": 4, "secondary_partitions": 32, "grows": "secondary"},
        11_207_040,
        12_251_240,
        1_944_641_536,
    ),
    (
        "igcv1_imagenet",
        {"primary_partitions": 16, "secondary_partitions": 16, "grows": "secondary"},
        11_440_896,
        13_528_296,
        2_265_989_120,
    ),
    ("igcv2_c416_cifar", {"num_classes": 100}, 448_032, 650_308, 123_488_768),
    ("igcv2_c416_cifar", {"branch_channels": [8, 8, 8]}, 587_808, 640_234, 159_121_664),
    ("igcv3_d", {}, 2_146_144, 3_491_688, 312_970_176),
    ("igcv3_d", {"expand_first": False}, 2_145_632, 3_491_112, 306_547_648),
    ("igcv3_d", {"width": 0.7}, 1_175_082, 2_502_486, 174_574_184),
    ("igcv3_d", {"width": 0.7, "as_released": True}, 1_121_406, 2_447_130, 167_728_100),
    ("igcv3_d", {"width": 1.4}, 4_139_396, 6_023_004, 590_016_420),
    ("igcv3_d", {"width": 1.4, "as_released": True}, 4_425_846, 6_315_568, 621_459_740),
    ("igcv3_d", {"groups": [2, 4]}, 1_717_760, 3_063_304, 255_819_712),
    ("igcv3_w", {}, 4_378_368, 5_724_968, 585_817_856),
    ("igcv3_d_cifar", {}, 2_146_144, 2_223_498, 166_064_640),
    ("igcv3_d_cifar", {"num_classes": 100}, 2_146_144, 2_338_788, 166_179_840),
    ("igcv3_d_cifar", {"blocks": [1, 2, 3, 4, 3, 3, 1]}, 1_332_736, 1_379_722, 100_348_416),
    ("mobilenet_v2_cifar", {"expand_first": True, "num_classes": 100}, 2_190_784, 2_353_060, 166_327_296),
]


@pytest.mark.parametrize(
    ("name", "model_args", "conv_weights", "params", "macs"),
    [pytest.param(*case, marks=[pytest.mark.exhaustive] * (place % 3 > 0)) for place, case in enumerate(COUNTS)],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_counts(name, model_args, conv_weights, params, macs):
    model = timm.create_model(name, **model_args)
    counted = complexity.count(model, model.default_cfg["input_size"])
    assert [counted.total(rule) for rule in ("conv_weights", "params", "conv_fc")] == [conv_weights, params, macs]


def trained(model: nn.Module) -> nn.Module:
    """`model` in evaluation with running statistics other than 0 and 1."""
    model.train()
    with torch.no_grad():
        for _ in range(2):
            model(torch.randn(8, 3, 64, 64))
    return model.eval()


def test_resnet_with_64_channels_equals_timms_resnet18():
    torch.manual_seed(0)
    theirs = timm.create_model("resnet18")
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 2e-5
    trained(theirs)
    ours = timm.create_model("regconv_imagenet").eval()
    ours.load_state_dict(dict(zip(ours.state_dict(), theirs.state_dict().values(), strict=True)))
    x = torch.randn(2, 3, 96, 64)
    with torch.no_grad():
        expected = theirs(x)
        torch.testing.assert_close(ours(x), expected, rtol=1e-4, atol=1e-5)
    assert expected.std() > 0.01


def test_groups_of_one_and_two_activations_make_timms_mobilenet_v2():
    torch.manual_seed(0)
    theirs = trained(timm.create_model("mobilenetv2_100"))
    blocks = [1, 2, 3, 4, 3, 3, 1]
    ours = Igcv3(blocks=blocks, groups=(1, 1), expand_first=False, act_first=True).eval()
    ours.load_state_dict(dict(zip(ours.state_dict(), theirs.state_dict().values(), strict=True)))
    x = torch.randn(2, 3, 96, 64)
    with torch.no_grad():
        expected = theirs(x)
        torch.testing.assert_close(ours(x), expected, rtol=1e-4, atol=1e-5)
    assert expected.std() > 0.01


@pytest.mark.parametrize(("channels", "groups"), [(16, (2, 2)), (24, (2, 2)), (24, (2, 4)), (160, (2, 2))])
def test_igcv3_block_joins_every_pair_of_channels_by_equally_many_paths(channels, groups):
    """Convolutions of ones on one-hot channels count paths: t c / (G1 G2) for each pair (channel in, channel out)."""
    block = Igcv3Block(channels, 6 * channels, channels, 1, groups, shortcut=False, act_first=False)
    expand, shuffle = block.expand[0], block.expand[-1]
    with torch.no_grad():
        for conv in (expand, block.conv1, block.conv2):
            nn.init.ones_(conv.weight)
        one_hot = torch.eye(channels)[:, :, None, None]
        paths = block.conv2(block.conv1(shuffle(expand(one_hot))))
    assert paths.shape == (channels, channels, 1, 1)
    assert set(paths.flatten().tolist()) == {6 * channels / (groups[0] * groups[1])}


def test_igcv3_d_has_the_activations_shuffles_and_shortcuts_of_the_released_symbol():
    model = timm.create_model("igcv3_d")
    kinds = [type(module) for module in model.modules()]
    assert (kinds.count(nn.ReLU6), kinds.count(ChannelShuffle), kinds.count(Igcv3Block)) == (34, 32, 32)
    assert sum(block.shortcut for block in model.layers) == 25
    shapes = [(block.conv2.out_channels, block.conv1.stride[0]) for block in model.layers if not block.shortcut]
    assert shapes == [(16, 1), (24, 2), (32, 2), (64, 2), (96, 1), (160, 2), (320, 1)]


def test_igcv3_activates_the_depthwise_convolution_alone():
    torch.manual_seed(0)
    block = Igcv3Block(4, 24, 4, 1, (2, 2), shortcut=True, act_first=False).eval()
    x = torch.randn(2, 4, 5, 5)
    y = block.expand[1](block.expand[0](x))
    y = torch.stack([y[:, g * 12 + i] for i in range(12) for g in range(2)], dim=1)  # the groups' channels by turns
    y = block.bn2(block.conv2(block.bn1(block.conv1(y)).clamp(0, 6)))
    torch.testing.assert_close(block(x), x + y)


@pytest.mark.parametrize("model", ["igcv3_d_cifar", "mobilenet_v2_cifar"])
def test_cifar_networks_end_at_8x8(model):
    assert timm.create_model(model).forward_features(torch.zeros(1, 3, 32, 32)).shape == (1, 1280, 8, 8)


def test_partitions_of_l100m2_are_those_of_the_released_symbol():
    model = timm.create_model("igcv1_imagenet")
    assert model.conv1.out_channels == 100
    for stage, (width, primary) in enumerate(zip((200, 400, 800, 1600), (100, 200, 400, 800), strict=True)):
        first, second = model.layers[2 * stage : 2 * stage + 2]
        assert first.shortcut[0].groups == primary
        assert first.shortcut[0].stride == ((1, 1) if stage == 0 else (2, 2))
        assert isinstance(second.shortcut, nn.Identity)
        for conv in (first.conv1, first.conv2, second.conv1, second.conv2):
            assert conv.out_channels == width
            assert conv.weight_primary.shape == (width, conv.in_channels // primary, 3, 3)
            assert conv.weight_secondary.shape[:2] == (width, width // 2)


def test_secondary_partitions_grow_in_l16m16():
    model = timm.create_model("igcv1_imagenet", primary_partitions=16, secondary_partitions=16, grows="secondary")
    assert model.conv1.out_channels == 256
    assert isinstance(model.layers[0].shortcut, nn.Identity)
    convs = [module for module in model.modules() if isinstance(module, IGCV1Conv2d)]
    assert {conv.primary_partitions for conv in convs} == {16}
    assert {conv.weight_secondary.shape[1] for conv in convs} == {16}


def test_quirk_doubles_the_secondary_partitions_where_the_width_doubles():
    plain, quirky = (timm.create_model(RESIDUAL, **L24M2, quirk=quirk).state_dict() for quirk in (False, True))
    differing = {key for key in plain if plain[key].shape != quirky[key].shape}
    assert differing == {"layers.3.conv1.weight_secondary", "layers.6.conv1.weight_secondary"}
    for key in differing:
        assert (plain[key].shape[1], quirky[key].shape[1]) == (24, 48)


def test_residual_unit_adds_before_the_last_activation():
    torch.manual_seed(0)
    unit = timm.create_model(RESIDUAL, **L4M8).eval().layers[3]
    x = torch.randn(2, 32, 8, 8)
    y = unit.bn2(unit.conv2(unit.bn1(unit.conv1(x)).clamp(min=0)))
    torch.testing.assert_close(unit(x), (y + unit.shortcut(x)).clamp(min=0))
    assert unit(x).shape == (2, 64, 4, 4)


def test_sum_fusion_has_no_secondary_weights():
    model = timm.create_model(PLAIN, **L4M8, fusion="sum")
    convs = sum(p.numel() for p in model.parameters() if p.dim() == 4)
    secondary = 6 * 4 * (32 + 64 + 128)  # six blocks a stage, L weights for each channel
    assert convs == 273_504 - secondary


def test_igcv2_network_is_complementary_at_every_width():
    """Each output channel of an operator of ones sees each input channel once."""
    model = timm.create_model("igcv2_plain_cifar", width=16, depth=5, layers=3)
    convs = [module for module in model.modules() if isinstance(module, IGCV2Conv2d)]
    assert [conv.stride for conv in convs] == [(1, 1), (2, 2), (2, 2)]
    for conv in convs:
        with torch.no_grad():
            for weight in conv.parameters():
                nn.init.ones_(weight)
            image = torch.zeros(conv.in_channels, conv.in_channels, 3, 3)
            image[:, :, 1, 1] = torch.eye(conv.in_channels)
            paths = conv.eval()(image)[:, :, 0, 0]
        assert paths.shape == (conv.in_channels, conv.out_channels)
        assert set(paths.flatten().tolist()) == {1}


@pytest.mark.parametrize(
    ("name", "model_args"), [(PLAIN, L24M2), (RESIDUAL, L24M2), ("igcv2_c416_cifar", {}), ("igcv3_d_cifar", {})]
)
def test_each_convolution_is_drawn_with_its_own_fan_in(name, model_args):
    torch.manual_seed(0)
    weights = [p for p in timm.create_model(name, **model_args).parameters() if p.dim() == 4]
    assert len(weights) >= 20
    for weight in weights:
        spread = 5 / math.sqrt(2 * weight.numel())  # five standard errors of a standard deviation
        assert weight.std().item() == pytest.approx(math.sqrt(2 / weight[0].numel()), rel=spread)


@pytest.mark.parametrize(
    ("name", "model_args", "words"),
    [
        (PLAIN, {"depth": 21}, r"depth=21 must be 3 B \+ 2 for some B; valid: 5, 8, 11"),
        ("regconv_residual_cifar", {"depth": 23}, r"depth=23 must be 6 B \+ 2 for some B; valid: 8, 14, 20"),
        ("igcv1_imagenet", {"grows": "both"}, "grows='both' is unknown; valid: primary, secondary"),
        ("igcv3_d", {"blocks": [1, 2]}, r"blocks=\[1, 2\] must give a number for each of the 7 stages"),
        ("igcv3_d", {"groups": [2]}, r"groups=\[2\] must be two numbers"),
    ],
)
def test_bad_arguments_are_named(name, model_args, words):
    with pytest.raises(ConvReproError, match=words):
        timm.create_model(name, **model_args)
