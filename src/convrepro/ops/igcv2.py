"""Interleaved structured sparse convolutions. Xie, Wang, Zhang, Lai, Hong, Qi: "IGCV2: Interleaved Structured Sparse
Convolutional Neural Networks", CVPR 2018 (arXiv 1804.06202).
"""

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from convrepro.ops.base import Pair, divisors, scaled
from convrepro.ops.deployed import conv, geometry, pointwise_layers
from convrepro.ops.igc import MIX, Form, InterleavedConv, pointwise, shuffle

DEFAULT_LAYERS = 3


class IGCV2Conv2d(InterleavedConv):
    """A channel-wise KxK convolution, followed by 1x1 group convolutions with permutations between them.

    Input (B, C, H, W), output (B, N, H', W') as `nn.Conv2d`. There are L group convolutions, including the channel-wise
    one. The l-th has K_l channels in each of its branches, with K_1 = 1. Under the complementary condition, K_2 * ... *
    K_L = C, there is exactly one path from each channel to each filter: if the index of a channel is written with the
    digits d_2, ..., d_L (of radix K_l, d_2 counting fastest), the l-th convolution changes digit l and no other.

    The last convolution changes the number of channels to N; its branches have K_L inputs and K_L*N/C outputs. With
    `channel_multiplier` the channel-wise convolution does so instead, and makes N/C channels from each channel. No
    later convolution mixes these, so that there is still exactly one path. (The paper's rule for C != N is unknown.)
    MACs for H' x W' positions: `H' * W' * (C * (K^2 + K_2 + ... + K_{L-1}) + N*K_L)`, with `channel_multiplier`
    `H' * W' * N * (K^2 + K_2 + ... + K_L)`. Stride, padding and dilation belong to the channel-wise convolution. The
    bias is added to the final output.

    With layers=2 the operator is a depthwise convolution followed by a dense 1x1 convolution, which for K=1 is a
    standard convolution. There is no `from_conv`: one weight is a factor of several blocks of the dense weight, so that
    the nearest operator has no closed form.

    Knobs:
        layers: L, at least 2. None stands for 3, or for the number that `branch_channels` implies.
        branch_channels: K_2, ..., K_L. None selects the factors of C, each at least 2, that need the fewest weights.
            For C=N they are the paper's balance, K_2 = ... = K_L = C^(1/(L-1)), if that is an integer.
        complementary: False allows `branch_channels` that violate the complementary condition. Some pairs of a channel
            and a filter then have no path or several paths.
        channel_multiplier: whether the channel-wise convolution has N output channels; N must be a multiple of C.
        form: how the output is computed; the result is the same. "plain" permutes the activations between the group
            convolutions. "folded" computes the 1x1 convolutions as dense ones whose weights contain the permutations.
            "auto" uses the dense ones for few groups.

    Parameters: `weight_channelwise` (C or N, 1, K, K); `weights_1x1`, a list of (C or N, K_l, 1, 1); `bias` (N,).

    Raises ValueError for groups other than 1, layers below 2, branch channels that do not fit the channels, and an
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
        layers: int | None = None,
        branch_channels: Sequence[int] | None = None,
        complementary: bool = True,
        channel_multiplier: bool = False,
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
        self.layers = layers
        self.branch_channels = None if branch_channels is None else self._as_tuple(branch_channels)
        self.complementary = complementary
        self.channel_multiplier = channel_multiplier
        if channel_multiplier and out_channels % in_channels:
            raise ValueError(
                f"channel_multiplier=True: out_channels={out_channels} must be a multiple of in_channels={in_channels}"
                "; valid: False"
            )
        self._width = out_channels if channel_multiplier else in_channels
        if layers is not None and (not isinstance(layers, int) or layers < 2):
            raise ValueError(
                f"layers={layers!r} must be at least 2: a channel-wise convolution and one 1x1 convolution"
            )
        given = self.branch_channels
        self._branch_channels = self._balanced() if given is None else self._checked(given)
        self.weight_channelwise = self._weight(self._width, 1, self.kernel_size)
        filters = [self._width] * (len(self._branch_channels) - 1) + [out_channels]
        self.weights_1x1 = nn.ParameterList(map(self._weight, filters, self._branch_channels))
        self.reset_parameters()

    def _as_tuple(self, branch_channels: object) -> tuple[int, ...]:
        if not isinstance(branch_channels, Sequence):
            raise ValueError(
                f"branch_channels={branch_channels!r} must list a number for each 1x1 convolution; "
                f"valid: [{self.in_channels}], ..., or None"
            )
        return tuple(branch_channels)

    def _balanced(self) -> tuple[int, ...]:
        """Returns the branch channels that need the fewest weights. Raises ValueError if no number fits."""
        if not self.complementary:
            raise ValueError("complementary=False needs branch_channels, but they are None; valid: True")
        layers = self.layers or DEFAULT_LAYERS
        choices = [k for k in _factorisations(self.in_channels, layers - 1) if self._fits_last(k[-1])]
        if not choices:
            fits = {
                n: any(self._fits_last(k[-1]) for k in _factorisations(self.in_channels, n - 1))
                for n in range(2, self.in_channels.bit_length() + 2)
            }
            valid = [n for n, fit in fits.items() if fit]
            raise ValueError(
                f"layers={layers}: in_channels={self.in_channels} must be a product of {layers - 1} factors of at "
                f"least 2, with {self._rule_of_last()}; valid: {', '.join(map(str, valid))}"
            )
        return min(choices, key=lambda k: self._width * sum(k[:-1]) + self.out_channels * k[-1])

    def _checked(self, given: tuple[int, ...]) -> tuple[int, ...]:
        """Returns the given branch channels. Raises ValueError if they do not fit the channels."""
        width = self._width
        shown = f"branch_channels={list(given)}"
        if not given or self.layers not in (None, len(given) + 1):
            raise ValueError(f"{shown} must give one number for each 1x1 convolution, layers - 1; layers={self.layers}")
        divide = divisors(width)[1:]
        if any(not isinstance(k, int) or k not in divide for k in given):
            raise ValueError(f"{shown} must divide {width} channels; valid: {', '.join(map(str, divide))}")
        if not self._fits_last(given[-1]):
            raise ValueError(f"{shown} has a last factor that does not fit; valid: {self._rule_of_last()}")
        product = math.prod(given)
        if self.complementary and product != self.in_channels:
            raise ValueError(
                f"{shown} must have the product in_channels={self.in_channels}, not {product}, for one path between "
                "each channel and filter (complementary condition); valid: such factors, or complementary=False"
            )
        return given

    def _fits_last(self, last: int) -> bool:
        return last * self.out_channels % self._width == 0

    def _rule_of_last(self) -> str:
        ratio = f"{self.out_channels}/{self._width}"
        return f"a last factor whose product with out_channels/in_channels = {ratio} is an integer"

    def _convolutions(self) -> list[tuple[nn.Parameter, int]]:
        pointwise = [(w, self._width // k) for w, k in zip(self.weights_1x1, self._branch_channels, strict=True)]
        return [(self.weight_channelwise, self.in_channels), *pointwise]

    def dense_weight(self) -> Tensor:
        """Returns the weight (N, C, K, K) of the equivalent standard convolution, detached."""
        with torch.no_grad():
            kernels = self.weight_channelwise.flatten(1)
            each = torch.eye(self._width, dtype=kernels.dtype, device=kernels.device)[..., None, None]
            mixing = self._mix(each, None, pointwise).flatten(1).unflatten(0, (self.in_channels, -1))
            dense = torch.einsum("crn,crk->nck", mixing, kernels.unflatten(0, (self.in_channels, -1)))
        return dense.reshape(self.out_channels, self.in_channels, *self.kernel_size)

    def forward(self, x: Tensor) -> Tensor:
        """Applies the group convolutions in the chosen form."""
        x = self._spatial(x, self.weight_channelwise, self.in_channels)
        return self._mix(x, self.bias, MIX[self.form])

    def forward_exact(self, x: Tensor) -> Tensor:
        """Computes the same as `forward` by permuting the activations, without multiplying by structural zeros."""
        return self._mix(self._spatial(x, self.weight_channelwise, self.in_channels), self.bias, pointwise)

    def deployed(self) -> nn.Module:
        """Returns the group convolutions as plain layers; 1x1 weights contain the permutations where that is faster."""
        channelwise = conv(self.weight_channelwise, None, self.in_channels, **geometry(self))
        mixing = [layer for args in self._mixing(self.bias) for layer in pointwise_layers(*args, form=self.form)]
        return nn.Sequential(channelwise, *mixing)

    def _scale_(self, scale: Tensor) -> bool:
        # The rows of the last weight are ordered branch by branch.
        branches = self._width // self._branch_channels[-1]
        self.weights_1x1[-1] = scaled(self.weights_1x1[-1], shuffle(scale, self.out_channels // branches, 0))
        return True

    def _mix(self, x: Tensor, bias: Tensor | None, mix: Callable[..., Tensor]) -> Tensor:
        for args in self._mixing(bias):
            x = mix(x, *args)
        return x

    def _mixing(self, bias: Tensor | None) -> Iterator[tuple[Tensor, int, Tensor | None, int, int]]:
        """Yields the arguments of `igc.pointwise` for each 1x1 convolution.

        Each convolution mixes the digit that counts fastest and makes it the slowest. After the last convolution the
        digits have returned to their positions.
        """
        last = len(self._branch_channels) - 1
        # The channels that a channel multiplier makes from one channel are a digit of their own, which is not mixed.
        before = self.in_channels if self._width > self.in_channels else 1
        for i, (weight, branch) in enumerate(zip(self.weights_1x1, self._branch_channels, strict=True)):
            branches = self._width // branch
            yield weight, branches, bias if i == last else None, before, branches
            before = 1


def _factorisations(number: int, count: int) -> Iterator[tuple[int, ...]]:
    """Yields all ordered ways to write `number` as a product of `count` factors of at least 2; for one, the number."""
    if count == 1:
        yield (number,)
        return
    for factor in range(2, number // 2 + 1):
        if number % factor == 0:
            yield from ((factor, *rest) for rest in _factorisations(number // factor, count - 1))
