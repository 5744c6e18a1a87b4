"""Low-rank convolutions: the product of two convolutions with few channels between them.

The spatial scheme is scheme 2 of Jaderberg, Vedaldi, Zisserman: "Speeding up Convolutional Neural Networks with Low
Rank Expansions", 2014 (arXiv 1405.3866), solved in least squares by a singular value decomposition as in Tai et al.
2016 (arXiv 1511.06067). The channel scheme decomposes the filters as one matrix, as Denton et al. 2014 (arXiv
1404.0736) and Zhang et al. 2016 (arXiv 1505.06798) do, without their clustering and without data.
"""

from collections.abc import Mapping
from typing import Any, Literal, TypedDict, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import Self

from convrepro.ops.base import ConvOperator, Pair, check_choice, conv_arguments, empty_parameter, scaled
from convrepro.ops.deployed import conv
from convrepro.ops.init import init_bias_, init_weight_

Scheme = Literal["channel", "spatial"]
SCHEMES = get_args(Scheme)


class _Geometry(TypedDict, total=False):
    """The stride, padding and dilation of one of the two convolutions."""

    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]


class LowRankConv2d(ConvOperator):
    """Two convolutions with R channels between them: M -> R -> N.

    | scheme | first | second | full rank | MACs for H' x W' positions |
    |---|---|---|---|---|
    | `channel` | KxK | 1x1 | min(N, M*K*K) | `H' * W' * R * (M*K*K + N)` |
    | `spatial` | Kx1 (K rows) | 1xK | min(M*K, N*K) | `H' * R * (W * M*K + W' * N*K)` |

    Input (B, M, H, W), output (B, N, H', W') as `nn.Conv2d`. The operator equals the standard convolution with the
    weight `dense_weight()`. At full rank every standard convolution has this form. In the spatial scheme the first
    convolution has the vertical stride, padding and dilation, and the second one has the horizontal ones. W is the
    width between the two: the width of the part of the input that windows reach. If inputs of several widths have the
    same output width (horizontal stride above 1), `macs` counts the widest, and `forward_exact` executes it.

    Parameters: `weight_first` (R, M, K, K or 1), `weight_second` (N, R, 1, 1 or K), `bias` (N,).

    Knobs:
        rank: R as an integer from 1 to the full rank, or as a share of the full rank, a float in (0, 1].
        energy: an alternative to `rank`, which must then be None. It is a share of the sum of squared singular values,
            in (0, 1]. In each layer `from_conv` selects the smallest rank that keeps at least this share, and
            `for_state` recovers this rank from a state dict.
        scheme: "channel" or "spatial".

    The attribute `inner_channels` is R. Raises ValueError for groups other than 1, a rank or an energy outside its
    range, both or neither of them, an unknown scheme, and for an energy in the constructor, which has no weights to
    select the rank from.
    """

    rank: int | float | None
    energy: float | None

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
        rank: int | float | None = 0.25,
        energy: float | None = None,
        scheme: Scheme = "channel",
    ) -> None:
        self._check_ungrouped(groups)
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, padding_mode)
        check_choice("scheme", scheme, SCHEMES)
        if energy is not None:
            _check_energy(rank, energy)
            raise ValueError(f"energy={energy!r} needs trained weights: start from weights, or give rank instead")
        self.scheme = scheme
        self.rank = rank
        self.energy = energy
        height, width = self.kernel_size
        first, second = ((height, width), (1, 1)) if scheme == "channel" else ((height, 1), (1, width))
        full = min(in_channels * first[0] * first[1], out_channels * second[1])
        self.inner_channels = _resolve_rank(rank, full)
        self.weight_first = empty_parameter(self.inner_channels, in_channels, *first, device=device, dtype=dtype)
        self.weight_second = empty_parameter(out_channels, self.inner_channels, *second, device=device, dtype=dtype)
        self.bias = empty_parameter(out_channels, device=device, dtype=dtype) if bias else None
        self.reset_parameters()

    @classmethod
    @torch.no_grad()
    def from_conv(
        cls,
        conv: nn.Conv2d,
        *,
        rank: int | float | None = 0.25,
        energy: float | None = None,
        scheme: Scheme = "channel",
    ) -> Self:
        """Returns the pair of convolutions that is nearest to `conv` in least squares over the weight.

        It consists of the first R singular pairs; each vector is multiplied by the square root of the singular value.
        Raises ValueError as the constructor does, except for an energy.
        """
        # The matrix has a row for each entry of a filter of the second convolution, and a column for each of the first.
        weight = conv.weight if scheme == "channel" else conv.weight.movedim(3, 1).flatten(0, 1)
        matrix = weight.flatten(1).to(torch.promote_types(weight.dtype, torch.float32))
        u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
        chosen = rank
        if energy is not None:
            _check_energy(rank, energy)
            chosen = _rank_of_energy(s, energy)
        operator = cls(**conv_arguments(conv), rank=chosen, scheme=scheme)
        operator.rank, operator.energy = rank, energy
        terms = operator.inner_channels
        root = s[:terms].sqrt()
        second = (u[:, :terms] * root).unflatten(0, (operator.out_channels, -1)).transpose(1, 2)
        operator.weight_second.copy_(second.unsqueeze(2))
        operator.weight_first.copy_((vh[:terms] * root[:, None]).view_as(operator.weight_first))
        return operator._with_bias_and_mode_of(conv)

    @classmethod
    def for_state(
        cls,
        state: Mapping[str, Tensor],
        *,
        rank: int | float | None = 0.25,
        energy: float | None = None,
        **arguments: Any,
    ) -> Self:
        """Returns an operator with fresh weights that can load `state`.

        `state` is the state dict of an operator that `from_conv` made with the same knobs. With an energy the rank is
        that of the tensors in `state`. Raises ValueError as the constructor does, except for an energy.
        """
        if energy is None:
            return cls(rank=rank, **arguments)
        _check_energy(rank, energy)
        first = state.get("weight_first")
        operator = cls(rank=1 if first is None else len(first), **arguments)
        operator.rank, operator.energy = rank, energy
        return operator

    def reset_parameters(self, init: str = "torch") -> None:
        """Draws fresh weights (schemes: `ops.init`) for each of the two convolutions, with its own fans.

        Raises ValueError for an unknown scheme.
        """
        for weight in (self.weight_first, self.weight_second):
            taps = weight[0, 0].numel()
            init_weight_(weight, init, fan_in=weight.shape[1] * taps, fan_out=weight.shape[0] * taps)
        init_bias_(self.bias, init, fan_in=self.weight_second[0].numel())

    def macs(self, out_h: int, out_w: int) -> int:
        """Returns the multiply-accumulates for one image.

        They are one for each weight of the first convolution and position between the two, and one for each weight of
        the second convolution and output position.
        """
        between = self._inner_width(out_w) if self.scheme == "spatial" else out_w
        return out_h * (between * self.weight_first.numel() + out_w * self.weight_second.numel())

    def dense_weight(self) -> Tensor:
        """Returns the weight (N, M, K, K) of the equivalent standard convolution, detached."""
        second = self.weight_second.detach().squeeze(2)
        return torch.einsum("nrj,rmik->nmijk", second, self.weight_first.detach()).flatten(3)

    def forward(self, x: Tensor) -> Tensor:
        """Applies the two convolutions: (B, M, H, W) -> (B, R, ...) -> (B, N, H', W')."""
        return self._pair(*self._padded(x))

    def forward_exact(self, x: Tensor) -> Tensor:
        """Computes the same as `forward`.

        In the spatial scheme the input is cropped, or padded with zeros, to the width that `macs` counts.
        """
        x, padding = self._padded(x)
        if self.scheme == "spatial":
            extent = self.dilation[1] * (self.kernel_size[1] - 1) + 1
            out_w = (x.shape[3] + 2 * padding[1] - extent) // self.stride[1] + 1
            x = F.pad(x, (0, self._inner_width(out_w) - x.shape[3]))
        return self._pair(x, padding)

    def deployed(self) -> nn.Module:
        """Returns the two convolutions as plain layers."""
        first, second = self._geometries(self.padding)
        return nn.Sequential(
            conv(self.weight_first, padding_mode=self.padding_mode, **first),
            conv(self.weight_second, self.bias, padding_mode=self.padding_mode, **second),
        )

    def _scale_(self, scale: Tensor) -> bool:
        self.weight_second = scaled(self.weight_second, scale)
        return True

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, inner_channels={self.inner_channels}"

    def _inner_width(self, out_w: int) -> int:
        """Returns the width of the widest input with `out_w` output columns, without columns that no window reaches."""
        padding = self.padding[1] if self.padding_mode == "zeros" else 0
        reached = (out_w - 1) * self.stride[1] + self.dilation[1] * (self.kernel_size[1] - 1) + 1 - padding
        return max(1, reached - max(0, padding - self.stride[1] + 1))

    def _pair(self, x: Tensor, padding: tuple[int, int]) -> Tensor:
        first, second = self._geometries(padding)
        return F.conv2d(F.conv2d(x, self.weight_first, **first), self.weight_second, self.bias, **second)

    def _geometries(self, padding: tuple[int, int]) -> tuple[_Geometry, _Geometry]:
        """Returns the stride, padding and dilation of the two convolutions."""
        if self.scheme == "channel":
            return {"stride": self.stride, "padding": padding, "dilation": self.dilation}, {}
        return (
            {"stride": (self.stride[0], 1), "padding": (padding[0], 0), "dilation": (self.dilation[0], 1)},
            {"stride": (1, self.stride[1]), "padding": (0, padding[1]), "dilation": (1, self.dilation[1])},
        )


def _resolve_rank(rank: int | float | None, full: int) -> int:
    """Returns the number of channels between the two convolutions."""
    if isinstance(rank, float) and 0 < rank <= 1:
        return max(1, round(rank * full))
    if isinstance(rank, bool) or not isinstance(rank, int) or not 1 <= rank <= full:
        raise ValueError(
            f"rank={rank!r} is out of range; valid: an integer from 1 to {full}, or a share of {full} as a float in "
            "(0, 1]"
        )
    return rank


def _check_energy(rank: int | float | None, energy: float) -> None:
    if rank is not None:
        raise ValueError(f"rank={rank!r} and energy={energy!r} exclude each other; valid: one of them None")
    if not ((isinstance(energy, float) and 0 < energy <= 1) or energy == 1):
        raise ValueError(f"energy={energy!r} is out of range; valid: a number in (0, 1]")


def _rank_of_energy(singular_values: Tensor, energy: float) -> int:
    """Returns how many of the largest singular values hold the share `energy` of the sum of squares."""
    kept = singular_values.double().square().cumsum(0)
    return min(int((kept < energy * kept[-1]).sum()) + 1, len(kept))
