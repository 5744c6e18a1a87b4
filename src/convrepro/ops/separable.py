"""A KxK group convolution followed by a 1x1 convolution.

With one group for each channel this is the depthwise separable convolution of Howard et al.: "MobileNets", 2017
(arXiv 1704.04861), section 3.1, without a norm or activation between the two convolutions. With fewer groups it is
the row GWC_PWC of HetConv's table 1 (arXiv 1903.04120), which calls the depthwise case DWC_PWC.
"""

from fractions import Fraction

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import Self

from convrepro.ops.base import ConvOperator, Pair, check_divisor, conv_arguments, empty_parameter, scaled
from convrepro.ops.deployed import conv, geometry
from convrepro.ops.init import init_bias_, init_weight_


class GroupPointwise(ConvOperator):
    """A KxK group convolution from M to M channels, followed by a 1x1 convolution from M to N channels.

    Input (B, M, H, W), output (B, N, H', W') as `nn.Conv2d`. Stride, padding and dilation belong to the KxK
    convolution, the bias to the 1x1 convolution. MACs for H' x W' positions with G = num_groups:
    `H' * W' * (M*M/G*K^2 + M*N)`.

    It equals the standard convolution with the weight `dense_weight()`. For K=1 every standard convolution has this
    form.

    Parameters: `weight_kxk` (M, M/G, K, K), `weight_1x1` (N, M, 1, 1), `bias` (N,).

    Knobs:
        num_groups: number of groups of the KxK convolution; it must divide in_channels.

    Raises ValueError for groups other than 1 and for a num_groups that does not divide in_channels.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Pair,
        stride: Pair = 1,
        padding: Pair | str = 0,
        dilation: Pair = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        num_groups: int = 4,
    ) -> None:
        self._check_ungrouped(groups)
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, padding_mode)
        check_divisor("num_groups", num_groups, in_channels, f"in_channels={in_channels}")
        self.num_groups = num_groups
        shape = (in_channels, in_channels // num_groups, *self.kernel_size)
        self.weight_kxk = empty_parameter(*shape, device=device, dtype=dtype)
        self.weight_1x1 = empty_parameter(out_channels, in_channels, 1, 1, device=device, dtype=dtype)
        self.bias = empty_parameter(out_channels, device=device, dtype=dtype) if bias else None
        self.reset_parameters()

    def reset_parameters(self, init: str = "torch") -> None:
        """Draws fresh weights (schemes: `ops.init`) for each of the two convolutions, with its own fans.

        Raises ValueError for an unknown scheme.
        """
        taps = self.weight_kxk[0].numel()
        init_weight_(self.weight_kxk, init, fan_in=taps, fan_out=taps)
        init_weight_(self.weight_1x1, init, fan_in=self.in_channels, fan_out=self.out_channels)
        init_bias_(self.bias, init, fan_in=self.in_channels)

    def macs(self, out_h: int, out_w: int) -> int:
        """Returns the multiply-accumulates for one image: one for each weight and output position."""
        taps = self.kernel_size[0] * self.kernel_size[1]
        grouped = self.in_channels * (self.in_channels // self.num_groups) * taps
        return out_h * out_w * (grouped + self.in_channels * self.out_channels)

    def scaled_bias(self, out_h: int, out_w: int) -> Fraction:
        """Returns the number of bias additions as HetConv's tables count them.

        They count one addition for each output element of the KxK convolution.
        """
        return Fraction(self.in_channels * out_h * out_w)

    def dense_weight(self) -> Tensor:
        """Returns the weight (N, M, K, K) of the equivalent standard convolution, detached."""
        with torch.no_grad():
            kernels = self.weight_kxk.unflatten(0, (self.num_groups, -1)).flatten(2)
            mixing = self.weight_1x1.flatten(1).unflatten(1, (self.num_groups, 1, -1)).transpose(0, 1).squeeze(2)
            dense = (mixing @ kernels).transpose(0, 1)
        return dense.reshape(self.out_channels, self.in_channels, *self.kernel_size)

    def forward(self, x: Tensor) -> Tensor:
        """Applies the two convolutions: (B, M, H, W) -> (B, M, H', W') -> (B, N, H', W')."""
        x, padding = self._padded(x)
        x = F.conv2d(x, self.weight_kxk, None, self.stride, padding, self.dilation, self.num_groups)
        return F.conv2d(x, self.weight_1x1, self.bias)

    def deployed(self) -> nn.Module:
        """Returns the two convolutions as plain layers."""
        first = conv(self.weight_kxk, None, self.num_groups, **geometry(self))
        return nn.Sequential(first, conv(self.weight_1x1, self.bias))

    def _scale_(self, scale: Tensor) -> bool:
        self.weight_1x1 = scaled(self.weight_1x1, scale)
        return True


class DepthwisePointwise(GroupPointwise):
    """A depthwise convolution followed by a 1x1 convolution: `GroupPointwise` with one group for each input channel.

    MACs for H' x W' positions: `H' * W' * (M*K^2 + M*N)`. Raises ValueError for groups other than 1.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Pair,
        stride: Pair = 1,
        padding: Pair | str = 0,
        dilation: Pair = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            bias,
            padding_mode,
            device,
            dtype,
            num_groups=in_channels,
        )

    @classmethod
    @torch.no_grad()
    def from_conv(cls, conv: nn.Conv2d) -> Self:
        """Returns the pair of convolutions that is nearest to `conv` in least squares over the weight.

        For each input channel it is the first singular pair of the channel's kernels; each of the two vectors is
        multiplied by the square root of the singular value. Raises ValueError as the constructor does.
        """
        operator = cls(**conv_arguments(conv))
        kernels = conv.weight.to(torch.promote_types(conv.weight.dtype, torch.float32)).transpose(0, 1).flatten(2)
        u, s, vh = torch.linalg.svd(kernels, full_matrices=False)
        root = s[:, :1].sqrt()
        operator.weight_1x1.copy_((u[..., 0] * root).T[..., None, None])
        operator.weight_kxk.copy_((vh[:, 0] * root).view_as(operator.weight_kxk))
        return operator._with_bias_and_mode_of(conv)
