"""The initialisation of the networks of interleaved group convolutions, and their plain network for CIFAR."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from convrepro.errors import ConvReproError
from convrepro.models.zoo.classifier import ImageClassifier, average_pool
from convrepro.ops import ConvOperator
from convrepro.ops.init import init_weight_

MakeConv = Callable[[int, int, int], nn.Module]
"""A function of (in_channels, out_channels, stride) that returns a 3x3 convolution or its replacement."""


class IgcClassifier(ImageClassifier):
    """An `ImageClassifier` with the initialisation of the code of the authors of IGCV1 and IGCV3.

    Convolutions, including those inside an operator, are N(0, 2/fan_in) with their true fan. Linear layers are U(-b, b)
    with b = 1/sqrt(fan_in), PyTorch's default.
    """

    @torch.no_grad()
    def init_weights(self, module: nn.Module) -> None:
        for layer in module.modules():
            if isinstance(layer, ConvOperator):
                layer.reset_parameters("fan_in")
            elif isinstance(layer, nn.Conv2d):
                fan_in, fan_out = layer.weight[0].numel(), layer.weight[:, 0].numel() // layer.groups
                init_weight_(layer.weight, "fan_in", fan_in=fan_in, fan_out=fan_out)


class PlainBlock(nn.Module):
    """A convolution, batch norm (eps 2e-5 and momentum 0.01, as in the code of IGCV1's authors) and ReLU."""

    def __init__(self, conv: nn.Module, channels: int) -> None:
        super().__init__()
        self.conv = conv
        self.bn = nn.BatchNorm2d(channels, eps=2e-5, momentum=0.01)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn(self.conv(x)))


class PlainCifar(IgcClassifier):
    """A 3x3 convolution and three stages of (depth - 2) / 3 blocks with width, 2 width and 4 width channels.

    There are no shortcuts. The first block of the second and of the third stage has stride 2. `make_conv` makes the
    convolutions of the blocks. Raises ConvReproError for a depth that is not 3 B + 2.
    """

    def __init__(
        self,
        width: int,
        depth: int,
        make_conv: MakeConv,
        num_classes: int = 10,
        in_chans: int = 3,
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        check_depth(depth, 3)
        self.stem = PlainBlock(nn.Conv2d(in_chans, width, 3, padding=1, bias=False), width)
        layers = []
        channels = width
        for stage in range(3):
            for i in range((depth - 2) // 3):
                out_channels, stride = width << stage, 2 if stage and i == 0 else 1
                layers.append(PlainBlock(make_conv(channels, out_channels, stride), out_channels))
                channels = out_channels
        self.layers = nn.Sequential(*layers)
        self.neck = average_pool()
        self.finish(channels, num_classes, in_chans, drop_rate)

    def forward_features(self, x: Tensor) -> Tensor:
        """Maps images (B, in_chans, H, W) to feature maps (B, 4 width, H/4, W/4)."""
        return self.layers(self.stem(x))


def check_depth(depth: int, step: int) -> None:
    """Raises ConvReproError unless `depth` is `step` B + 2 for a B of at least 1."""
    if depth < step + 2 or (depth - 2) % step:
        choices = ", ".join(str(step * blocks + 2) for blocks in range(1, 4))
        raise ConvReproError(f"depth={depth} must be {step} B + 2 for some B; valid: {choices}, ...")
