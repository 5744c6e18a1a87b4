"""ShuffleNet. Zhang, Zhou, Lin, Sun: "ShuffleNet: An Extremely Efficient Convolutional Neural Network for Mobile
Devices", CVPR 2018 (arXiv 1707.01083), figure 2 and table 1.
"""

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
"""Units of stages 2 to 4, the first of each with stride 2."""


class ShuffleUnit(nn.Module):
    """Group 1x1 convolution, channel shuffle, depthwise 3x3, group 1x1; added to the input.

    With stride 1, squeeze-and-excitation, if any, is the last step before the addition. With stride 2 the result is
    joined to the input's 3x3 average pooling instead, and has that many channels fewer. `first_groups` are those of the
    first convolution.
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

    The first unit's first convolution has no groups. `width` is the paper's scale factor, 1 being its table 1. For
    g = 4 at width 0.5 the paper speaks of 576 channels in the last stage (section 4.2), not half of 1088: it seems to
    have kept quarters of the channels divisible by the groups, so that here stage 2 has the nearest multiple of 4 g,
    the larger of two. The first convolution has 24 channels, 48 from width 2 on and 12 below width 1, as in the
    authors' code for g = 3; with g = 8, which does not divide 12, it has 16 and below width 0.5 8, for which the counts
    are nearest to the 40 M of the authors' README and the 13 M of the paper.

    `shuffle=False` leaves the channel shuffle out. `se_reduction` puts squeeze-and-excitation before each addition, so
    into the units with stride 1 (Hu et al., arXiv 1709.01507, does not say where, but this gives the 2.4 M parameters
    of its table 3; on all branches 16 would have to divide 216 channels).

    Weights are drawn as in the code of ResNeXt, whose settings the paper takes over: N(0, 2/n), n being output channels
    times kernel positions; linear biases zero.

    Raises ConvReproError for other groups than the paper's and for a width that is not above 0, ValueError for a
    reduction that does not divide the channels.
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
            raise ConvReproError(f"groups={groups!r}: valid are the paper's, {', '.join(map(str, CHANNELS))}")
        if not width > 0:
            raise ConvReproError(f"width={width!r} must be above 0; the paper's are 0.25, 0.5, 1, 1.5 and 2")
        channels = stem_channels(groups, width)
        self.conv1 = nn.Conv2d(in_chans, channels, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.act1 = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        units = []
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
        """Images (B, in_chans, H, W) to feature maps (B, C, H/32, W/32), C = 960 for g = 3 at width 1."""
        return self.units(self.maxpool(self.act1(self.bn1(self.conv1(x)))))


def stage_channels(groups: int, width: float) -> int:
    """Output channels of stage 2: the multiple of 4 * groups nearest to the scaled ones of table 1."""
    step = 4 * groups
    return max(1, int(CHANNELS[groups] * width / step + 0.5)) * step


def stem_channels(groups: int, width: float) -> int:
    """Output channels of the first convolution."""
    if width >= 1:
        return 48 if width >= 2 else 24
    if groups < 8:
        return 12
    return 16 if width >= 0.5 else 8


default_cfgs = generate_default_cfgs({"shufflenet_v1": imagenet_cfg("conv1")})


@register_model
def shufflenet_v1(pretrained: bool = False, **kwargs: object) -> ShuffleNetV1:
    """ShuffleNet 1x with 3 groups: 137,460,672 MACs, 1,865,728 parameters."""
    return build(ShuffleNetV1, "shufflenet_v1", pretrained, **kwargs)
