"""Channel attention. Hu, Shen, Sun: "Squeeze-and-Excitation Networks", CVPR 2018 (arXiv 1709.01507), section 3."""

import torch.nn.functional as F
from torch import Tensor, nn

from convrepro.ops.base import check_divisor


class SqueezeExcite(nn.Module):
    """Scales each channel by a gate in (0, 1) that depends on all channels' means: (B, C, H, W) -> (B, C, H, W).

    Means over positions (equation 2), Linear C -> C/r, ReLU, Linear C/r -> C, sigmoid (equation 3), product (equation
    4). Both linear layers have biases, which equation 3 leaves out and `macs` does not count.

    Raises ValueError for a reduction r that does not divide the channels C.
    """

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        check_divisor("reduction", reduction, channels, f"channels={channels}")
        self.channels = channels
        self.reduction = reduction
        self.squeeze = nn.Linear(channels, channels // reduction)
        self.excite = nn.Linear(channels // reduction, channels)

    def forward(self, x: Tensor) -> Tensor:
        """The input, channel by channel multiplied with its gate."""
        means = F.adaptive_avg_pool2d(x, 1).flatten(1)
        gate = self.excite(self.squeeze(means).relu()).sigmoid()
        return x * gate[..., None, None]

    def macs(self) -> int:
        """Multiply-accumulates of the two linear layers for one image: 2 * C * C / r."""
        return 2 * self.channels * (self.channels // self.reduction)


class SqueezeExciteConv(nn.Module):
    """`SqueezeExcite` behind a convolution: y = SE(conv(x)). `conv` is any operator or `nn.Conv2d`.

    Its weights are made on the device and in the dtype of `conv`'s. Raises ValueError for a reduction that does not
    divide `conv.out_channels`.
    """

    def __init__(self, conv: nn.Module, reduction: int = 16) -> None:
        super().__init__()
        self.conv = conv
        like = next(conv.parameters())
        self.se = SqueezeExcite(conv.out_channels, reduction).to(device=like.device, dtype=like.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """(B, M, H, W) -> (B, N, H', W')."""
        return self.se(self.conv(x))
