"""Interleaved low-rank group convolutions. Sun, Li, Liu, Wang: "IGCV3: Interleaved Low-Rank Group Convolutions for
Efficient Deep Neural Networks", BMVC 2018 (arXiv 1806.00178).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convrepro.ops.base import Pair, check_divisor, divisors, scaled
from convrepro.ops.deployed import conv, geometry, pointwise_layers
from convrepro.ops.igc import MIX, Form, InterleavedConv, channel_shuffle, pointwise, shuffle


class IGCV3Conv2d(InterleavedConv):
    """A 1x1 group convolution to t times the channels, a channel-wise KxK convolution and a 1x1 group convolution.

    There are no norms or activations between them. (The networks of `zoo.igcv3` build the paper's block, which has
    both, without this operator.)

    Input (B, C, H, W), output (B, N, H', W') as `nn.Conv2d`. The t*C output channels of the first convolution, with G1
    groups, are shuffled as in the authors' code, so that each of the G2 groups of the last convolution takes equally
    many channels from each of the G1 groups. Each pair of a channel and a filter therefore has `t*C/(G1*G2)` paths;
    this is the loose complementary condition on super-channels of t channels. Stride, padding and dilation belong to
    the channel-wise convolution, the bias to the last one.

    MACs for H x W input and H' x W' output positions: `H * W * t*C*C/G1 + H' * W' * t*C * (K^2 + N/G2)`.

    For K=1 the operator is a standard convolution of rank t*C/(G1*G2) between each group of channels and each group of
    filters. There is no `from_conv`: for K > 1 the nearest operator is the decomposition of a tensor into this number
    of outer products, which has no closed form and may not exist.

    Knobs:
        expansion: t, an integer of at least 1.
        groups_in: G1; it must divide in_channels.
        groups_out: G2; it must divide out_channels. G1*G2 must divide t*C.
        form: how the output is computed; the result is the same. "plain" shuffles the activations. "folded" computes
            the last convolution as a dense one whose weight contains the shuffle. "auto" uses the dense one for few
            groups.

    Parameters: `weight_expand` (t*C, C/G1, 1, 1); `weight_depthwise` (t*C, 1, K, K) and `weight_project` (N, t*C/G2, 1,
    1), both in the shuffled order; `bias` (N,).

    Raises ValueError for groups other than 1, an expansion below 1, groups that do not fit the channels, and an
    unknown form.
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
        expansion: int = 6,
        groups_in: int = 2,
        groups_out: int = 2,
        form: Form = "auto",
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
            form,
        )
        if not isinstance(expansion, int) or expansion < 1:
            raise ValueError(f"expansion={expansion!r} must be an integer of at least 1; valid: 1, 2, 3, ...")
        check_divisor("groups_in", groups_in, in_channels, f"in_channels={in_channels}")
        check_divisor("groups_out", groups_out, out_channels, f"out_channels={out_channels}")
        self._width = expansion * in_channels
        if self._width % (groups_in * groups_out):
            choices = ", ".join(str(g) for g in divisors(out_channels) if self._width % (groups_in * g) == 0)
            raise ValueError(
                f"groups_out={groups_out} times groups_in={groups_in} must divide expansion * in_channels = "
                f"{self._width}; valid: {choices}"
            )
        self.expansion = expansion
        self.groups_in = groups_in
        self.groups_out = groups_out
        self.weight_expand = self._weight(self._width, in_channels // groups_in)
        self.weight_depthwise = self._weight(self._width, 1, self.kernel_size)
        self.weight_project = self._weight(out_channels, self._width // groups_out)
        self.reset_parameters()

    def _convolutions(self) -> list[tuple[nn.Parameter, int]]:
        return [
            (self.weight_expand, self.groups_in),
            (self.weight_depthwise, self._width),
            (self.weight_project, self.groups_out),
        ]

    def macs(self, out_h: int, out_w: int) -> int:
        """Returns the multiply-accumulates for one image.

        The first convolution acts on the positions of the input. They are counted for the largest input whose output
        has out_h x out_w positions (with "same" padding, `stride` times the output).
        """
        axes = zip((out_h, out_w), self.stride, self.dilation, self.kernel_size, self.padding, strict=True)
        in_h, in_w = (out * s + d * (k - 1) - 2 * p for out, s, d, k, p in axes)
        after = self.weight_depthwise.numel() + self.weight_project.numel()
        return in_h * in_w * self.weight_expand.numel() + out_h * out_w * after

    def dense_weight(self) -> Tensor:
        """Returns the weight (N, C, K, K) of the equivalent standard convolution, detached."""
        with torch.no_grad():
            expand, project = (
                torch.block_diag(*weight.flatten(1).chunk(groups))
                for weight, groups in ((self.weight_expand, self.groups_in), (self.weight_project, self.groups_out))
            )
            expand = shuffle(expand, self.groups_in, 0)
            return torch.einsum("ne,euv,ec->ncuv", project, self.weight_depthwise[:, 0], expand)

    def forward(self, x: Tensor) -> Tensor:
        """Applies the three convolutions in the chosen form."""
        x = F.conv2d(x, self.weight_expand, groups=self.groups_in)
        if self.form == "plain":
            x = self._spatial(channel_shuffle(x, self.groups_in), self.weight_depthwise, self._width)
            return pointwise(x, self.weight_project, self.groups_out, self.bias)
        # A channel-wise convolution commutes with a permutation, so its kernels are permuted, not the activations.
        kernels = shuffle(self.weight_depthwise, self._width // self.groups_in, 0)
        x = self._spatial(x, kernels, self._width)
        return MIX[self.form](x, self.weight_project, self.groups_out, self.bias, before=self.groups_in)

    def deployed(self) -> nn.Module:
        """Returns the three convolutions as plain layers.

        The last two weights contain the permutation where that is faster.
        """
        kernels = shuffle(self.weight_depthwise, self._width // self.groups_in, 0)
        return nn.Sequential(
            conv(self.weight_expand, None, self.groups_in),
            conv(kernels, None, self._width, **geometry(self)),
            *pointwise_layers(self.weight_project, self.groups_out, self.bias, before=self.groups_in, form=self.form),
        )

    def _scale_(self, scale: Tensor) -> bool:
        self.weight_project = scaled(self.weight_project, scale)
        return True

    def forward_exact(self, x: Tensor) -> Tensor:
        """Computes the same as `forward` by permuting the activations, without multiplying by structural zeros.

        For the first convolution, the input is padded with zeros to the largest input that has the same output size,
        so that the convolution executes what `macs` counts.
        """
        height, width = x.shape[2:]
        axes = zip((height, width), self.stride, self.dilation, self.kernel_size, self.padding, strict=True)
        missing_h, missing_w = (-(size + 2 * p - d * (k - 1)) % s for size, s, d, k, p in axes)
        x = F.pad(x, (0, missing_w, 0, missing_h))
        x = F.conv2d(x, self.weight_expand, groups=self.groups_in)[:, :, :height, :width]
        x = self._spatial(channel_shuffle(x, self.groups_in), self.weight_depthwise, self._width)
        return pointwise(x, self.weight_project, self.groups_out, self.bias)
