"""Interleaved structured sparse convolutions. Xie, Wang, Zhang, Lai, Hong, Qi: "IGCV2: Interleaved Structured Sparse
Convolutional Neural Networks", CVPR 2018 (arXiv 1804.06202).
"""

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from convrepro.ops.base import Pair, divisors, scaled
from convrepro.ops.deployed import conv, geometry, pointwise_layers
from convrepro.ops.igc import MIX, InterleavedConv, pointwise, shuffle

DEFAULT_LAYERS = 3


class IGCV2Conv2d(InterleavedConv):
    """A channel-wise KxK convolution, then 1x1 group convolutions with permutations between them; nothing else.

    Input (B, C, H, W), output (B, N, H', W') as `nn.Conv2d`. There are L group convolutions, the channel-wise one among
    them; the l-th has K_l channels in each of its branches, K_1 = 1. By the complementary condition, K_2 * ... * K_L =
    C, there is exactly one path from each channel to each filter: of a channel's number, written with the digits
    d_2, ..., d_L (d_2 counts fastest, radix K_l), the l-th convolution changes digit l alone.

    The number of channels becomes N in the last convolution, whose branches have K_L inputs and K_L*N/C outputs; with
    `channel_multiplier` already in the channel-wise one, which makes N/C channels of each. No later convolution mixes
    those, so that there is still one path. (The paper's rule for C != N is unknown.) MACs for H' x W' positions:
    `H' * W' * (C * (K^2 + K_2 + ... + K_{L-1}) + N*K_L)`, with `channel_multiplier` `H' * W' * N * (K^2 + K_2 + ... +
    K_L)`. Stride, padding and dilation are the channel-wise convolution's; the bias comes last.

    At layers=2 it is a depthwise convolution and a dense 1x1 convolution, which is a standard convolution where K=1. No
    `from_conv`: one weight is a factor of several blocks of the dense weight, so that no closed form gives the nearest.

    Knobs:
        layers: L, at least 2. None: 3, or as many as `branch_channels` ask for.
        branch_channels: K_2, ..., K_L. None takes the factors of C, each at least 2, with the fewest weights; for C=N
            they are the paper's balance, K_2 = ... = K_L = C^(1/(L-1)), where that is whole.
        complementary: False lifts the complementary condition from `branch_channels`; some pairs of a channel and a
            filter then have no path, or several.
        channel_multiplier: whether the channel-wise convolution makes N channels; N must be a multiple of C.
        form: how it is computed, to the same result. "plain" permutes the activations between group convolutions.
            "folded" computes the 1x1 convolutions as dense ones, with the permutations in their weights. "auto" does so
            for few groups.

    Parameters: `weight_channelwise` (C or N, 1, K, K); `weights_1x1`, a list of (C or N, K_l, 1, 1); `bias` (N,).

    Raises ValueError for groups other than 1, layers below 2, channels that do not fit, or an unknown form.
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
        form: str = "auto",
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
        self.branch_channels = tuple(branch_channels) if isinstance(branch_channels, Sequence) else branch_channels
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
        self._branch_channels = self._balanced() if self.branch_channels is None else self._checked()
        self.weight_channelwise = self._weight(self._width, 1, self.kernel_size)
        filters = [self._width] * (len(self._branch_channels) - 1) + [out_channels]
        self.weights_1x1 = nn.ParameterList(map(self._weight, filters, self._branch_channels))
        self.reset_parameters()

    def _balanced(self) -> tuple[int, ...]:
        """The branch channels with the fewest weights; raises ValueError where there are none."""
        if not self.complementary:
            raise ValueError("complementary=False needs branch_channels, which are None; valid: True")
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
                f"least 2, {self._rule_of_last()}; valid: {', '.join(map(str, valid))}"
            )
        return min(choices, key=lambda k: self._width * sum(k[:-1]) + self.out_channels * k[-1])

    def _checked(self) -> tuple[int, ...]:
        """The given branch channels; raises ValueError where they do not fit."""
        given, width = self.branch_channels, self._width
        if not isinstance(given, tuple):
            raise ValueError(
                f"branch_channels={given!r} must list a number for each 1x1 convolution; valid: [{width}], ..., or None"
            )
        said = f"branch_channels={list(given)}"
        if not given or self.layers not in (None, len(given) + 1):
            raise ValueError(f"{said} must give one number for each 1x1 convolution, layers - 1; layers={self.layers}")
        divide = divisors(width)[1:]
        if any(not isinstance(k, int) or k not in divide for k in given):
            raise ValueError(f"{said} must divide {width} channels; valid: {', '.join(map(str, divide))}")
        if not self._fits_last(given[-1]):
            raise ValueError(f"{said} must have a last factor with {self._rule_of_last()}")
        product = math.prod(given)
        if self.complementary and product != self.in_channels:
            raise ValueError(
                f"{said} must have the product in_channels={self.in_channels}, not {product}, for one path between "
                "each channel and filter (complementary condition); valid: such factors, or complementary=False"
            )
        return given

    def _fits_last(self, last: int) -> bool:
        return last * self.out_channels % self._width == 0

    def _rule_of_last(self) -> str:
        return f"the last times out_channels/in_channels = {self.out_channels}/{self._width} whole"

    def _convolutions(self) -> list[tuple[nn.Parameter, int]]:
        pointwise = [(w, self._width // k) for w, k in zip(self.weights_1x1, self._branch_channels, strict=True)]
        return [(self.weight_channelwise, self.in_channels), *pointwise]

    def dense_weight(self) -> Tensor:
        """The weight (N, C, K, K) of the equal standard convolution; detached."""
        with torch.no_grad():
            kernels = self.weight_channelwise.flatten(1)
            each = torch.eye(self._width, dtype=kernels.dtype, device=kernels.device)[..., None, None]
            mixing = self._mix(each, None, pointwise).flatten(1).unflatten(0, (self.in_channels, -1))
            dense = torch.einsum("crn,crk->nck", mixing, kernels.unflatten(0, (self.in_channels, -1)))
        return dense.reshape(self.out_channels, self.in_channels, *self.kernel_size)

    def forward(self, x: Tensor) -> Tensor:
        """The group convolutions in turn, in the form asked for."""
        x = self._spatial(x, self.weight_channelwise, self.in_channels)
        return self._mix(x, self.bias, MIX[self.form])

    def forward_exact(self, x: Tensor) -> Tensor:
        """As `forward`, permuting the activations; without the multiplications by structural zeros."""
        return self._mix(self._spatial(x, self.weight_channelwise, self.in_channels), self.bias, pointwise)

    def deployed(self) -> nn.Module:
        """The group convolutions as layers, permutations folded into the 1x1 weights where that is faster."""
        channelwise = conv(self.weight_channelwise, None, self.in_channels, **geometry(self))
        mixing = [layer for words in self._mixing(self.bias) for layer in pointwise_layers(*words, form=self.form)]
        return nn.Sequential(channelwise, *mixing)

    def _scale_(self, scale: Tensor) -> bool:
        # Rows of the last weight lie branch by branch.
        branches = self._width // self._branch_channels[-1]
        self.weights_1x1[-1] = scaled(self.weights_1x1[-1], shuffle(scale, self.out_channels // branches, 0))
        return True

    def _mix(self, x: Tensor, bias: Tensor | None, mix: Callable[..., Tensor]) -> Tensor:
        for words in self._mixing(bias):
            x = mix(x, *words)
        return x

    def _mixing(self, bias: Tensor | None) -> Iterator[tuple[Tensor, int, Tensor | None, int, int]]:
        """What `igc.pointwise` wants for each of the 1x1 convolutions. Each mixes the digit that counts fastest, which
        then becomes the slowest; after the last of them, the digits are in their places again.
        """
        last = len(self._branch_channels) - 1
        # The copies that a channel multiplier made of a channel are a digit of their own, which is not to be mixed.
        before = self.in_channels if self._width > self.in_channels else 1
        for i, (weight, branch) in enumerate(zip(self.weights_1x1, self._branch_channels, strict=True)):
            branches = self._width // branch
            yield weight, branches, bias if i == last else None, before, branches
            before = 1


def _factorisations(number: int, count: int) -> Iterator[tuple[int, ...]]:
    """The ways to write `number` as a product of `count` factors of at least 2, in any order; itself for one."""
    if count == 1:
        yield (number,)
        return
    for factor in range(2, number // 2 + 1):
        if number % factor == 0:
            yield from ((factor, *rest) for rest in _factorisations(number // factor, count - 1))
