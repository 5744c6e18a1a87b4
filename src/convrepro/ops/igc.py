"""Base class and functions of the interleaved group convolutions.

An interleaved group convolution is a sequence of group convolutions with permutations of the channels between them,
without norms or activations, that together connect every filter to every channel.
"""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convrepro.ops.base import ConvOperator, Pair, check_choice, empty_parameter
from convrepro.ops.init import init_bias_, init_weight_

FOLDED_GROUPS = 4
"""Up to this number of groups, a dense 1x1 convolution is faster than permuting the activations (measured on a CPU)."""

Form = Literal["auto", "plain", "folded"]
FORMS = get_args(Form)
"""The values of the knob `form`: ways to compute an interleaved group convolution, all with the same result."""


def shuffle(x: Tensor, groups: int, dim: int) -> Tensor:
    """Applies `F.channel_shuffle` along any dimension, of size C.

    `out[j] = in[(j mod groups) * C/groups + j div groups]`. Shuffling into C/groups groups inverts it.
    """
    return x.unflatten(dim, (groups, -1)).transpose(dim, dim + 1).flatten(dim, dim + 1)


def channel_shuffle(x: Tensor, groups: int) -> Tensor:
    """Applies `F.channel_shuffle` to (B, C, H, W) or (C, H, W) and keeps the memory format of `x`.

    In channels_last, a view (B, H, W, C) is shuffled in two cases: for 2 or 3 groups, where torch's own function takes
    twice as long (measured on a CPU), and on every device other than a CPU, where torch's own function loses the
    memory format (according to its source, whose kernel that keeps it exists for CPUs only; not measured on a GPU).
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
    """The function `channel_shuffle` as a layer."""

    def forward(self, x: Tensor) -> Tensor:
        return channel_shuffle(x, self.groups)


def pointwise(
    x: Tensor, weight: Tensor, groups: int, bias: Tensor | None = None, before: int = 1, after: int = 1
) -> Tensor:
    """Applies a 1x1 group convolution between two channel shuffles, into `before` and into `after` groups.

    `bias` (N,) follows the order of the final output.
    """
    if bias is not None:
        bias = shuffle(bias, bias.shape[0] // after, 0)
    return channel_shuffle(F.conv2d(channel_shuffle(x, before), weight, bias, groups=groups), after)


def pointwise_folded(
    x: Tensor, weight: Tensor, groups: int, bias: Tensor | None = None, before: int = 1, after: int = 1
) -> Tensor:
    """Computes the same as `pointwise` by one dense 1x1 convolution.

    Its weight contains both shuffles, and zeros where the groups are not connected.
    """
    blocks = torch.diag_embed(weight.unflatten(0, (groups, -1)).flatten(2).movedim(0, -1))
    dense = blocks.permute(2, 0, 3, 1).flatten(2).flatten(0, 1)
    dense = shuffle(shuffle(dense, dense.shape[1] // before, 1), after, 0)
    return F.conv2d(x, dense[..., None, None], bias)


def pointwise_fast(x: Tensor, weight: Tensor, groups: int, *args: Any, **kwargs: Any) -> Tensor:
    """Computes the same as `pointwise`, by `pointwise_folded` for up to `FOLDED_GROUPS` groups."""
    form = pointwise_folded if groups <= FOLDED_GROUPS else pointwise
    return form(x, weight, groups, *args, **kwargs)


MIX: dict[str, Callable[..., Tensor]] = {"auto": pointwise_fast, "plain": pointwise, "folded": pointwise_folded}
"""The function that computes the 1x1 convolutions, for each form."""


class InterleavedConv(ConvOperator):
    """Base class of the interleaved group convolutions. A bias is added to the output of the last convolution.

    Raises ValueError for groups other than 1, for an unknown form, and as `ConvOperator` does.
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
        form: Form,
    ) -> None:
        check_choice("form", form, FORMS)
        self._check_ungrouped(groups)
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, padding_mode)
        self.form = form
        self._device = device
        self._dtype = dtype
        self.bias = empty_parameter(out_channels, device=device, dtype=dtype) if bias else None

    def _weight(self, filters: int, channels: int, kernel_size: tuple[int, int] = (1, 1)) -> nn.Parameter:
        """Returns an uninitialised weight of a group convolution, in the shape that `nn.Conv2d` gives it."""
        return empty_parameter(filters, channels, *kernel_size, device=self._device, dtype=self._dtype)

    @abstractmethod
    def _convolutions(self) -> Sequence[tuple[nn.Parameter, int]]:
        """Returns the weight and the number of groups of each group convolution that has weights, in order."""

    def reset_parameters(self, init: str = "torch") -> None:
        """Draws fresh weights (schemes: `ops.init`) for each group convolution, with its own fans.

        Raises ValueError for an unknown scheme.
        """
        for weight, groups in self._convolutions():
            init_weight_(weight, init, fan_in=weight[0].numel(), fan_out=weight[:, 0].numel() // groups)
        init_bias_(self.bias, init, fan_in=weight[0].numel())

    def macs(self, out_h: int, out_w: int) -> int:
        """Returns the multiply-accumulates for one image: one for each weight and output position."""
        return out_h * out_w * sum(weight.numel() for weight, _ in self._convolutions())

    def _spatial(self, x: Tensor, weight: Tensor, groups: int) -> Tensor:
        """Applies the KxK group convolution with the operator's stride, padding and dilation."""
        x, padding = self._padded(x)
        return F.conv2d(x, weight, None, self.stride, padding, self.dilation, groups)
