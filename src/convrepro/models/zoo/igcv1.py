"""IGCV1: Zhang, Qi, Xiao, Wang: "Interleaved Group Convolutions for Deep Neural Networks", ICCV 2017
(arXiv 1707.02725). The networks are those of the authors' code, github.com/hellozting/InterleavedGroupConvolutions:
`plain_igc.py`, `resnet_igc.py` and, for ImageNet, the symbol files released with the checkpoints.

The paper calls the same network with regular convolutions `RegConv` and its width W.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from convrepro.errors import ConvReproError
from convrepro.models.zoo.classifier import average_pool, build, cifar_cfg, imagenet_cfg
from convrepro.models.zoo.igc import IgcClassifier, PlainCifar, check_depth
from convrepro.ops import IGCV1Conv2d
from convrepro.ops.igcv1 import Secondary

GROWS = ("primary", "secondary")


def conv3x3(
    in_channels: int,
    out_channels: int,
    stride: int,
    primary_partitions: int | None,
    secondary_partitions: int | None = None,
    fusion: Secondary = "learned",
) -> nn.Module:
    """Returns an interleaved group convolution without bias, or a regular one for `primary_partitions=None`."""
    if primary_partitions is None:
        return nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
    return IGCV1Conv2d(
        in_channels,
        out_channels,
        3,
        stride,
        padding=1,
        bias=False,
        primary_partitions=primary_partitions,
        secondary_partitions=secondary_partitions,
        secondary=fusion,
    )


def norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=2e-5)


class ResidualUnit(nn.Module):
    """Convolution, norm, ReLU, convolution, norm, the addition of the shortcut, and ReLU.

    If the width changes, the shortcut is a 1x1 convolution, with as many groups as there are primary partitions,
    followed by a norm. With `quirk` the first convolution has in_channels / primary_partitions secondary partitions, as
    in the authors' CIFAR code. Where the width doubles, these are half as many as in the paper's definition, and each
    has twice the size.
    """

    shortcut: nn.Module

    def __init__(
        self, in_channels: int, out_channels: int, stride: int, primary_partitions: int | None, quirk: bool
    ) -> None:
        super().__init__()
        first = in_channels // primary_partitions if quirk and primary_partitions else None
        self.conv1 = conv3x3(in_channels, out_channels, stride, primary_partitions, first)
        self.bn1 = norm(out_channels)
        self.act1 = nn.ReLU(inplace=True)
        self.conv2 = conv3x3(out_channels, out_channels, 1, primary_partitions)
        self.bn2 = norm(out_channels)
        self.shortcut = nn.Identity()
        if in_channels != out_channels:
            groups = primary_partitions or 1
            projection = nn.Conv2d(in_channels, out_channels, 1, stride, groups=groups, bias=False)
            self.shortcut = nn.Sequential(projection, norm(out_channels))
        self.act2 = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.act1(self.bn1(self.conv1(x)))
        return self.act2(self.bn2(self.conv2(y)) + self.shortcut(x))


class ResidualNet(IgcClassifier):
    """A first convolution to `stem` channels, and a stage of `units` residual units for each of `widths`.

    `primary_partitions` holds the number of primary partitions in each stage. The first convolution is 3x3. With
    `large` it is 7x7 with stride 2, followed by a 3x3 max pool with stride 2. Every stage except the first halves the
    resolution.
    """

    def __init__(
        self,
        stem: int,
        widths: Sequence[int],
        primary_partitions: Sequence[int | None],
        units: int,
        large: bool = False,
        quirk: bool = False,
        num_classes: int = 10,
        in_chans: int = 3,
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        size, stride = (7, 2) if large else (3, 1)
        self.conv1 = nn.Conv2d(in_chans, stem, size, stride, padding=size // 2, bias=False)
        self.bn1 = norm(stem)
        self.act1 = nn.ReLU(inplace=True)
        self.pool = nn.MaxPool2d(3, 2, padding=1) if large else nn.Identity()
        layers = []
        channels = stem
        for stage, (width, partitions) in enumerate(zip(widths, primary_partitions, strict=True)):
            for i in range(units):
                layers.append(ResidualUnit(channels, width, 2 if stage and i == 0 else 1, partitions, quirk))
                channels = width
        self.layers = nn.Sequential(*layers)
        self.neck = average_pool()
        self.finish(channels, num_classes, in_chans, drop_rate)

    def forward_features(self, x: Tensor) -> Tensor:
        """Maps images (B, in_chans, H, W) to feature maps (B, C, H/4, W/4), or with `large` (B, C, H/32, W/32).

        C is the last width.
        """
        return self.layers(self.pool(self.act1(self.bn1(self.conv1(x)))))


default_cfgs = generate_default_cfgs(
    {
        "igcv1_plain_cifar": cifar_cfg("stem.conv"),
        "regconv_plain_cifar": cifar_cfg("stem.conv"),
        "igcv1_residual_cifar": cifar_cfg("conv1"),
        "regconv_residual_cifar": cifar_cfg("conv1"),
        "igcv1_imagenet": imagenet_cfg("conv1"),
        "regconv_imagenet": imagenet_cfg("conv1"),
    }
)


@register_model
def igcv1_plain_cifar(
    pretrained: bool = False,
    depth: int = 20,
    primary_partitions: int = 24,
    secondary_partitions: int = 2,
    fusion: Secondary = "learned",
    **kwargs: Any,
) -> PlainCifar:
    """IGC-L24M2 of depth 20: 155,962 parameters, 28.76 M MACs.

    `primary_partitions` is L in all stages. `secondary_partitions` is M in the first stage and doubles in each further
    stage. fusion="sum" sums the primary partitions instead of applying the secondary convolutions (SumFusion).
    """
    make_conv = partial(conv3x3, primary_partitions=primary_partitions, fusion=fusion)
    width = primary_partitions * secondary_partitions
    return build(PlainCifar, "igcv1_plain_cifar", pretrained, width=width, depth=depth, make_conv=make_conv, **kwargs)


@register_model
def regconv_plain_cifar(pretrained: bool = False, depth: int = 20, width: int = 18, **kwargs: Any) -> PlainCifar:
    """RegConv-W18 of depth 20: 341,020 parameters, 51.26 M MACs."""
    make_conv = partial(conv3x3, primary_partitions=None)
    return build(PlainCifar, "regconv_plain_cifar", pretrained, width=width, depth=depth, make_conv=make_conv, **kwargs)


def _residual_cifar(
    name: str, pretrained: bool, depth: int, width: int, primary_partitions: int | None, **kwargs: Any
) -> ResidualNet:
    check_depth(depth, 6)
    return build(
        ResidualNet,
        name,
        pretrained,
        stem=width,
        widths=[width << stage for stage in range(3)],
        primary_partitions=[primary_partitions] * 3,
        units=(depth - 2) // 6,
        **kwargs,
    )


@register_model
def igcv1_residual_cifar(
    pretrained: bool = False,
    depth: int = 20,
    primary_partitions: int = 24,
    secondary_partitions: int = 2,
    quirk: bool = False,
    **kwargs: Any,
) -> ResidualNet:
    """IGC-L24M2+Ident. of depth 20: 157,498 parameters; with `quirk` (see `ResidualUnit`) 164,410."""
    width = primary_partitions * secondary_partitions
    return _residual_cifar("igcv1_residual_cifar", pretrained, depth, width, primary_partitions, quirk=quirk, **kwargs)


@register_model
def regconv_residual_cifar(pretrained: bool = False, depth: int = 20, width: int = 18, **kwargs: Any) -> ResidualNet:
    """RegConv-W18+Ident. of depth 20: 344,476 parameters."""
    return _residual_cifar("regconv_residual_cifar", pretrained, depth, width, None, **kwargs)


@register_model
def igcv1_imagenet(
    pretrained: bool = False,
    primary_partitions: int = 100,
    secondary_partitions: int = 2,
    grows: str = "primary",
    **kwargs: Any,
) -> ResidualNet:
    """IGC-L100M2+Ident. of depth 18: 8,637,900 parameters, 1.265 G MACs.

    The first stage has L primary and M secondary partitions. `grows` selects which of them double from stage to stage:
    "primary", as in L100M2, whose first convolution has L channels, or "secondary", as in L4M32 and L16M16, whose first
    convolution has L M channels. Raises ConvReproError for another value.
    """
    if grows not in GROWS:
        raise ConvReproError(f"grows={grows!r} is unknown; valid: {', '.join(GROWS)}")
    width = primary_partitions * secondary_partitions
    by_stage = grows == "primary"
    return build(
        ResidualNet,
        "igcv1_imagenet",
        pretrained,
        stem=primary_partitions if by_stage else width,
        widths=[width << stage for stage in range(4)],
        primary_partitions=[primary_partitions << stage * by_stage for stage in range(4)],
        units=2,
        large=True,
        **kwargs,
    )


@register_model
def regconv_imagenet(pretrained: bool = False, width: int = 64, **kwargs: Any) -> ResidualNet:
    """ResNet-18 (C=64): 11,689,512 parameters, 1.814 G MACs. The paper also compares with width 69."""
    return build(
        ResidualNet,
        "regconv_imagenet",
        pretrained,
        stem=width,
        widths=[width << stage for stage in range(4)],
        primary_partitions=[None] * 4,
        units=2,
        large=True,
        **kwargs,
    )
