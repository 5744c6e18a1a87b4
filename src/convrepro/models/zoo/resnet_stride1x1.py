"""ResNet with the stride of a bottleneck in its first convolution, as SENet's tables count it.

He, Zhang, Ren, Sun: "Deep Residual Learning for Image Recognition", CVPR 2016 (arXiv 1512.03385), table 1. In timm's
ResNet (and in ResNeXt) the 3x3 convolution has the stride. Squeeze-and-excitation is that of Hu, Shen, Sun (arXiv
1709.01507), figure 3.
"""

from collections.abc import Callable
from typing import Any

import torch
from timm.models import generate_default_cfgs, register_model
from timm.models.resnet import Bottleneck, ResNet
from torch import nn

from convrepro.models.zoo.classifier import build, imagenet_cfg, squeeze_excite


class Stride1x1Bottleneck(Bottleneck):
    """timm's bottleneck with the strides of its first two convolutions exchanged."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.conv1.stride, self.conv2.stride = self.conv2.stride, self.conv1.stride


def _attention(reduction: int | None) -> Callable[..., nn.Module] | None:
    """Returns the function from channels to squeeze-and-excitation that timm's blocks call, or None."""
    if reduction is None:
        return None

    def attention(
        channels: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> nn.Module:
        return squeeze_excite(channels, reduction).to(device=device, dtype=dtype)

    return attention


default_cfgs = generate_default_cfgs(
    {f"resnet{depth}_stride1x1": imagenet_cfg("conv1", "fc") for depth in (50, 101, 152)}
)


def _resnet(
    name: str, layers: tuple[int, ...], pretrained: bool, se_reduction: int | None = None, **kwargs: Any
) -> ResNet:
    """Builds timm's `ResNet` with `layers` blocks in its stages.

    `se_reduction` adds squeeze-and-excitation before each residual addition. Raises ValueError for a reduction that
    does not divide the channels.
    """
    block_args = {"attn_layer": _attention(se_reduction)}
    return build(ResNet, name, pretrained, block=Stride1x1Bottleneck, layers=layers, block_args=block_args, **kwargs)


@register_model
def resnet50_stride1x1(pretrained: bool = False, **kwargs: Any) -> ResNet:
    """ResNet-50: 3,857,973,248 MACs, 25,557,032 parameters."""
    return _resnet("resnet50_stride1x1", (3, 4, 6, 3), pretrained, **kwargs)


@register_model
def resnet101_stride1x1(pretrained: bool = False, **kwargs: Any) -> ResNet:
    """ResNet-101: 7,570,194,432 MACs, 44,549,160 parameters."""
    return _resnet("resnet101_stride1x1", (3, 4, 23, 3), pretrained, **kwargs)


@register_model
def resnet152_stride1x1(pretrained: bool = False, **kwargs: Any) -> ResNet:
    """ResNet-152: 11,282,415,616 MACs, 60,192,808 parameters."""
    return _resnet("resnet152_stride1x1", (3, 8, 36, 3), pretrained, **kwargs)
