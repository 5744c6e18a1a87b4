"""MobileNet for CIFAR-10, as HetConv's table 4 counts it (arXiv 1903.04120): strides 2 in blocks 2, 4, 6 and 12 only.

Howard et al.: "MobileNets: Efficient Convolutional Neural Networks for Mobile Vision Applications" (arXiv 1704.04861),
table 1. The first convolution has stride 1 here.
"""

from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from convrepro.zoo.classifier import CifarClassifier, average_pool, build, cifar_cfg, squeeze_excite

BLOCKS = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *((512, 1),) * 5, (1024, 2), (1024, 1))
"""Output channels and stride of each block."""


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


class MobileNetCifar(CifarClassifier):
    """A 3x3 convolution to 32 channels and 13 separable blocks."""

    def __init__(
        self,
        num_classes: int = 10,
        in_chans: int = 3,
        drop_rate: float = 0.0,
        se_reduction: int | None = None,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_chans, 32, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(32)
        self.act1 = nn.ReLU(inplace=True)
        blocks = []
        channels = 32
        for width, stride in BLOCKS:
            blocks.append(SeparableBlock(channels, width, stride, se_reduction))
            channels = width
        self.layers = nn.Sequential(*blocks)
        self.neck = average_pool()
        self.finish(channels, num_classes, in_chans, drop_rate)

    def forward_features(self, x: Tensor) -> Tensor:
        """Images (B, in_chans, H, W) to feature maps (B, 1024, H/16, W/16)."""
        return self.layers(self.act1(self.bn1(self.conv1(x))))


default_cfgs = generate_default_cfgs({"mobilenet_v1_cifar": cifar_cfg("conv1")})


@register_model
def mobilenet_v1_cifar(pretrained: bool = False, **kwargs: object) -> MobileNetCifar:
    """MobileNet: 46,354,432 MACs."""
    return build(MobileNetCifar, "mobilenet_v1_cifar", pretrained, **kwargs)
