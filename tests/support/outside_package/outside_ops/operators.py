"""Two operators that are registered from outside: the Ghost module, and the partial convolution."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convrepro import register_operator
from convrepro.ops import ConvOperator
from convrepro.ops.base import Pair, check_divisor, empty_parameter
from convrepro.ops.init import init_bias_, init_weight_


@register_operator("ghost")
class GhostConv2d(ConvOperator):
    """The Ghost module of GhostNet (Han et al., arXiv 1911.11907, section 3.1): a part of the maps by cheap operations.

    A convolution computes N / ratio intrinsic maps (B, N/ratio, H', W'), and depthwise convolutions with
    `cheap_kernel` x `cheap_kernel` taps compute ratio - 1 more maps from each. With `norm`, a batch norm follows both,
    as in the authors' code. Their activation is left to the network. MACs: N/ratio * C * K^2 * H'W' +
    (N - N/ratio) * cheap_kernel^2 * H'W'. With ratio=1 and norm=False the operator is `nn.Conv2d`.

    Raises ValueError for a ratio that does not divide the output channels, for an even `cheap_kernel`, and for groups.
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
        ratio: int = 2,
        cheap_kernel: int = 3,
        norm: bool = True,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, padding_mode)
        self._check_ungrouped(groups)
        check_divisor("ratio", ratio, out_channels, f"out_channels={out_channels}")
        if cheap_kernel < 1 or cheap_kernel % 2 == 0:
            raise ValueError(f"cheap_kernel={cheap_kernel} must be odd; valid: 1, 3, 5, ...")
        self.ratio, self.cheap_kernel, self.norm = ratio, cheap_kernel, norm
        intrinsic, ghosts = out_channels // ratio, out_channels - out_channels // ratio
        place = {"device": device, "dtype": dtype}
        self.weight = empty_parameter(intrinsic, in_channels, *self.kernel_size, **place)
        self.norm_intrinsic = nn.BatchNorm2d(intrinsic, **place) if norm else nn.Identity()
        self.weight_cheap = empty_parameter(ghosts, 1, cheap_kernel, cheap_kernel, **place) if ghosts else None
        self.norm_ghosts = nn.BatchNorm2d(ghosts, **place) if norm and ghosts else nn.Identity()
        self.bias = empty_parameter(out_channels, **place) if bias else None
        self.reset_parameters()

    def reset_parameters(self, init: str = "torch") -> None:
        """Draws fresh weights; batch norms begin as the identity."""
        fan_in, fan_out = self._dense_fans()
        init_weight_(self.weight, init, fan_in=fan_in, fan_out=fan_out // self.ratio)
        if self.weight_cheap is not None:
            taps = self.cheap_kernel**2
            init_weight_(self.weight_cheap, init, fan_in=taps, fan_out=taps * (self.ratio - 1))
        for norm in (self.norm_intrinsic, self.norm_ghosts):
            if isinstance(norm, nn.BatchNorm2d):
                norm.reset_parameters()
        init_bias_(self.bias, init, fan_in=fan_in)

    def macs(self, out_h: int, out_w: int) -> int:
        """Returns the multiply-accumulates of both convolutions; batch norms have none."""
        cheap = 0 if self.weight_cheap is None else self.weight_cheap.numel()
        return out_h * out_w * (self.weight.numel() + cheap)

    def weight_bits(self) -> int:
        """Returns 32 bits for each weight of the convolutions; the norms are folded in deployment."""
        return 32 * self.macs(1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the intrinsic maps, and behind them the maps that are computed from them."""
        x, padding = self._padded(x)
        y = self.norm_intrinsic(F.conv2d(x, self.weight, None, self.stride, padding, self.dilation))
        if self.weight_cheap is not None:
            ghosts = F.conv2d(y, self.weight_cheap, padding=self.cheap_kernel // 2, groups=self.weight.shape[0])
            y = torch.cat([y, self.norm_ghosts(ghosts)], 1)
        return self._plus_bias(y)


@register_operator("partial")
class PartialConv2d(ConvOperator):
    """FasterNet's partial convolution with a pointwise one behind it (Chen et al., arXiv 2303.03667, section 3.3).

    The first C / parts channels are convolved, among themselves, by K x K kernels. The other channels are passed on:
    the value under the kernel's centre, so that strides and paddings mean what they mean for `nn.Conv2d`. A 1x1
    convolution then mixes all channels, and `gain`, a scalar, scales the sum (a parameter of this example). MACs:
    ((C/parts)^2 * K^2 + C * N) * H'W'.

    Raises ValueError for parts that do not divide the input channels, and for groups.
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
        parts: int = 4,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, padding_mode)
        self._check_ungrouped(groups)
        check_divisor("parts", parts, in_channels, f"in_channels={in_channels}")
        self.parts = parts
        part, place = in_channels // parts, {"device": device, "dtype": dtype}
        self.weight_part = empty_parameter(part, part, *self.kernel_size, **place)
        self.weight_pointwise = empty_parameter(out_channels, in_channels, 1, 1, **place)
        self.gain = empty_parameter(**place)
        self.bias = empty_parameter(out_channels, **place) if bias else None
        self.reset_parameters()

    def reset_parameters(self, init: str = "torch") -> None:
        """Draws fresh weights; the gain begins at 1."""
        taps = self.kernel_size[0] * self.kernel_size[1]
        part = self.weight_part.shape[0]
        init_weight_(self.weight_part, init, fan_in=taps * part, fan_out=taps * part)
        init_weight_(self.weight_pointwise, init, fan_in=self.in_channels, fan_out=self.out_channels)
        nn.init.ones_(self.gain)
        init_bias_(self.bias, init, fan_in=self.in_channels)

    def macs(self, out_h: int, out_w: int) -> int:
        """Returns the multiply-accumulates of both convolutions."""
        return out_h * out_w * (self.weight_part.numel() + self.weight_pointwise.numel())

    def forward(self, x: Tensor) -> Tensor:
        """Convolves a part of the channels, passes the others on, and mixes all of them."""
        height, width = self.padding
        mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
        x = F.pad(x, (width, width, height, height), mode) if height or width else x
        part = self.weight_part.shape[0]
        y = F.conv2d(x[:, :part], self.weight_part, None, self.stride, 0, self.dilation)
        top, left = (d * ((k - 1) // 2) for d, k in zip(self.dilation, self.kernel_size, strict=True))
        passed = x[:, part:, top :: self.stride[0], left :: self.stride[1]][..., : y.shape[2], : y.shape[3]]
        y = F.conv2d(torch.cat([y, passed], 1), self.weight_pointwise)
        return self._plus_bias(y * self.gain.to(y.dtype))

    def _scale_(self, scale: Tensor) -> bool:
        self.weight_pointwise = nn.Parameter(self.weight_pointwise.detach() * scale.view(-1, 1, 1, 1), False)
        return True
