"""Channel attention. Hu, Shen, Sun: "Squeeze-and-Excitation Networks", CVPR 2018 (arXiv 1709.01507), section 3."""

import torch.nn.functional as F
from torch import Tensor, nn

from convrepro.ops.base import ConvOperator, check_divisor


class SqueezeExcite(nn.Module):
    """Scales each channel by a gate in (0, 1) that depends on the means of all channels: (B, C, H, W) -> (B, C, H, W).

    The steps are the mean over positions (equation 2), Linear C -> C/r, ReLU, Linear C/r -> C, sigmoid (equation 3)
    and the product (equation 4). Both linear layers have biases; equation 3 omits them, and `macs` does not count them.

    Raises ValueError for a reduction r that does not divide the number of channels C.
    """

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        check_divisor("reduction", reduction, channels, f"channels={channels}")
        self.channels = channels
        self.reduction = reduction
        self.squeeze = nn.Linear(channels, channels // reduction)
        self.excite = nn.Linear(channels // reduction, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Multiplies each channel of the input by its gate."""
        means = F.adaptive_avg_pool2d(x, 1).flatten(1)
        gate = self.excite(self.squeeze(means).relu()).sigmoid()
        return x * gate[..., None, None]

    def macs(self) -> int:
        """Returns the multiply-accumulates of the two linear layers for one image: 2 * C * C / r."""
        return 2 * self.channels * (self.channels // self.reduction)


class SqueezeExciteConv(nn.Module):
    """A convolution followed by `SqueezeExcite`: y = SE(conv(x)). `conv` is an operator or an `nn.Conv2d`.

    The weights of `SqueezeExcite` get the device and the dtype of the weights of `conv`. Raises ValueError for a
    reduction that does not divide `conv.out_channels`.
    """

    def __init__(self, conv: ConvOperator | nn.Conv2d, reduction: int = 16) -> None:
        super().__init__()
        self.conv = conv
        like = next(conv.parameters())
        self.se = SqueezeExcite(conv.out_channels, reduction).to(device=like.device, dtype=like.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, M, H, W) to (B, N, H', W')."""
        return self.se(self.conv(x))
