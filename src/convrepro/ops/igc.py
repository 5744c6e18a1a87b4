"""What the interleaved group convolutions share: group convolutions in turn, with permutations of the channels but no
norm and no activation in between, which together connect every filter to every channel.
"""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convrepro.ops.base import ConvOperator, Pair
from convrepro.ops.init import init_bias_, init_weight_

FOLDED_GROUPS = 4
"""Up to so many groups, one dense 1x1 convolution takes less time than permuting the activations (measured on CPU)."""

FORMS = ("auto", "plain", "folded")
"""How an interleaved group convolution can be computed, to the same result; the values of the knob `form`."""


def shuffle(x: Tensor, groups: int, dim: int) -> Tensor:
    """`F.channel_shuffle` along any dimension of size C: `out[j] = in[(j mod groups) * C/groups + j div groups]`.

    With C/groups in the place of `groups` it is the inverse.
    """
    return x.unflatten(dim, (groups, -1)).transpose(dim, dim + 1).flatten(dim, dim + 1)


def channel_shuffle(x: Tensor, groups: int) -> Tensor:
    """`F.channel_shuffle` of (B, C, H, W), or (C, H, W), in the memory format of `x`.

    In channels_last it is done on a view (B, H, W, C) for 2 or 3 groups, which take torch twice as long (measured on
    CPU), and on every device but a CPU, where torch loses the memory format (by its source, in which the kernel that
    keeps it is for CPUs alone; not measured on a GPU).
    """
    if groups == 1:
        return x
    if x.ndim != 4:
        return shuffle(x, groups, x.ndim - 3)
    channels_last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    if channels_last and (groups < 4 or x.device.type != "cpu"):
        return shuffle(x.movedim(1, 3), groups, 3).movedim(3, 1)
    return F.channel_shuffle(x, groups)


class ChannelShuffle(nn.ChannelShuffle):
    """`channel_shuffle` as a layer."""

    def forward(self, x: Tensor) -> Tensor:
        return channel_shuffle(x, self.groups)


def pointwise(
    x: Tensor, weight: Tensor, groups: int, bias: Tensor | None = None, before: int = 1, after: int = 1
) -> Tensor:
    """A 1x1 group convolution between two channel shuffles, into `before` and `after` groups; `bias` comes last."""
    if bias is not None:
        bias = shuffle(bias, bias.shape[0] // after, 0)
    return channel_shuffle(F.conv2d(channel_shuffle(x, before), weight, bias, groups=groups), after)


def pointwise_folded(
    x: Tensor, weight: Tensor, groups: int, bias: Tensor | None = None, before: int = 1, after: int = 1
) -> Tensor:
    """As `pointwise`, with the shuffles folded into a dense weight, which has zeros between the groups."""
    blocks = torch.diag_embed(weight.unflatten(0, (groups, -1)).flatten(2).movedim(0, -1))
    dense = blocks.permute(2, 0, 3, 1).flatten(2).flatten(0, 1)
    dense = shuffle(shuffle(dense, dense.shape[1] // before, 1), after, 0)
    return F.conv2d(x, dense[..., None, None], bias)


def pointwise_fast(x: Tensor, weight: Tensor, groups: int, *words: Any, **more: Any) -> Tensor:
    """`pointwise_folded` for few groups, else `pointwise`."""
    form = pointwise_folded if groups <= FOLDED_GROUPS else pointwise
    return form(x, weight, groups, *words, **more)


MIX = {"auto": pointwise_fast, "plain": pointwise, "folded": pointwise_folded}
"""The function for the 1x1 convolutions by form."""


class InterleavedConv(ConvOperator):
    """Base of the interleaved group convolutions, which put a bias, if any, at the end.

    Raises ValueError for groups other than 1, an unknown form, and as `ConvOperator` does.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Pair,
        stride: Pair,
        padding: Pair | str,
        dilation: Pair,
        groups: int,
        bias: bool,
        padding_mode: str,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
        form: str,
    ) -> None:
        if form not in FORMS:
            raise ValueError(f"form={form!r} is unknown; valid: {', '.join(FORMS)}")
        if groups != 1:
            raise ValueError(f"groups={groups}: {type(self).__name__} takes the place of a dense convolution; valid: 1")
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, padding_mode)
        self.form = form
        self._factory = {"device": device, "dtype": dtype}
        self.bias = nn.Parameter(torch.empty(out_channels, **self._factory)) if bias else None

    def _weight(self, filters: int, channels: int, kernel_size: tuple[int, int] = (1, 1)) -> nn.Parameter:
        """The weight of a group convolution, in the shape that `nn.Conv2d` gives it; not yet drawn."""
        return nn.Parameter(torch.empty((filters, channels, *kernel_size), **self._factory))

    @abstractmethod
    def _convolutions(self) -> Sequence[tuple[nn.Parameter, int]]:
        """Weight and number of groups of each group convolution that has weights, in their order."""

    def reset_parameters(self, init: str = "torch") -> None:
        """Draw fresh weights (schemes: `ops.init`), each of the group convolutions as one of its own.

        Raises ValueError for an unknown scheme.
        """
        for weight, groups in self._convolutions():
            init_weight_(weight, init, fan_in=weight[0].numel(), fan_out=weight[:, 0].numel() // groups)
        init_bias_(self.bias, init, fan_in=weight[0].numel())

    def macs(self, out_h: int, out_w: int) -> int:
        """Multiply-accumulates for one image: one for each weight and output position."""
        return out_h * out_w * sum(weight.numel() for weight, _ in self._convolutions())

    def _spatial(self, x: Tensor, weight: Tensor, groups: int) -> Tensor:
        """The KxK group convolution with the operator's stride, padding and dilation."""
        x, padding = self._padded(x)
        return F.conv2d(x, weight, None, self.stride, padding, self.dilation, groups)
