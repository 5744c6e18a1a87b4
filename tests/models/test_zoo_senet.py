"""SENet's networks against arithmetic by hand, and against timm's own with shared weights."""

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.models.vgg import VGG
from torch import nn

from convrepro.complexity import count
from convrepro.errors import ConvReproError
from convrepro.models.zoo.se_vgg import SEVGG
from convrepro.ops import SqueezeExcite

BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}


def counted(name, **model_args):
    with torch.device("meta"):
        network = timm.create_model(name, **model_args)
    return count(network.to_empty(device="cpu"), (3, 224, 224))


def resnet_by_hand(blocks, *, se=0, cardinality=1, width=64, first_1x1=True):
    """(MACs, elements that are added, elements that are scaled, weights) of a bottleneck network, stage by stage."""
    macs, weights, elements = 112**2 * 49 * 3 * 64, 49 * 3 * 64, 0
    channels, side = 64, 56
    for stage, number in enumerate(blocks):
        inner, outer = cardinality * width * 2**stage, 256 * 2**stage
        for block in range(number):
            stride = 2 if stage and not block else 1
            small = side // stride
            kernels = [channels * inner, 9 * inner * inner // cardinality, inner * outer]
            sides = [small if first_1x1 else side, small, small]
            if not block:
                kernels.append(channels * outer)
                sides.append(small)
            gates = 2 * outer * outer // se if se else 0
            macs += sum(k * s * s for k, s in zip(kernels, sides, strict=True)) + gates
            weights += sum(kernels) + gates
            elements += outer * small**2
            channels, side = outer, small
    return macs + 1000 * channels, elements, elements if se else 0, weights + 1000 * channels


@pytest.mark.parametrize("depth", [50, *(pytest.param(d, marks=pytest.mark.exhaustive) for d in BLOCKS if d != 50)])
@pytest.mark.parametrize("se", [0, 16])
def test_resnet_is_counted_as_in_table_2(depth, se):
    network = counted(f"resnet{depth}_stride1x1", **({"se_reduction": se} if se else {}))
    macs, added, scaled, weights = resnet_by_hand(BLOCKS[depth], se=se)
    assert network.total("conv_fc") == macs
    assert network.total("senet") == macs + added + scaled
    assert network.total("weights") == weights


@pytest.mark.parametrize(
    ("name", "depth"),
    [
        ("resnext50_32x4d", 50),
        pytest.param("resnext101_32x4d", 101, marks=pytest.mark.exhaustive),
    ],
)
@pytest.mark.parametrize("se", [0, 16])
def test_resnext_is_counted_as_in_table_2(name, depth, se):
    network = counted(name, **({"block_args": {"attn_layer": "se"}} if se else {}))
    macs, added, scaled, weights = resnet_by_hand(BLOCKS[depth], se=se, cardinality=32, width=4, first_1x1=False)
    assert network.total("senet") == macs + added + scaled
    assert network.total("weights") == weights


def test_blocks_of_se_resnet50_add_the_parameters_of_equation_5():
    plain, gated = (counted("resnet50_stride1x1", **args) for args in ({}, {"se_reduction": 16}))
    added = sum(2 * n * (256 * 2**stage) ** 2 // 16 for stage, n in enumerate(BLOCKS[50]))
    assert gated.total("weights") - plain.total("weights") == added == 2_514_944


def test_only_the_first_convolution_of_a_later_stage_has_a_stride():
    model = timm.create_model("resnet50_stride1x1")
    strides = {n: m.stride for n, m in model.named_modules() if isinstance(m, nn.Conv2d) and m.stride != (1, 1)}
    blocks = [f"layer{stage}.0.{name}" for stage in (2, 3, 4) for name in ("conv1", "downsample.0")]
    assert strides == dict.fromkeys(["conv1", *blocks], (2, 2))


def trained_a_little(model):
    """`model` in evaluation mode, with running statistics of three batches."""
    model.train()
    with torch.no_grad():
        for _ in range(3):
            model(torch.randn(8, 3, 64, 64))
    return model.eval()


def test_se_resnet50_equals_timms_with_its_weights():
    """timm's legacy network but for its max pooling, which is not padded and rounds sizes up."""
    torch.manual_seed(0)
    theirs = timm.create_model("legacy_seresnet50", num_classes=10, drop_rate=0.0)
    theirs.pool0 = nn.MaxPool2d(3, 2, padding=1)
    trained_a_little(theirs)
    ours = timm.create_model("resnet50_stride1x1", num_classes=10, se_reduction=16).eval()
    values = theirs.state_dict().values()
    ours.load_state_dict({k: v.reshape(o.shape) for (k, o), v in zip(ours.state_dict().items(), values, strict=True)})
    x = torch.randn(2, 3, 96, 64)
    with torch.no_grad():
        expected, logits = theirs(x), ours(x)
        features = ours.forward_features(x)
        assert torch.equal(ours.get_classifier()(ours.forward_head(features, pre_logits=True)), logits)
    assert expected.std() > 0.01
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)


def small_vgg(network, **kwargs):
    return network(["M", "M", 16, 32, "M", 48], num_classes=5, norm_layer=nn.BatchNorm2d, **kwargs)


def test_se_vgg_scales_behind_each_activation():
    torch.manual_seed(0)
    model = trained_a_little(small_vgg(SEVGG, se_reduction=4))
    gates = [m for m in model.features.modules() if isinstance(m, SqueezeExcite)]
    convs = [m for m in model.features if isinstance(m, nn.Conv2d)]
    norms = [m for m in model.features if isinstance(m, nn.BatchNorm2d)]
    assert [gate.channels for gate in gates] == [16, 32, 48]
    x = torch.randn(2, 3, 32, 32)
    expected = F.max_pool2d(x, 4)
    for layer, (conv, norm, gate) in enumerate(zip(convs, norms, gates, strict=True)):
        expected = gate(norm(conv(expected)).relu())
        if layer == 1:
            expected = F.max_pool2d(expected, 2)
    torch.testing.assert_close(model.forward_features(x), expected)
    assert not torch.equal(gate(expected), expected)


def test_vgg_with_open_gates_is_timms():
    torch.manual_seed(0)
    theirs, ours = trained_a_little(small_vgg(VGG)), small_vgg(SEVGG, se_reduction=4).eval()
    assert not ours.load_state_dict(theirs.state_dict(), strict=False).unexpected_keys
    for gate in (m for m in ours.modules() if isinstance(m, SqueezeExcite)):
        nn.init.zeros_(gate.excite.weight)
        nn.init.constant_(gate.excite.bias, 100)
    x = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(ours(x), theirs(x))


def test_se_vgg_is_counted_as_in_table_2():
    """13 blocks: 0.226 M weights more, and as many MACs; each element of the 13 maps is scaled."""
    network = counted("se_vgg16_bn")
    widths = [64, 64, 128, 128, 256, 256, 256] + [512] * 6
    sides = [224, 224, 112, 112, 56, 56, 56, 28, 28, 28, 14, 14, 14]
    gates = sum(2 * c * c // 16 for c in widths)
    assert gates == 226_304
    assert network.total("conv_fc") == 15_470_264_320 + gates
    assert network.total("weights") == 138_344_128 + gates
    scaled = sum(c * s * s for c, s in zip(widths, sides, strict=True))
    assert network.total("senet") == 15_470_264_320 + gates + scaled


@pytest.mark.parametrize("name", ["resnet50_stride1x1", "se_vgg16_bn"])
def test_what_cannot_be_built_is_named(name):
    with torch.device("meta"):
        with pytest.raises(ValueError, match="reduction=7 must divide channels="):
            timm.create_model(name, se_reduction=7)
        with pytest.raises(ConvReproError, match=f"no weights for {name}"):
            timm.create_model(name, pretrained=True)
