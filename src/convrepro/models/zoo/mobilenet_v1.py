"""MobileNet for ImageNet, and for CIFAR-10 as HetConv's table 4 counts it (arXiv 1903.04120).

Howard et al.: "MobileNets: Efficient Convolutional Neural Networks for Mobile Vision Applications" (arXiv 1704.04861),
table 1. The last depthwise convolution has stride 1, because its input and output are 7x7; the paper prints stride 2.
"""

from typing import Any

import torch
from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from convrepro.errors import ConvReproError
from convrepro.models.zoo.classifier import (
    CifarClassifier,
    ImageClassifier,
    average_pool,
    build,
    cifar_cfg,
    imagenet_cfg,
    squeeze_excite,
)

BLOCKS = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *((512, 1),) * 5, (1024, 2), (1024, 1))
"""Output channels and stride of each block."""

SHALLOW_BLOCKS = (*BLOCKS[:6], *BLOCKS[11:])
"""The blocks of the shallow MobileNet (section 4.1), without the five that have 512 input and output channels."""


class SeparableBlock(nn.Module):
    """A depthwise 3x3 and a 1x1 convolution, each with batch norm and ReLU, then optional squeeze-and-excitation."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, se_reduction: int | None) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, in_channels, 3, stride, padding=1, groups=in_channels, bias=False)
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.act1 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.act2 = nn.ReLU(inplace=True)
        self.se = squeeze_excite(out_channels, se_reduction)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act1(self.bn1(self.conv1(x)))
        x = self.act2(self.bn2(self.conv2(x)))
        return self.se(x)


class DenseBlock(nn.Module):
    """A 3x3 convolution that replaces a separable block, with batch norm, ReLU and optional squeeze-and-excitation.

    The network of these blocks is the Conv MobileNet of table 4. The paper only says that it has full convolutions;
    that one convolution replaces each pair is an interpretation, which the printed counts confirm.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, se_reduction: int | None) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.act1 = nn.ReLU(inplace=True)
        self.se = squeeze_excite(out_channels, se_reduction)

    def forward(self, x: Tensor) -> Tensor:
        return self.se(self.act1(self.bn1(self.conv1(x))))


BLOCK_KINDS = {"separable": SeparableBlock, "dense": DenseBlock}


class MobileNetV1(ImageClassifier):
    """A 3x3 convolution to 32 channels and 13 blocks, with `shallow` 8 blocks.

    `width` is the paper's factor of all numbers of channels, which are rounded down and are at least 8. `blocks` is one
    of `BLOCK_KINDS`. `se_reduction` adds squeeze-and-excitation after each block. (Table 3 of Hu et al., arXiv
    1709.01507, does not say where it is; its counts fit this position.)

    Weights are drawn as in the authors' TensorFlow code: N(0, 0.09^2), truncated at two standard deviations; biases are
    zero. Raises ConvReproError for a width that is not above 0 and for an unknown kind of blocks.
    """

    stem_stride = 2

    def __init__(
        self,
        num_classes: int = 1000,
        in_chans: int = 3,
        drop_rate: float = 0.0,
        width: float = 1.0,
        blocks: str = "separable",
        shallow: bool = False,
        se_reduction: int | None = None,
    ) -> None:
        super().__init__()
        if not width > 0:
            raise ConvReproError(f"width={width!r} must be above 0; the paper's are 1.0, 0.75, 0.5 and 0.25")
        if blocks not in BLOCK_KINDS:
            raise ConvReproError(f"blocks={blocks!r} is unknown; valid: {', '.join(BLOCK_KINDS)}")
        channels = max(8, int(32 * width))
        self.conv1 = nn.Conv2d(in_chans, channels, 3, self.stem_stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.act1 = nn.ReLU(inplace=True)
        layers: list[nn.Module] = []
        for base, stride in SHALLOW_BLOCKS if shallow else BLOCKS:
            out_channels = max(8, int(base * width))
            layers.append(BLOCK_KINDS[blocks](channels, out_channels, stride, se_reduction))
            channels = out_channels
        self.layers = nn.Sequential(*layers)
        self.neck = average_pool()
        self.finish(channels, num_classes, in_chans, drop_rate)

    @torch.no_grad()
    def init_weights(self, module: nn.Module) -> None:
        for layer in module.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.09, a=-0.18, b=0.18)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def forward_features(self, x: Tensor) -> Tensor:
        """Maps images (B, in_chans, H, W) to feature maps (B, C, H/32, W/32), for CIFAR (B, C, H/16, W/16).

        C is 1024 for width 1.
        """
        return self.layers(self.act1(self.bn1(self.conv1(x))))


class MobileNetV1Cifar(CifarClassifier, MobileNetV1):
    """MobileNet with stride 1 in the first convolution and the initialisation of HetConv's CIFAR recipe."""

    stem_stride = 1


default_cfgs = generate_default_cfgs({"mobilenet_v1": imagenet_cfg("conv1"), "mobilenet_v1_cifar": cifar_cfg("conv1")})


@register_model
def mobilenet_v1(pretrained: bool = False, **kwargs: Any) -> MobileNetV1:
    """MobileNet: 568,740,352 MACs, 4,231,976 parameters."""
    return build(MobileNetV1, "mobilenet_v1", pretrained, **kwargs)


@register_model
def mobilenet_v1_cifar(pretrained: bool = False, **kwargs: Any) -> MobileNetV1Cifar:
    """MobileNet: 46,354,432 MACs."""
    return build(MobileNetV1Cifar, "mobilenet_v1_cifar", pretrained, **kwargs)
