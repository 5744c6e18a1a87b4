"""Interleaved group convolutions. Zhang, Qi, Xiao, Wang: "Interleaved Group Convolutions for Deep Neural Networks",
ICCV 2017 (arXiv 1707.02725).
"""

import math
from collections.abc import Callable
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import Self

from convrepro.ops.base import Pair, check_choice, check_divisor, conv_arguments, divisors, scaled
from convrepro.ops.deployed import conv, geometry, pointwise_layers
from convrepro.ops.igc import MIX, Form, InterleavedConv, pointwise, shuffle
from convrepro.ops.init import init_bias_, init_weight_
from convrepro.ops.kxk_plus_1x1 import packed

Secondary = Literal["learned", "sum"]
SECONDARY = get_args(Secondary)


class IGCV1Conv2d(InterleavedConv):
    """A KxK group convolution, followed by a 1x1 group convolution across the groups of the first.

    Input (B, C, H, W), output (B, N, H', W') as `nn.Conv2d`. The primary convolution has L partitions and maps C
    channels to N. The secondary convolution has N/L partitions of L channels; the m-th partition takes the m-th output
    channel of every primary partition, and its outputs return to the positions of its inputs. There is therefore
    exactly one path from each channel to each filter. MACs for H' x W' positions: `H' * W' * N * (C/L*K^2 + L)`.
    Stride, padding and dilation belong to the primary convolution. The bias is added to the final output.

    Special cases:
        primary_partitions=1: the standard convolution, with each filter multiplied by one more weight.
        primary_partitions=C, with N=C: a depthwise convolution followed by a dense 1x1 convolution, as in Xception.
        secondary_partitions=1: a group convolution followed by a dense 1x1 convolution.
        secondary="sum": the sum of group convolutions. The first N/L outputs are the standard convolution to N/L
            filters, and the other outputs repeat them.

    Knobs:
        primary_partitions: L; it must divide in_channels and out_channels. For C=N and a given number of weights, the
            number of channels is largest at L = K*sqrt(C), that is L = M*K^2 for C = L*M. The default 8 divides the
            widths of nearly every network.
        secondary_partitions: partitions of the 1x1 convolution; it must divide N/L. None stands for N/L. With fewer
            partitions, each takes several channels of every primary partition. With "sum" it must be None or N/L.
        secondary: "learned", or "sum" for weights that are fixed at one (and need no multiplications).
        form: how the output is computed; the result is the same. "plain" permutes the activations between the group
            convolutions. "folded" computes the 1x1 convolution as a dense one whose weight contains the permutations.
            "auto" uses the dense one for few groups, and on a CPU merges primary partitions of fewer than 8 channels
            (`kxk_plus_1x1.packed`). "sum" has only one form.

    Parameters: `weight_primary` (N, C/L, K, K); `weight_secondary` (N, N/secondary_partitions, 1, 1), partition by
    partition, within which the first channel of each primary partition comes before the second of each (None for
    "sum"); `bias` (N,).

    Raises ValueError for groups other than 1, partitions that do not fit the channels, and an unknown secondary or
    form.
    """

    weight_secondary: nn.Parameter | None

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
        primary_partitions: int = 8,
        secondary_partitions: int | None = None,
        secondary: Secondary = "learned",
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
        both = f"in_channels={in_channels} and out_channels={out_channels}"
        check_divisor("primary_partitions", primary_partitions, math.gcd(in_channels, out_channels), both)
        self._per_primary = out_channels // primary_partitions
        valid = divisors(self._per_primary)
        given = secondary_partitions is not None
        if given and not (isinstance(secondary_partitions, int) and secondary_partitions in valid):
            raise ValueError(
                f"secondary_partitions={secondary_partitions!r} must divide out_channels / primary_partitions = "
                f"{self._per_primary}, so that each contains channels of every primary partition; "
                f"valid: {', '.join(map(str, valid))}, or None for {self._per_primary}"
            )
        check_choice("secondary", secondary, SECONDARY)
        if secondary == "sum" and secondary_partitions not in (None, self._per_primary):
            raise ValueError(
                f"secondary_partitions={secondary_partitions}: a sum takes one channel of each primary partition; "
                f"valid: {self._per_primary}, or None for {self._per_primary}"
            )
        self.primary_partitions = primary_partitions
        self.secondary_partitions = secondary_partitions
        self.secondary = secondary
        self._partitions = secondary_partitions or self._per_primary
        self._fused = out_channels // self._partitions
        self.weight_primary = self._weight(out_channels, in_channels // primary_partitions, self.kernel_size)
        self.weight_secondary = self._weight(out_channels, self._fused) if secondary == "learned" else None
        self.reset_parameters()

    @classmethod
    @torch.no_grad()
    def from_conv(
        cls,
        conv: nn.Conv2d,
        *,
        primary_partitions: int = 8,
        secondary_partitions: int | None = None,
        secondary: Secondary = "learned",
        form: Form = "auto",
    ) -> Self:
        """Returns the operator that is nearest to `conv` in least squares over the weight.

        Each pair of a primary and a secondary partition is a block of kernels that depends on no other weights. With
        a learned secondary, the solution of a block is its first singular pair (the first n pairs, if n channels of
        the primary partition enter the secondary one), where each vector is multiplied by the square root of the
        singular value. With a sum, it is the mean over the filters of the block.

        Raises ValueError as the constructor does.
        """
        operator = cls(
            **conv_arguments(conv),
            primary_partitions=primary_partitions,
            secondary_partitions=secondary_partitions,
            secondary=secondary,
            form=form,
        )
        first, second, rank = primary_partitions, operator._partitions, operator._fused // primary_partitions
        blocks = conv.weight.reshape(first, second, rank, first, -1).permute(1, 3, 2, 0, 4).flatten(2, 3)
        if operator.weight_secondary is None:
            primary = blocks.mean(2)
        else:
            blocks = blocks.to(torch.promote_types(blocks.dtype, torch.float32))
            u, s, vh = torch.linalg.svd(blocks, full_matrices=False)
            root, missing = s[..., :rank].sqrt(), max(rank - s.shape[-1], 0)
            primary = F.pad(root[..., None] * vh[..., :rank, :], (0, 0, 0, missing))
            mixing = F.pad(u[..., :rank] * root[..., None, :], (0, missing)).permute(0, 2, 3, 1)
            operator.weight_secondary.copy_(mixing.reshape_as(operator.weight_secondary))
        operator.weight_primary.copy_(primary.transpose(0, 1).reshape_as(operator.weight_primary))
        return operator._with_bias_and_mode_of(conv)

    def reset_parameters(self, init: str = "torch") -> None:
        """Draws fresh weights (schemes: `ops.init`) for each of the two convolutions, with its own fans.

        With secondary="sum", the primary weights have the fans of the whole operator. Raises ValueError for an unknown
        scheme.
        """
        if self.weight_secondary is not None:
            super().reset_parameters(init)
            return
        fan_in = self.weight_primary[0].numel() * self._fused
        fan_out = self.weight_primary[:, 0].numel() // self.primary_partitions * self._fused
        init_weight_(self.weight_primary, init, fan_in=fan_in, fan_out=fan_out)
        init_bias_(self.bias, init, fan_in=fan_in)

    def _convolutions(self) -> list[tuple[nn.Parameter, int]]:
        both = [(self.weight_primary, self.primary_partitions), (self.weight_secondary, self._partitions)]
        return [(weight, groups) for weight, groups in both if weight is not None]

    def dense_weight(self) -> Tensor:
        """Returns the weight (N, C, K, K) of the equivalent standard convolution, detached."""
        with torch.no_grad():
            primary = self.weight_primary.flatten(1).unflatten(0, (self.primary_partitions, self._partitions, -1))
            if self.weight_secondary is None:
                mixing = primary.new_ones(self._partitions, self._fused, self._fused)
            else:
                mixing = self.weight_secondary.view(self._partitions, self._fused, self._fused)
            mixing = mixing.unflatten(2, (-1, self.primary_partitions)).unflatten(1, (-1, self.primary_partitions))
            dense = torch.einsum("mvkul,lmuc->kmvlc", mixing, primary)
        return dense.reshape(self.out_channels, self.in_channels, *self.kernel_size)

    def forward(self, x: Tensor) -> Tensor:
        """Applies the two group convolutions in the chosen form."""
        if self.form == "plain":
            return self.forward_exact(x)
        primary = self.weight_primary, self.primary_partitions
        return self._run(x, packed(*primary) if x.device.type == "cpu" else primary, MIX[self.form])

    def forward_exact(self, x: Tensor) -> Tensor:
        """Computes the same as `forward` by permuting the activations, without multiplying by structural zeros."""
        return self._run(x, (self.weight_primary, self.primary_partitions), pointwise)

    def deployed(self) -> nn.Module:
        """Returns the two group convolutions as plain layers; for "sum" the operator itself."""
        if self.weight_secondary is None:
            return self
        primary: tuple[Tensor, int] = self.weight_primary, self.primary_partitions
        if self.form != "plain" and self.weight_primary.device.type == "cpu":
            primary = packed(*primary)
        weight, groups = primary
        mixing = self._partitions, self.bias, self.primary_partitions, self._per_primary
        return nn.Sequential(
            conv(weight, None, groups, **geometry(self)),
            *pointwise_layers(self.weight_secondary, *mixing, form=self.form),
        )

    def _scale_(self, scale: Tensor) -> bool:
        if self.weight_secondary is None:  # The outputs of a sum repeat each other and cannot have different scales.
            return False
        self.weight_secondary = scaled(self.weight_secondary, shuffle(scale, self.primary_partitions, 0))
        return True

    def _run(self, x: Tensor, primary: tuple[Tensor, int], mix: Callable[..., Tensor]) -> Tensor:
        """Applies the KxK convolution with the weight and the number of groups in `primary`, then mixes by `mix`."""
        if self.weight_secondary is None:
            return self._summed(x)
        x = self._spatial(x, *primary)
        shuffles = self.primary_partitions, self._per_primary
        return mix(x, self.weight_secondary, self._partitions, self.bias, *shuffles)

    def _summed(self, x: Tensor) -> Tensor:
        """Computes the sum of the group convolutions as one convolution over all channels, with the same MACs."""
        weight = self.weight_primary.unflatten(0, (self.primary_partitions, -1)).transpose(0, 1).flatten(1, 2)
        return self._plus_bias(torch.cat([self._spatial(x, weight, 1)] * self.primary_partitions, 1))
