"""A network from outside, for `model=outside_ops.models:two_stages`."""

from torch import nn


def two_stages(num_classes: int, in_chans: int, width: int = 8) -> nn.Module:
    """Images (B, in_chans, H, W) to logits (B, num_classes): three convolutions with batch norm, and a classifier."""

    def stage(channels: int, filters: int, stride: int) -> list[nn.Module]:
        return [nn.Conv2d(channels, filters, 3, stride, 1, bias=False), nn.BatchNorm2d(filters), nn.ReLU()]

    layers = [*stage(in_chans, width, 2), *stage(width, width, 1), *stage(width, 2 * width, 2)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * width, num_classes))
