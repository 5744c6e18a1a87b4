"""DeepShift's networks for CIFAR-10: their parameters by hand, and what makes them differ from their relatives."""

import pytest
import timm
import torch
from torch import Tensor, nn

from convrepro.errors import ConvReproError
from convrepro.models.zoo.mobilenet_v2_cifar import ROWS

pytestmark = pytest.mark.unit


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.fixture(scope="module")
def mobilenet() -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model("deepshift_mobilenet_v2_cifar").eval()


def test_resnet18_has_the_published_code_s_parameters_and_those_of_option_b():
    def conv(channels: int, width: int, taps: int = 9) -> int:
        """A convolution and its norm."""
        return channels * width * taps + 2 * width

    expected, channels = conv(3, 64), 64
    shortcuts = 0
    for width in (64, 128, 256, 512):
        expected += conv(channels, width) + 3 * conv(width, width)
        shortcuts += conv(channels, width, taps=1) if width != channels else 0
        channels = width
    expected += 512 * 10 + 10
    with torch.device("meta"):
        assert parameters(timm.create_model("resnet18_cifar")) == expected == 11_000_138
        assert parameters(timm.create_model("resnet18_cifar", shortcut="conv")) == expected + shortcuts == 11_173_962


def test_resnet18_halves_the_map_three_times_and_ends_in_512_channels():
    model = timm.create_model("resnet18_cifar").eval()
    with torch.no_grad():
        assert model.forward_features(torch.zeros(1, 3, 32, 32)).shape == (1, 512, 4, 4)


@pytest.mark.parametrize("shortcut", ["pad", "conv"])
def test_the_shortcut_of_a_block_that_changes_the_channels(shortcut):
    block = timm.create_model("resnet20_cifar", shortcut=shortcut).eval().layer2[0]
    nn.init.zeros_(block.bn2.weight)
    x = torch.rand(2, 16, 8, 8)
    with torch.no_grad():
        y = block(x)
    if shortcut == "pad":
        expected = torch.zeros(2, 32, 4, 4)
        expected[:, 8:24] = x[:, :, ::2, ::2]
    else:
        weight = block.shortcut[0].weight[:, :, 0, 0]
        expected = (torch.einsum("nc,bchw->bnhw", weight, x[:, :, ::2, ::2]) / (1 + 1e-5) ** 0.5).relu()
    torch.testing.assert_close(y, expected)


def test_an_unknown_shortcut_is_named():
    with pytest.raises(ConvReproError, match="shortcut='b' is unknown; valid: pad, conv"):
        timm.create_model("resnet18_cifar", shortcut="b")


def test_mobilenet_v2_parameters_by_hand(mobilenet):
    expected, channels = 3 * 32 * 9 + 2 * 32, 32
    for expansion, width, number, stride in ROWS:
        for index in range(number):
            hidden = expansion * channels
            expected += channels * hidden + 9 * hidden + hidden * width + 4 * hidden + 2 * width
            if (stride == 1 or index) and channels != width:
                expected += channels * width + 2 * width
            channels = width
    expected += 320 * 1280 + 2 * 1280 + 1280 * 10 + 10
    assert parameters(mobilenet) == expected == 2_296_922


def test_mobilenet_v2_strides_and_shortcuts(mobilenet):
    """17 blocks, three of stride 2 without a shortcut, four that change the channels at stride 1."""
    strides = [block.conv2.stride[0] for block in mobilenet.layers]
    assert [i for i, stride in enumerate(strides) if stride == 2] == [3, 6, 13]
    kinds = [type(block.shortcut) for block in mobilenet.layers]
    assert [i for i, kind in enumerate(kinds) if kind is nn.Sequential] == [0, 1, 10, 16]
    assert [i for i, kind in enumerate(kinds) if kind is type(None)] == [3, 6, 13]
    with torch.no_grad():
        assert mobilenet.forward_features(torch.zeros(1, 3, 32, 32)).shape == (1, 1280, 4, 4)


def normalised(norm: nn.BatchNorm2d, x: Tensor) -> Tensor:
    mean, var, scale, shift = (v[:, None, None] for v in (norm.running_mean, norm.running_var, norm.weight, norm.bias))
    return (x - mean) / (var + norm.eps).sqrt() * scale + shift


@pytest.mark.parametrize("index", [0, 2, 3])
def test_an_inverted_residual_is_its_definition(mobilenet, index):
    """The one with a 1x1 shortcut, one with the identity, one without."""
    block = mobilenet.layers[index]
    for norm in (m for m in block.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
        nn.init.normal_(norm.bias)
    x = torch.randn(2, block.conv1.in_channels, 6, 6)
    stride = block.conv2.stride[0]
    with torch.no_grad():
        y = torch.einsum("nc,bchw->bnhw", block.conv1.weight[:, :, 0, 0], x)
        padded = nn.functional.pad(normalised(block.bn1, y).relu(), (1, 1, 1, 1))
        windows = padded.unfold(2, 3, stride).unfold(3, 3, stride)
        y = torch.einsum("bchwij,cij->bchw", windows, block.conv2.weight[:, 0])
        y = torch.einsum("nc,bchw->bnhw", block.conv3.weight[:, :, 0, 0], normalised(block.bn2, y).relu())
        y = normalised(block.bn3, y)
        if index == 0:
            conv, norm = block.shortcut
            y = y + normalised(norm, torch.einsum("nc,bchw->bnhw", conv.weight[:, :, 0, 0], x))
        elif index == 2:
            y = y + x
        torch.testing.assert_close(block(x), y, rtol=1e-4, atol=1e-5)
