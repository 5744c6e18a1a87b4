"""ShuffleNet. Zhang, Zhou, Lin, Sun: "ShuffleNet: An Extremely Efficient Convolutional Neural Network for Mobile
Devices", CVPR 2018 (arXiv 1707.01083), figure 2 and table 1.
"""

from typing import Any

import torch
import torch.nn.functional as F
from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from convrepro.errors import ConvReproError
from convrepro.models.zoo.classifier import ImageClassifier, average_pool, build, imagenet_cfg, squeeze_excite
from convrepro.ops.igc import ChannelShuffle

CHANNELS = {1: 144, 2: 200, 3: 240, 4: 272, 8: 384}
"""Output channels of stage 2 by the number of groups; each later stage has twice as many."""

UNITS = (4, 8, 4)
"""The numbers of units in stages 2 to 4. The first unit of each stage has stride 2."""


class ShuffleUnit(nn.Module):
    """A 1x1 group convolution, channel shuffle, a depthwise 3x3 and a 1x1 group convolution.

    With stride 1 the result is added to the input, after optional squeeze-and-excitation. With stride 2 the result is
    concatenated with the 3x3 average pooling of the input, and has fewer channels by those of the input. `first_groups`
    is the number of groups of the first convolution.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int,
        groups: int,
        first_groups: int,
        shuffle: bool,
        se_reduction: int | None,
    ) -> None:
        super().__init__()
        middle = out_channels // 4
        branch_channels = out_channels if stride == 1 else out_channels - in_channels
        self.conv1 = nn.Conv2d(in_channels, middle, 1, groups=first_groups, bias=False)
        self.bn1 = nn.BatchNorm2d(middle)
        self.act1 = nn.ReLU(inplace=True)
        self.shuffle = ChannelShuffle(groups) if shuffle else nn.Identity()
        self.conv2 = nn.Conv2d(middle, middle, 3, stride, padding=1, groups=middle, bias=False)
        self.bn2 = nn.BatchNorm2d(middle)
        self.conv3 = nn.Conv2d(middle, branch_channels, 1, groups=groups, bias=False)
        self.bn3 = nn.BatchNorm2d(branch_channels)
        self.se = squeeze_excite(branch_channels, se_reduction if stride == 1 else None)
        self.act2 = nn.ReLU(inplace=True)
        self.joined = stride > 1

    def forward(self, x: Tensor) -> Tensor:
        y = self.shuffle(self.act1(self.bn1(self.conv1(x))))
        y = self.se(self.bn3(self.conv3(self.bn2(self.conv2(y)))))
        return self.act2(torch.cat([F.avg_pool2d(x, 3, 2, padding=1), y], 1) if self.joined else x + y)


class ShuffleNetV1(ImageClassifier):
    """A 3x3 convolution and max pooling, both with stride 2, and three stages of `UNITS` units.

    The first convolution of the first unit has no groups. `width` is the paper's scale factor, which is 1 in its table
    1. For g = 4 and width 0.5 the paper states 576 channels in the last stage (section 4.2), not half of 1088. It seems
    that a quarter of the channels must be divisible by the groups. Stage 2 therefore has the nearest multiple of 4 g
    channels, or the larger one of two that are equally near. The first convolution has 24 channels, from width 2 on 48
    and below width 1 12, as in the authors' code for g = 3. With g = 8, which does not divide 12, it has 16 below width
    1 and 8 below width 0.5, for which the counts are nearest to the 40 M of the authors' README and the 13 M of the
    paper.

    `shuffle=False` omits the channel shuffle. `se_reduction` adds squeeze-and-excitation before each addition, and so
    only to the units with stride 1. Hu et al., arXiv 1709.01507, do not state its position, but this one has the 2.4 M
    parameters of their table 3; if it were on all branches, 16 would have to divide 216 channels.

    Weights are drawn as in the code of ResNeXt, whose settings the paper adopts: N(0, 2/n), where n is the number of
    output channels times kernel positions; biases of linear layers are zero.

    Raises ConvReproError for groups that the paper does not use and for a width that is not above 0, and ValueError for
    a reduction that does not divide the channels.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        in_chans: int = 3,
        drop_rate: float = 0.0,
        groups: int = 3,
        width: float = 1.0,
        shuffle: bool = True,
        se_reduction: int | None = None,
    ) -> None:
        super().__init__()
        if groups not in CHANNELS:
            raise ConvReproError(
                f"groups={groups!r} is not a number of groups in the paper; valid: {', '.join(map(str, CHANNELS))}"
            )
        if not width > 0:
            raise ConvReproError(f"width={width!r} must be above 0; the paper's are 0.25, 0.5, 1, 1.5 and 2")
        channels = stem_channels(groups, width)
        self.conv1 = nn.Conv2d(in_chans, channels, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.act1 = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        units: list[nn.Module] = []
        for stage, number in enumerate(UNITS):
            out_channels = stage_channels(groups, width) * 2**stage
            for stride in (2, *(1,) * (number - 1)):
                first_groups = groups if units else 1
                units.append(ShuffleUnit(channels, out_channels, stride, groups, first_groups, shuffle, se_reduction))
                channels = out_channels
        self.units = nn.Sequential(*units)
        self.neck = average_pool()
        self.finish(channels, num_classes, in_chans, drop_rate)

    @torch.no_grad()
    def init_weights(self, module: nn.Module) -> None:
        for layer in module.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(layer, nn.Linear) and layer.bias is not None:
                nn.init.zeros_(layer.bias)

    def forward_features(self, x: Tensor) -> Tensor:
        """Maps images (B, in_chans, H, W) to feature maps (B, C, H/32, W/32); C is 960 for g = 3 and width 1."""
        return self.units(self.maxpool(self.act1(self.bn1(self.conv1(x)))))


def stage_channels(groups: int, width: float) -> int:
    """Returns the output channels of stage 2: the multiple of 4 * groups nearest to the scaled number of table 1."""
    step = 4 * groups
    return max(1, int(CHANNELS[groups] * width / step + 0.5)) * step


def stem_channels(groups: int, width: float) -> int:
    """Returns the output channels of the first convolution."""
    if width >= 1:
        return 48 if width >= 2 else 24
    if groups < 8:
        return 12
    return 16 if width >= 0.5 else 8


default_cfgs = generate_default_cfgs({"shufflenet_v1": imagenet_cfg("conv1")})


@register_model
def shufflenet_v1(pretrained: bool = False, **kwargs: Any) -> ShuffleNetV1:
    """ShuffleNet 1x with 3 groups: 137,460,672 MACs, 1,865,728 parameters."""
    return build(ShuffleNetV1, "shufflenet_v1", pretrained, **kwargs)
