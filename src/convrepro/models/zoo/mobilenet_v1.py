"""MobileNet for ImageNet, and for CIFAR-10 as HetConv's table 4 counts it (arXiv 1903.04120).

Howard et al.: "MobileNets: Efficient Convolutional Neural Networks for Mobile Vision Applications" (arXiv 1704.04861),
table 1. The last depthwise convolution, printed with stride 2, has stride 1: its input and output are 7x7.
"""

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
"""Those of the shallow MobileNet (section 4.1): without the five with 512 channels on both sides."""


class SeparableBlock(nn.Module):
    """A depthwise 3x3 and a 1x1 convolution, each with batch norm and ReLU; last, if any, squeeze-and-excitation."""

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
    """The 3x3 convolution in the place of a separable block, with batch norm, ReLU and, if any, squeeze-and-excitation.

    The network of such blocks is the Conv MobileNet of table 4, which the paper describes as one with full
    convolutions; that one takes the place of each pair is our reading, which the printed counts confirm.
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
    """A 3x3 convolution to 32 channels and 13 blocks, `shallow` 8.

    `width` is the paper's multiplier of all channels, which are cut to integers and at least 8. `blocks` is one of
    `BLOCK_KINDS`. `se_reduction` puts squeeze-and-excitation behind each block (Hu et al., arXiv 1709.01507, table 3,
    which does not say where: each block fits its counts).

    Weights are drawn as in the authors' TensorFlow code: N(0, 0.09^2) cut at two standard deviations, biases zero.
    Raises ConvReproError for a width that is not above 0 and an unknown kind of blocks.
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
        layers = []
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
        """Images (B, in_chans, H, W) to feature maps (B, C, H/32, W/32), C = 1024 at width 1; CIFAR: H/16, W/16."""
        return self.layers(self.act1(self.bn1(self.conv1(x))))


class MobileNetV1Cifar(CifarClassifier, MobileNetV1):
    """MobileNet with stride 1 in the first convolution and the initialisation of HetConv's CIFAR recipe."""

    stem_stride = 1


default_cfgs = generate_default_cfgs({"mobilenet_v1": imagenet_cfg("conv1"), "mobilenet_v1_cifar": cifar_cfg("conv1")})


@register_model
def mobilenet_v1(pretrained: bool = False, **kwargs: object) -> MobileNetV1:
    """MobileNet: 568,740,352 MACs, 4,231,976 parameters."""
    return build(MobileNetV1, "mobilenet_v1", pretrained, **kwargs)


@register_model
def mobilenet_v1_cifar(pretrained: bool = False, **kwargs: object) -> MobileNetV1Cifar:
    """MobileNet: 46,354,432 MACs."""
    return build(MobileNetV1Cifar, "mobilenet_v1_cifar", pretrained, **kwargs)
