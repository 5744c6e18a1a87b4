"""Low rank: a convolution as the product of two, with few channels between them.

Spatial scheme: Jaderberg, Vedaldi, Zisserman: "Speeding up Convolutional Neural Networks with Low Rank Expansions",
2014 (arXiv 1405.3866), scheme 2, solved in least squares by a singular value decomposition as in Tai et al. 2016 (arXiv
1511.06067). Channel scheme: the decomposition of the filters as a matrix, as Denton et al. 2014 (arXiv 1404.0736) and
Zhang et al. 2016 (arXiv 1505.06798) use it, without their clustering and without data.
"""

from collections.abc import Mapping
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convrepro.ops.base import ConvOperator, Pair, conv_arguments, scaled
from convrepro.ops.deployed import conv
from convrepro.ops.init import init_bias_, init_weight_

SCHEMES = ("channel", "spatial")


class LowRankConv2d(ConvOperator):
    """Two convolutions with R channels between them and nothing else: M -> R -> N.

    | scheme | first | second | full rank | MACs for H' x W' positions |
    |---|---|---|---|---|
    | `channel` | KxK | 1x1 | min(N, M*K*K) | `H' * W' * R * (M*K*K + N)` |
    | `spatial` | Kx1 (K rows) | 1xK | min(M*K, N*K) | `H' * R * (W * M*K + W' * N*K)` |

    Input (B, M, H, W), output (B, N, H', W') as `nn.Conv2d`. It equals the standard convolution with the weight
    `dense_weight()`, and at full rank each standard convolution is of that form. In the spatial scheme the first
    convolution has the vertical stride, padding and dilation, the second the horizontal ones, and W is the width
    between them: of the input, as far as windows reach. Where inputs of several widths have the same output width
    (horizontal stride above 1), `macs` counts, and `forward_exact` runs, the widest.

    Parameters: `weight_first` (R, M, K, K or 1), `weight_second` (N, R, 1, 1 or K), `bias` (N,).

    Knobs:
        rank: R as an integer from 1 to the full rank, or as a share of the full rank, a float in (0, 1].
        energy: instead of `rank`, which is then None: the share of the sum of squared singular values, in (0, 1], that
            `from_conv` keeps at least. It takes the least rank that does, layer by layer; `for_state` finds it again.
        scheme: "channel" or "spatial".

    R is the attribute `inner_channels`. Raises ValueError for groups other than 1, an unfit rank or energy, both or
    neither of them, an unknown scheme, and for an energy without the weights that it is the energy of.
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
        rank: int | float | None = 0.25,
        energy: float | None = None,
        scheme: str = "channel",
    ) -> None:
        if groups != 1:
            raise ValueError(f"groups={groups}: {type(self).__name__} takes the place of a dense convolution; valid: 1")
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, padding_mode)
        if scheme not in SCHEMES:
            raise ValueError(f"scheme={scheme!r} is unknown; valid: {', '.join(SCHEMES)}")
        if energy is not None:
            _check_energy(rank, energy)
            raise ValueError(f"energy={energy!r} is that of given weights: start from weights, or give rank instead")
        self.scheme = scheme
        self.rank = rank
        self.energy = energy
        height, width = self.kernel_size
        first, second = ((height, width), (1, 1)) if scheme == "channel" else ((height, 1), (1, width))
        full = min(in_channels * first[0] * first[1], out_channels * second[1])
        self.inner_channels = _resolve_rank(rank, full)
        factory = {"device": device, "dtype": dtype}
        self.weight_first = nn.Parameter(torch.empty((self.inner_channels, in_channels, *first), **factory))
        self.weight_second = nn.Parameter(torch.empty((out_channels, self.inner_channels, *second), **factory))
        self.bias = nn.Parameter(torch.empty(out_channels, **factory)) if bias else None
        self.reset_parameters()

    @classmethod
    @torch.no_grad()
    def from_conv(
        cls,
        conv: nn.Conv2d,
        *,
        rank: int | float | None = 0.25,
        energy: float | None = None,
        scheme: str = "channel",
    ) -> Self:
        """The pair nearest to `conv` in least squares over the weight: its first R singular pairs, each root to a side.

        Raises ValueError as the constructor does.
        """
        # A matrix with a row for each entry of a second filter, a column for each entry of a first one.
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
        if operator.bias is not None:
            operator.bias.copy_(conv.bias)
        return operator.train(conv.training)

    @classmethod
    def for_state(
        cls,
        state: Mapping[str, Tensor],
        *,
        rank: int | float | None = 0.25,
        energy: float | None = None,
        **words: Any,
    ) -> Self:
        """The operator, with fresh weights, into which `state` fits, the tensors of one that `from_conv` made with the
        same knobs: with an energy it has their rank, where the constructor has none.

        Raises ValueError as the constructor does, but not for an energy in (0, 1] alone.
        """
        if energy is None:
            return cls(rank=rank, **words)
        _check_energy(rank, energy)
        first = state.get("weight_first")
        operator = cls(rank=1 if first is None else len(first), **words)
        operator.rank, operator.energy = rank, energy
        return operator

    def reset_parameters(self, init: str = "torch") -> None:
        """Draw fresh weights (schemes: `ops.init`), each of the two as a convolution of its own.

        Raises ValueError for an unknown scheme.
        """
        for weight in (self.weight_first, self.weight_second):
            taps = weight[0, 0].numel()
            init_weight_(weight, init, fan_in=weight.shape[1] * taps, fan_out=weight.shape[0] * taps)
        init_bias_(self.bias, init, fan_in=self.weight_second[0].numel())

    def macs(self, out_h: int, out_w: int) -> int:
        """Multiply-accumulates for one image: each weight of the first at the positions between, of the second at those
        of the output.
        """
        between = self._inner_width(out_w) if self.scheme == "spatial" else out_w
        return out_h * (between * self.weight_first.numel() + out_w * self.weight_second.numel())

    def dense_weight(self) -> Tensor:
        """The weight (N, M, K, K) of the equal standard convolution; detached."""
        second = self.weight_second.detach().squeeze(2)
        return torch.einsum("nrj,rmik->nmijk", second, self.weight_first.detach()).flatten(3)

    def forward(self, x: Tensor) -> Tensor:
        """The two convolutions in turn: (B, M, H, W) -> (B, R, ...) -> (B, N, H', W')."""
        return self._pair(*self._padded(x))

    def forward_exact(self, x: Tensor) -> Tensor:
        """As `forward`; the spatial scheme on an input cut, or filled with zeros, to the width that `macs` counts."""
        x, padding = self._padded(x)
        if self.scheme == "spatial":
            extent = self.dilation[1] * (self.kernel_size[1] - 1) + 1
            out_w = (x.shape[3] + 2 * padding[1] - extent) // self.stride[1] + 1
            x = F.pad(x, (0, self._inner_width(out_w) - x.shape[3]))
        return self._pair(x, padding)

    def deployed(self) -> nn.Module:
        """The two convolutions as layers."""
        first, second = self._geometries(self.padding)
        mode = {"padding_mode": self.padding_mode}
        return nn.Sequential(
            conv(self.weight_first, **first, **mode), conv(self.weight_second, self.bias, **second, **mode)
        )

    def _scale_(self, scale: Tensor) -> bool:
        self.weight_second = scaled(self.weight_second, scale)
        return True

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, inner_channels={self.inner_channels}"

    def _inner_width(self, out_w: int) -> int:
        """Columns of the widest input with `out_w` output columns, but none that lies right of every window."""
        padding = self.padding[1] if self.padding_mode == "zeros" else 0
        reached = (out_w - 1) * self.stride[1] + self.dilation[1] * (self.kernel_size[1] - 1) + 1 - padding
        return max(1, reached - max(0, padding - self.stride[1] + 1))

    def _pair(self, x: Tensor, padding: tuple[int, int]) -> Tensor:
        first, second = self._geometries(padding)
        return F.conv2d(F.conv2d(x, self.weight_first, **first), self.weight_second, self.bias, **second)

    def _geometries(self, padding: tuple[int, int]) -> tuple[dict[str, Pair], dict[str, Pair]]:
        """Stride, padding and dilation of the two convolutions."""
        words = {"stride": self.stride, "padding": padding, "dilation": self.dilation}
        if self.scheme == "channel":
            return words, {}
        neutral = {"stride": 1, "padding": 0, "dilation": 1}
        vertical = {word: (value[0], neutral[word]) for word, value in words.items()}
        return vertical, {word: (neutral[word], value[1]) for word, value in words.items()}


def _is_share(value: object) -> bool:
    return isinstance(value, float) and 0 < value <= 1


def _resolve_rank(rank: int | float | None, full: int) -> int:
    """The number of channels between the two convolutions."""
    if _is_share(rank):
        return max(1, round(rank * full))
    if isinstance(rank, bool) or not isinstance(rank, int) or not 1 <= rank <= full:
        raise ValueError(f"rank={rank!r} is unfit; valid: an integer from 1 to {full}, or a float in (0, 1], its share")
    return rank


def _check_energy(rank: int | float | None, energy: float) -> None:
    if rank is not None:
        raise ValueError(f"rank={rank!r} and energy={energy!r} are two ways to say one thing; valid: one of them None")
    if not (_is_share(energy) or energy == 1):
        raise ValueError(f"energy={energy!r} must be a share; valid: a number in (0, 1]")


def _rank_of_energy(singular_values: Tensor, energy: float) -> int:
    """The least number of singular values whose squares have the share `energy` of the sum of squares."""
    kept = singular_values.double().square().cumsum(0)
    return min(int((kept < energy * kept[-1]).sum()) + 1, len(kept))
