"""A network with one convolution, for experiments with a single operator. It is not from a paper."""

from typing import Any

from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from convrepro.models.zoo.classifier import ImageClassifier, average_pool, build, cifar_cfg


class OneConv(ImageClassifier):
    """A 1x1 `stem` to `in_channels`, the convolution `conv` with the other arguments, ReLU, average pool, classifier.

    `conv` has no bias and is not the first convolution of the network, so that the rules for replacement select it.
    The default `padding` keeps the image size for stride 1 and an odd `kernel_size`. Raises ValueError, as `nn.Conv2d`
    does, for `groups` that do not divide the channels.
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_chans: int = 3,
        drop_rate: float = 0.0,
        in_channels: int = 16,
        out_channels: int = 16,
        kernel_size: int = 3,
        groups: int = 1,
        stride: int = 1,
        padding: int | None = None,
    ) -> None:
        super().__init__()
        self.stem = nn.Conv2d(in_chans, in_channels, 1)
        padding = kernel_size // 2 if padding is None else padding
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, groups=groups, bias=False)
        self.act = nn.ReLU(inplace=True)
        self.neck = average_pool()
        self.finish(out_channels, num_classes, in_chans, drop_rate)

    def forward_features(self, x: Tensor) -> Tensor:
        """Maps images (B, in_chans, H, W) to feature maps (B, out_channels, H/stride, W/stride)."""
        return self.act(self.conv(self.stem(x)))


default_cfgs = generate_default_cfgs({"one_conv": cifar_cfg("stem")})


@register_model
def one_conv(pretrained: bool = False, **kwargs: Any) -> OneConv:
    """One convolution, by default 3x3 from 16 to 16 channels."""
    return build(OneConv, "one_conv", pretrained, **kwargs)
