"""Interleaved group convolutions. Zhang, Qi, Xiao, Wang: "Interleaved Group Convolutions for Deep Neural Networks",
ICCV 2017 (arXiv 1707.02725).
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convrepro.ops.base import Pair, check_divisor, conv_arguments, divisors, scaled
from convrepro.ops.deployed import conv, geometry, pointwise_layers
from convrepro.ops.igc import MIX, InterleavedConv, pointwise, shuffle
from convrepro.ops.init import init_bias_, init_weight_
from convrepro.ops.kxk_plus_1x1 import packed

SECONDARY = ("learned", "sum")


class IGCV1Conv2d(InterleavedConv):
    """A KxK group convolution, then a 1x1 group convolution across its groups; nothing in between.

    Input (B, C, H, W), output (B, N, H', W') as `nn.Conv2d`. The primary convolution has L partitions and brings C
    channels to N. The secondary convolution has N/L partitions of L channels, the m-th of which takes the m-th output
    channel of every primary partition; its outputs go back to the places of its inputs. So there is exactly one path
    from each channel to each filter. MACs for H' x W' positions: `H' * W' * N * (C/L*K^2 + L)`. Stride, padding and
    dilation are the primary convolution's; the bias comes last.

    Special cases:
        primary_partitions=1: the standard convolution, each filter times a weight of its own.
        primary_partitions=C, with N=C: a depthwise convolution, then a dense 1x1 convolution, as in Xception.
        secondary_partitions=1: a group convolution, then a dense 1x1 convolution.
        secondary="sum": group convolutions summed. The first N/L outputs are the standard convolution to N/L filters,
            and the others repeat them.

    Knobs:
        primary_partitions: L; must divide in_channels and out_channels. For C=N the most channels for given weights
            are at L = K*sqrt(C), that is L = M*K^2 for C = L*M; 8 divides the widths of nearly every network.
        secondary_partitions: partitions of the 1x1 convolution; must divide N/L, which None stands for. With fewer,
            each takes several channels of every primary partition; with "sum", None only.
        secondary: "learned", or "sum" for weights fixed at one (and no multiplications).
        form: how it is computed, to the same result. "plain" permutes the activations between group convolutions.
            "folded" computes the 1x1 convolutions as dense ones, with the permutations in their weights. "auto" does so
            for few groups, and on a CPU merges primary partitions of fewer than 8 channels
            (`kxk_plus_1x1.packed`). "sum" has one form.

    Parameters: `weight_primary` (N, C/L, K, K); `weight_secondary` (N, N/secondary_partitions, 1, 1), partition by
    partition, the first of each primary partition before the second of each; None for "sum"; `bias` (N,).

    Raises ValueError for groups other than 1, unfit partitions, an unknown secondary or form.
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
        primary_partitions: int = 8,
        secondary_partitions: int | None = None,
        secondary: str = "learned",
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
        both = f"in_channels={in_channels} and out_channels={out_channels}"
        check_divisor("primary_partitions", primary_partitions, math.gcd(in_channels, out_channels), both)
        self._per_primary = out_channels // primary_partitions
        valid = divisors(self._per_primary)
        given = secondary_partitions is not None
        if given and not (isinstance(secondary_partitions, int) and secondary_partitions in valid):
            raise ValueError(
                f"secondary_partitions={secondary_partitions!r} must divide out_channels / primary_partitions = "
                f"{self._per_primary}, to have channels of every primary partition in each; "
                f"valid: {', '.join(map(str, valid))}, or None for {self._per_primary}"
            )
        if secondary not in SECONDARY:
            raise ValueError(f"secondary={secondary!r} is unknown; valid: {', '.join(SECONDARY)}")
        if secondary == "sum" and secondary_partitions not in (None, self._per_primary):
            raise ValueError(
                f"secondary_partitions={secondary_partitions}: a sum takes one channel of each primary partition; "
                f"valid: {self._per_primary}, or None for it"
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
    def from_conv(
        cls,
        conv: nn.Conv2d,
        *,
        primary_partitions: int = 8,
        secondary_partitions: int | None = None,
        secondary: str = "learned",
        form: str = "auto",
    ) -> "IGCV1Conv2d":
        """The nearest to `conv` in least squares.

        The kernels from a primary to a secondary partition depend on no other weights: those of a learned secondary
        are the block's first singular pair (the first n, where n channels of the primary partition meet), the
        singular value's root on either side; those of a sum are the mean over the block's filters.

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
        with torch.no_grad():
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
            if operator.bias is not None:
                operator.bias.copy_(conv.bias)
        return operator.train(conv.training)

    def reset_parameters(self, init: str = "torch") -> None:
        """Draw fresh weights (schemes: `ops.init`), each of the two as a convolution of its own; where the secondary
        sums, the primary weights have the fans of the whole.

        Raises ValueError for an unknown scheme.
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
        """The weight (N, C, K, K) of the equal standard convolution; detached."""
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
        """The two group convolutions in turn, in the form asked for."""
        if self.form == "plain":
            return self.forward_exact(x)
        primary = self.weight_primary, self.primary_partitions
        return self._run(x, packed(*primary) if x.device.type == "cpu" else primary, MIX[self.form])

    def forward_exact(self, x: Tensor) -> Tensor:
        """As `forward`, permuting the activations; without the multiplications by structural zeros."""
        return self._run(x, (self.weight_primary, self.primary_partitions), pointwise)

    def deployed(self) -> nn.Module:
        """The two group convolutions as layers; for "sum" the operator itself."""
        if self.weight_secondary is None:
            return self
        weight, groups = self.weight_primary, self.primary_partitions
        if self.form != "plain" and weight.device.type == "cpu":
            weight, groups = packed(weight, groups)
        words = self._partitions, self.bias, self.primary_partitions, self._per_primary
        return nn.Sequential(
            conv(weight, None, groups, **geometry(self)),
            *pointwise_layers(self.weight_secondary, *words, form=self.form),
        )

    def _scale_(self, scale: Tensor) -> bool:
        """Filters of a sum repeat each other, and have no place for scales that differ."""
        if self.weight_secondary is None:
            return False
        self.weight_secondary = scaled(self.weight_secondary, shuffle(scale, self.primary_partitions, 0))
        return True

    def _run(self, x: Tensor, primary: tuple[Tensor, int], mix: Callable[..., Tensor]) -> Tensor:
        """`primary`: the weight of the KxK convolution and its number of groups."""
        if self.weight_secondary is None:
            return self._summed(x)
        x = self._spatial(x, *primary)
        shuffles = self.primary_partitions, self._per_primary
        return mix(x, self.weight_secondary, self._partitions, self.bias, *shuffles)

    def _summed(self, x: Tensor) -> Tensor:
        """Group convolutions summed are one convolution over all channels, with as many multiply-accumulates."""
        weight = self.weight_primary.unflatten(0, (self.primary_partitions, -1)).transpose(0, 1).flatten(1, 2)
        y = torch.cat([self._spatial(x, weight, 1)] * self.primary_partitions, 1)
        return y if self.bias is None else y + self.bias[:, None, None].to(y.dtype)
