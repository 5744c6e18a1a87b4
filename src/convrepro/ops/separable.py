"""A KxK convolution inside groups of channels, then a 1x1 convolution across them.

Depthwise separable convolution as in Howard et al.: "MobileNets", 2017 (arXiv 1704.04861), section 3.1, but without a
norm or activation between the two; group-wise as in the rows GWC_PWC and DWC_PWC of HetConv's table 1 (arXiv
1903.04120).
"""

from fractions import Fraction

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convrepro.ops.base import ConvOperator, Pair, check_divisor, conv_arguments, scaled
from convrepro.ops.deployed import conv, geometry
from convrepro.ops.init import init_bias_, init_weight_


class GroupPointwise(ConvOperator):
    """A group convolution KxK from M to M channels, then a 1x1 convolution from M to N; nothing in between.

    Input (B, M, H, W), output (B, N, H', W') as `nn.Conv2d`. Stride, padding and dilation are the KxK convolution's;
    the bias is the 1x1 convolution's. MACs for H' x W' positions with G = num_groups: `H' * W' * (M*M/G*K^2 + M*N)`.

    It equals the standard convolution with the weight `dense_weight()`; where K=1 each standard convolution is of
    that form.

    Parameters: `weight_kxk` (M, M/G, K, K), `weight_1x1` (N, M, 1, 1), `bias` (N,).

    Knobs:
        num_groups: groups of the KxK convolution; must divide in_channels.

    Raises ValueError for groups other than 1 or an unfit num_groups.
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
        if groups != 1:
            raise ValueError(f"groups={groups}: {type(self).__name__} takes the place of a dense convolution; valid: 1")
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, padding_mode)
        check_divisor("num_groups", num_groups, in_channels, f"in_channels={in_channels}")
        self.num_groups = num_groups
        factory = {"device": device, "dtype": dtype}
        shape = (in_channels, in_channels // num_groups, *self.kernel_size)
        self.weight_kxk = nn.Parameter(torch.empty(shape, **factory))
        self.weight_1x1 = nn.Parameter(torch.empty((out_channels, in_channels, 1, 1), **factory))
        self.bias = nn.Parameter(torch.empty(out_channels, **factory)) if bias else None
        self.reset_parameters()

    def reset_parameters(self, init: str = "torch") -> None:
        """Draw fresh weights (schemes: `ops.init`), each of the two as a convolution of its own.

        Raises ValueError for an unknown scheme.
        """
        taps = self.weight_kxk[0].numel()
        init_weight_(self.weight_kxk, init, fan_in=taps, fan_out=taps)
        init_weight_(self.weight_1x1, init, fan_in=self.in_channels, fan_out=self.out_channels)
        init_bias_(self.bias, init, fan_in=self.in_channels)

    def macs(self, out_h: int, out_w: int) -> int:
        """Multiply-accumulates for one image: one for each weight and output position."""
        taps = self.kernel_size[0] * self.kernel_size[1]
        grouped = self.in_channels * (self.in_channels // self.num_groups) * taps
        return out_h * out_w * (grouped + self.in_channels * self.out_channels)

    def scaled_bias(self, out_h: int, out_w: int) -> Fraction:
        """Bias additions as HetConv's tables count them: one for each output element of the KxK convolution."""
        return Fraction(self.in_channels * out_h * out_w)

    def dense_weight(self) -> Tensor:
        """The weight (N, M, K, K) of the equal standard convolution; detached."""
        with torch.no_grad():
            kernels = self.weight_kxk.unflatten(0, (self.num_groups, -1)).flatten(2)
            mixing = self.weight_1x1.flatten(1).unflatten(1, (self.num_groups, 1, -1)).transpose(0, 1).squeeze(2)
            dense = (mixing @ kernels).transpose(0, 1)
        return dense.reshape(self.out_channels, self.in_channels, *self.kernel_size)

    def forward(self, x: Tensor) -> Tensor:
        """The two convolutions in turn: (B, M, H, W) -> (B, M, H', W') -> (B, N, H', W')."""
        x, padding = self._padded(x)
        x = F.conv2d(x, self.weight_kxk, None, self.stride, padding, self.dilation, self.num_groups)
        return F.conv2d(x, self.weight_1x1, self.bias)

    def deployed(self) -> nn.Module:
        """The two convolutions as layers."""
        first = conv(self.weight_kxk, None, self.num_groups, **geometry(self))
        return nn.Sequential(first, conv(self.weight_1x1, self.bias))

    def _scale_(self, scale: Tensor) -> bool:
        self.weight_1x1 = scaled(self.weight_1x1, scale)
        return True


class DepthwisePointwise(GroupPointwise):
    """`GroupPointwise` with one group for each input channel: a depthwise convolution, then a 1x1 convolution.

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
    def from_conv(cls, conv: nn.Conv2d) -> "DepthwisePointwise":
        """The pair nearest to `conv` in least squares: for each input channel the first singular pair of its kernels.

        The singular value's root goes to either side. Raises ValueError as the constructor does.
        """
        operator = cls(**conv_arguments(conv))
        with torch.no_grad():
            kernels = conv.weight.to(torch.promote_types(conv.weight.dtype, torch.float32)).transpose(0, 1).flatten(2)
            u, s, vh = torch.linalg.svd(kernels, full_matrices=False)
            root = s[:, :1].sqrt()
            operator.weight_1x1.copy_((u[..., 0] * root).T[..., None, None])
            operator.weight_kxk.copy_((vh[:, 0] * root).view_as(operator.weight_kxk))
            if operator.bias is not None:
                operator.bias.copy_(conv.bias)
        return operator.train(conv.training)
