"""IGCV2: Xie, Wang, Zhang, Lai, Hong, Qi: "IGCV2: Interleaved Structured Sparse Convolutional Neural Networks", CVPR
2018 (arXiv 1804.06202). No code of the authors is known; the layout is that of IGCV1's plain networks.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

from timm.models import generate_default_cfgs, register_model
from torch import nn

from convrepro.models.zoo.classifier import build, cifar_cfg
from convrepro.models.zoo.igc import PlainCifar
from convrepro.ops import IGCV2Conv2d


def conv3x3(in_channels: int, out_channels: int, stride: int, **knobs: Any) -> nn.Module:
    """Returns an `IGCV2Conv2d` without bias, whose channel-wise convolution changes the width if it changes."""
    widens = out_channels != in_channels
    return IGCV2Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False, channel_multiplier=widens, **knobs)


default_cfgs = generate_default_cfgs(
    {"igcv2_plain_cifar": cifar_cfg("stem.conv"), "igcv2_c416_cifar": cifar_cfg("stem.conv")}
)


@register_model
def igcv2_plain_cifar(
    pretrained: bool = False, depth: int = 20, width: int = 64, layers: int = 3, **kwargs: Any
) -> PlainCifar:
    """The plain network with IGCV2's operator, which has `layers` balanced, complementary group convolutions."""
    make_conv = partial(conv3x3, layers=layers)
    return build(PlainCifar, "igcv2_plain_cifar", pretrained, width=width, depth=depth, make_conv=make_conv, **kwargs)


@register_model
def igcv2_c416_cifar(
    pretrained: bool = False, depth: int = 20, branch_channels: Sequence[int] = (8, 8), **kwargs: Any
) -> PlainCifar:
    """IGCV2*-C416, inferred only from its 0.65 M parameters; this network has 650,308 with 100 classes.

    The layers of the paper are not known. This network has 416, 832 and 1664 channels. Each block has a channel-wise
    3x3 convolution and a 1x1 group convolution for each of `branch_channels`. As 8 * 8 is below 416, most pairs of
    channels in a block have no path, so that this reading violates the paper's complementary condition. With three 1x1
    convolutions of 8 branch channels it has 790,084 parameters.
    """
    make_conv = partial(conv3x3, branch_channels=tuple(branch_channels), complementary=False)
    return build(PlainCifar, "igcv2_c416_cifar", pretrained, width=416, depth=depth, make_conv=make_conv, **kwargs)
