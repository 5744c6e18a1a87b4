"""MobileNetV2 for CIFAR-10 as DeepShift's version 5 trains it (arXiv 1905.13298), in a form that is common on CIFAR.

Sandler, Howard, Zhu, Zhmoginov, Chen: "MobileNetV2: Inverted Residuals and Linear Bottlenecks" (arXiv 1801.04381),
table 2, with stride 1 in the first convolution and in the row of 24 channels. Further differences from the table are
ReLU instead of ReLU6, a 1x1 expansion also in the first block, and a 1x1 shortcut where a block of stride 1 changes the
number of channels.
"""

from typing import Any

from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from convrepro.models.zoo.classifier import ImageClassifier, average_pool, build, cifar_cfg

ROWS = ((1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
"""Expansion, output channels, number of blocks and stride of the first of them."""


class InvertedResidual(nn.Module):
    """A 1x1 expansion, a depthwise 3x3 convolution and a 1x1 projection, each with batch norm, the first two with ReLU.

    With stride 1 the input is added to the output. If the number of channels changes, a 1x1 convolution with batch norm
    is applied to the input first.
    """

    def __init__(self, in_channels: int, out_channels: int, expansion: int, stride: int) -> None:
        super().__init__()
        hidden = expansion * in_channels
        self.conv1 = nn.Conv2d(in_channels, hidden, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(hidden)
        self.act1 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(hidden, hidden, 3, stride, padding=1, groups=hidden, bias=False)
        self.bn2 = nn.BatchNorm2d(hidden)
        self.act2 = nn.ReLU(inplace=True)
        self.conv3 = nn.Conv2d(hidden, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.shortcut: nn.Module | None = None
        if stride == 1:
            projection = (nn.Conv2d(in_channels, out_channels, 1, bias=False), nn.BatchNorm2d(out_channels))
            self.shortcut = nn.Identity() if in_channels == out_channels else nn.Sequential(*projection)

    def forward(self, x: Tensor) -> Tensor:
        y = self.act1(self.bn1(self.conv1(x)))
        y = self.act2(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return y if self.shortcut is None else y + self.shortcut(x)


class MobileNetV2Cifar(ImageClassifier):
    """A 3x3 convolution to 32 channels, 17 inverted residuals and a 1x1 convolution to 1280 channels.

    Weights have PyTorch's default initialisation.
    """

    def __init__(self, num_classes: int = 10, in_chans: int = 3, drop_rate: float = 0.0) -> None:
        super().__init__()
        channels = 32
        self.conv1 = nn.Conv2d(in_chans, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.act1 = nn.ReLU(inplace=True)
        blocks = []
        for expansion, width, number, stride in ROWS:
            for index in range(number):
                blocks.append(InvertedResidual(channels, width, expansion, 1 if index else stride))
                channels = width
        self.layers = nn.Sequential(*blocks)
        self.conv2 = nn.Conv2d(channels, 1280, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(1280)
        self.act2 = nn.ReLU(inplace=True)
        self.neck = average_pool()
        self.finish(1280, num_classes, in_chans, drop_rate)

    def forward_features(self, x: Tensor) -> Tensor:
        """Maps images (B, in_chans, H, W) to feature maps (B, 1280, H/8, W/8)."""
        x = self.layers(self.act1(self.bn1(self.conv1(x))))
        return self.act2(self.bn2(self.conv2(x)))


default_cfgs = generate_default_cfgs({"deepshift_mobilenet_v2_cifar": cifar_cfg("conv1")})


@register_model
def deepshift_mobilenet_v2_cifar(pretrained: bool = False, **kwargs: Any) -> MobileNetV2Cifar:
    """MobileNetV2: 2,296,922 parameters."""
    return build(MobileNetV2Cifar, "deepshift_mobilenet_v2_cifar", pretrained, **kwargs)
