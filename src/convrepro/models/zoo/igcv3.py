"""IGCV3: Sun, Li, Liu, Wang: "IGCV3: Interleaved Low-Rank Group Convolutions for Efficient Deep Neural Networks",
BMVC 2018 (arXiv 1806.00178). The stages, the rounding of widths and the position of the activation are those of the
authors' code, github.com/homles11/IGCV3. The CIFAR strides are those of a port that obtained them from the authors,
github.com/cvtower/SeesawNet_pytorch.
"""

import math
from collections.abc import Sequence
from typing import Any

from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from convrepro.errors import ConvReproError
from convrepro.models.zoo.classifier import average_pool, build, cifar_cfg, imagenet_cfg
from convrepro.models.zoo.igc import IgcClassifier
from convrepro.ops.igc import ChannelShuffle

EXPANSIONS = (1, 6, 6, 6, 6, 6, 6)
STRIDES = (1, 2, 2, 2, 1, 2, 1)
STRIDES_CIFAR = (1, 1, 2, 2, 1, 1, 1)
"""For images of 32x32 and stride 1 in the first convolution; the last feature maps are 8x8."""

WIDTHS = (16, 24, 32, 64, 96, 160, 320)
WIDTHS_W = (32, 48, 64, 128, 192, 320, 640)
BLOCKS = (1, 2, 3, 4, 3, 3, 1)
"""The number of blocks in each stage of MobileNetV2 and of IGCV3-W, the wider network."""
BLOCKS_D = (1, 4, 6, 8, 6, 6, 1)
"""The number of blocks in each stage of IGCV3-D, the deeper network."""


class Igcv3Block(nn.Module):
    """A 1x1 group convolution to `hidden` channels, channel shuffle, a depthwise 3x3 and a 1x1 group convolution.

    It maps (B, in_channels, H, W) to (B, out_channels, H/stride, W/stride). Each convolution is followed by batch norm,
    the depthwise one also by ReLU6, and with `act_first` the first one as well. With `hidden=None` the first
    convolution is omitted. With groups (1, 1) and `act_first` it is the block of MobileNetV2 (arXiv 1801.04381,
    section 3.3).

    The shuffle is the first permutation of the paper: each group of the last convolution takes equally many channels
    from each group of the first. The authors' code does not apply the paper's second permutation, and neither does this
    class.
    """

    def __init__(
        self,
        in_channels: int,
        hidden: int | None,
        out_channels: int,
        stride: int,
        groups: tuple[int, int],
        shortcut: bool,
        act_first: bool,
    ) -> None:
        super().__init__()
        expansion: list[nn.Module] = []
        if hidden is None:
            hidden = in_channels
        else:
            expansion = [nn.Conv2d(in_channels, hidden, 1, groups=groups[0], bias=False), nn.BatchNorm2d(hidden)]
            expansion += [nn.ReLU6(inplace=True)] if act_first else []
            expansion += [ChannelShuffle(groups[0])] if groups[0] > 1 else []
        self.expand = nn.Sequential(*expansion)
        self.conv1 = nn.Conv2d(hidden, hidden, 3, stride, padding=1, groups=hidden, bias=False)
        self.bn1 = nn.BatchNorm2d(hidden)
        self.act = nn.ReLU6(inplace=True)
        self.conv2 = nn.Conv2d(hidden, out_channels, 1, groups=groups[1], bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.bn1(self.conv1(self.expand(x))))
        y = self.bn2(self.conv2(y))
        return x + y if self.shortcut else y


