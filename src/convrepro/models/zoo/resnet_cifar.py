"""ResNet for CIFAR-10: He, Zhang, Ren, Sun: "Deep Residual Learning for Image Recognition", CVPR 2016
(arXiv 1512.03385), section 4.2, with the shortcuts of option A, which have no parameters.

`resnet18_cifar` has the four stages of the ImageNet network after a 3x3 convolution, as DeepShift trains it (arXiv
1905.13298, version 5). The code of DeepShift's authors names option B, with 1x1 convolutions, but its blocks use option
A. `shortcut="conv"` selects option B.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch.nn.functional as F
from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from convrepro.errors import ConvReproError
from convrepro.models.zoo.classifier import CifarClassifier, average_pool, build, cifar_cfg, squeeze_excite


class PadShortcut(nn.Module):
    """Option A: selects every `stride`-th position and adds channels of zeros, half of them before and half after."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        new = out_channels - in_channels
        self.before, self.after = new // 2, new - new // 2
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.before, self.after))


def conv_shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
    """Returns option B: a 1x1 convolution and a batch norm."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 1, stride, bias=False),
        nn.BatchNorm2d(out_channels),
    )


SHORTCUTS: dict[str, Callable[[int, int, int], nn.Module]] = {"pad": PadShortcut, "conv": conv_shortcut}


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, with optional squeeze-and-excitation before the addition."""

    def __init__(
        self, in_channels: int, out_channels: int, stride: int, se_reduction: int | None, shortcut: str
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.act1 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.se = squeeze_excite(out_channels, se_reduction)
        same = stride == 1 and in_channels == out_channels
        self.shortcut = nn.Identity() if same else SHORTCUTS[shortcut](in_channels, out_channels, stride)
        self.act2 = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.act1(self.bn1(self.conv1(x)))
        y = self.se(self.bn2(self.conv2(y)))
        return self.act2(y + self.shortcut(x))


class ResNetCifar(CifarClassifier):
    """A 3x3 convolution and stages of `blocks` basic blocks; every stage except the first has stride 2.

    By default there are three stages of 16, 32 and 64 channels, which have 6 * blocks + 2 layers. `shortcut` is "pad"
    (option A) or "conv" (option B). `stem_stride=2` halves the resolution in the first convolution. Raises
    ConvReproError for another shortcut.
    """

    def __init__(
        self,
        blocks: int,
        num_classes: int = 10,
        in_chans: int = 3,
        drop_rate: float = 0.0,
        se_reduction: int | None = None,
        shortcut: str = "pad",
        widths: Sequence[int] = (16, 32, 64),
        stem_stride: int = 1,
    ) -> None:
        super().__init__()
        if shortcut not in SHORTCUTS:
            raise ConvReproError(f"shortcut={shortcut!r} is unknown; valid: {', '.join(SHORTCUTS)}")

        def stage(in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
            first = BasicBlock(in_channels, out_channels, stride, se_reduction, shortcut)
            others = (BasicBlock(out_channels, out_channels, 1, se_reduction, shortcut) for _ in range(blocks - 1))
            return nn.Sequential(first, *others)

        channels = widths[0]
        self.conv1 = nn.Conv2d(in_chans, channels, 3, stem_stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.act1 = nn.ReLU(inplace=True)
        self.stages = tuple(f"layer{number}" for number in range(1, len(widths) + 1))
        for name, width in zip(self.stages, widths, strict=True):
            self.add_module(name, stage(channels, width, 1 if name == "layer1" else 2))
            channels = width
        self.neck = average_pool()
        self.finish(channels, num_classes, in_chans, drop_rate)

    def forward_features(self, x: Tensor) -> Tensor:
        """Maps images (B, in_chans, H, W) to feature maps (B, 64, H/4, W/4); `resnet18_cifar` to (B, 512, H/8, W/8)."""
        x = self.act1(self.bn1(self.conv1(x)))
        for name in self.stages:
            x = getattr(self, name)(x)
        return x


DEPTHS = (8, 18, 20, 32, 44, 56, 110, 1202)
default_cfgs = generate_default_cfgs({f"resnet{depth}_cifar": cifar_cfg("conv1") for depth in DEPTHS})


@register_model
def resnet8_cifar(pretrained: bool = False, **kwargs: Any) -> ResNetCifar:
    """ResNet-8: 75,290 parameters."""
    return build(ResNetCifar, "resnet8_cifar", pretrained, blocks=1, **kwargs)


@register_model
def resnet18_cifar(pretrained: bool = False, **kwargs: Any) -> ResNetCifar:
    """ResNet-18: 11,000,138 parameters; with shortcut="conv" 11,173,962."""
    return build(ResNetCifar, "resnet18_cifar", pretrained, blocks=2, widths=(64, 128, 256, 512), **kwargs)


@register_model
def resnet20_cifar(pretrained: bool = False, **kwargs: Any) -> ResNetCifar:
    """ResNet-20: 269,722 parameters."""
    return build(ResNetCifar, "resnet20_cifar", pretrained, blocks=3, **kwargs)


@register_model
def resnet32_cifar(pretrained: bool = False, **kwargs: Any) -> ResNetCifar:
    """ResNet-32: 464,154 parameters."""
    return build(ResNetCifar, "resnet32_cifar", pretrained, blocks=5, **kwargs)


@register_model
def resnet44_cifar(pretrained: bool = False, **kwargs: Any) -> ResNetCifar:
    """ResNet-44: 658,586 parameters."""
    return build(ResNetCifar, "resnet44_cifar", pretrained, blocks=7, **kwargs)


@register_model
def resnet56_cifar(pretrained: bool = False, **kwargs: Any) -> ResNetCifar:
    """ResNet-56: 853,018 parameters, 125,485,696 MACs."""
    return build(ResNetCifar, "resnet56_cifar", pretrained, blocks=9, **kwargs)


@register_model
def resnet110_cifar(pretrained: bool = False, **kwargs: Any) -> ResNetCifar:
    """ResNet-110: 1,727,962 parameters."""
    return build(ResNetCifar, "resnet110_cifar", pretrained, blocks=18, **kwargs)


@register_model
def resnet1202_cifar(pretrained: bool = False, **kwargs: Any) -> ResNetCifar:
    """ResNet-1202: 19,421,274 parameters."""
    return build(ResNetCifar, "resnet1202_cifar", pretrained, blocks=200, **kwargs)