class Igcv3(IgcClassifier):
    """A 3x3 convolution to 32 channels, seven stages of blocks, and a 1x1 convolution to 1280 channels.

    Every block except the first of a stage has a shortcut.

    Args:
        width: factor of all widths; it applies to the last convolution only if it is above 1. Widths are rounded to
            integers, then up to even numbers that `groups` divide.
        groups: numbers of groups of the two 1x1 convolutions of a block.
        blocks: numbers of blocks in the seven stages.
        as_released: if True and `width` is not 1, the widths contain two errors of the authors' code: in the first
            block of a stage `width` multiplies the expansion twice, and the last convolution has one more channel.
        expand_first: whether the first block, whose expansion is 1, has the first 1x1 convolution.
        act_first: see `Igcv3Block`.

    Raises ConvReproError if `blocks` are not seven numbers or `groups` not two.
    """

    def __init__(
        self,
        widths: Sequence[int] = WIDTHS,
        blocks: Sequence[int] = BLOCKS_D,
        groups: Sequence[int] = (2, 2),
        width: float = 1.0,
        strides: Sequence[int] = STRIDES,
        stem_stride: int = 2,
        expand_first: bool = True,
        act_first: bool = False,
        as_released: bool = False,
        num_classes: int = 1000,
        in_chans: int = 3,
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        if len(blocks) != len(widths):
            raise ConvReproError(f"blocks={list(blocks)} must give a number for each of the {len(widths)} stages")
        if len(groups) != 2:
            raise ConvReproError(f"groups={list(groups)} must be two numbers, for the two 1x1 convolutions of a block")
        first_groups, last_groups = groups
        multiple = math.lcm(2, first_groups, last_groups)

        def scaled(channels: int) -> int:
            return math.ceil(round(channels * width) / multiple) * multiple

        channels = scaled(32)
        self.conv1 = nn.Conv2d(in_chans, channels, 3, stem_stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.act1 = nn.ReLU6(inplace=True)
        layers = []
        for stage, (expansion, base, number, stride) in enumerate(
            zip(EXPANSIONS, widths, blocks, strides, strict=True)
        ):
            for i in range(number):
                expanded = channels
                if as_released and stage and i == 0:
                    twice = round(channels * width)
                    expanded = twice if twice % 2 == 0 else channels + 1
                hidden = expansion * expanded if stage or expand_first else None
                step = stride if i == 0 else 1
                both = first_groups, last_groups
                layers.append(Igcv3Block(channels, hidden, scaled(base), step, both, i > 0, act_first))
                channels = scaled(base)
        self.layers = nn.Sequential(*layers)
        last = int(1280 * width) + as_released if width > 1 else 1280
        self.conv2 = nn.Conv2d(channels, last, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(last)
        self.act2 = nn.ReLU6(inplace=True)
        self.neck = average_pool()
        self.finish(last, num_classes, in_chans, drop_rate)

    def forward_features(self, x: Tensor) -> Tensor:
        """Maps images (B, in_chans, H, W) to feature maps (B, 1280, H/32, W/32), for CIFAR (B, 1280, H/4, W/4)."""
        x = self.layers(self.act1(self.bn1(self.conv1(x))))
        return self.act2(self.bn2(self.conv2(x)))


default_cfgs = generate_default_cfgs(
    {
        "igcv3_d": imagenet_cfg("conv1"),
        "igcv3_w": imagenet_cfg("conv1"),
        "igcv3_d_cifar": cifar_cfg("conv1"),
        "mobilenet_v2_cifar": cifar_cfg("conv1"),
    }
)


@register_model
def igcv3_d(pretrained: bool = False, **kwargs: Any) -> Igcv3:
    """IGCV3-D, deeper than MobileNetV2: 3,491,688 parameters, 312.97 M MACs."""
    return build(Igcv3, "igcv3_d", pretrained, **kwargs)


@register_model
def igcv3_w(pretrained: bool = False, **kwargs: Any) -> Igcv3:
    """IGCV3-W, wider than MobileNetV2: 5,724,968 parameters, 585.82 M MACs."""
    return build(Igcv3, "igcv3_w", pretrained, **{"widths": WIDTHS_W, "blocks": BLOCKS, **kwargs})


@register_model
def igcv3_d_cifar(pretrained: bool = False, **kwargs: Any) -> Igcv3:
    """IGCV3-D for CIFAR-10: 2,223,498 parameters, 166.06 M MACs."""
    return build(Igcv3, "igcv3_d_cifar", pretrained, strides=STRIDES_CIFAR, stem_stride=1, **kwargs)


@register_model
def mobilenet_v2_cifar(pretrained: bool = False, **kwargs: Any) -> Igcv3:
    """MobileNetV2 with the strides of `igcv3_d_cifar`: 2,236,682 parameters.

    `expand_first=True` builds the network of IGCV3's authors, with 2,237,770 parameters.
    """
    shape: dict[str, Any] = {"blocks": BLOCKS, "groups": (1, 1), "strides": STRIDES_CIFAR, "stem_stride": 1}
    return build(
        Igcv3, "mobilenet_v2_cifar", pretrained, **{"expand_first": False, "act_first": True, **shape, **kwargs}
    )
