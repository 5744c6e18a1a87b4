"""Sparse convolutions: a convolution that keeps a share of its weights.

The unstructured form keeps the weights that are largest in magnitude: magnitude pruning of Han, Pool, Tran, Dally:
"Learning both Weights and Connections for Efficient Neural Networks", 2015 (arXiv 1506.02626), with the criterion of
`torch.nn.utils.prune.l1_unstructured`, in one step and with fixed positions afterwards. torch keeps a dense parameter
and a mask; here the parameter holds only the weights that are kept.

The block form keeps blocks on the diagonal, which makes a group convolution. Products of group convolutions, with
permutations of channels between them, are the operators `igcv1`, `igcv2` and `igcv3`.
"""

from itertools import accumulate
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import Self

from convrepro.ops.base import ConvOperator, Pair, check_choice, conv_arguments, empty_parameter, scaled
from convrepro.ops.deployed import conv, geometry
from convrepro.ops.init import init_bias_, init_weight_

Structure = Literal["unstructured", "block"]
STRUCTURES = get_args(Structure)
GATHERED = 1 << 24
"""How many values `forward_exact` gathers at a time. A much smaller number fragments the heap in a traced run."""


class SparseConv2d(ConvOperator):
    """Convolution that keeps the share `density` of its weights: input (B, M, H, W), output (B, N, H', W').

    Its output is that of the standard convolution with the weight `dense_weight()`. Only the non-zero entries of this
    weight are parameters, so that zeros stay zero under every optimizer. MACs for H' x W' positions: one for each
    parameter of the weight and each position. At density 1 the operator is the standard convolution.

    Knobs:
        density: the share of the weights that is kept, in (0, 1]. For "block" it is 1/G, where the number of blocks G
            divides the input and output channels of each group; it is rounded by up to 0.5 %, so that 0.333 means 1/3.
        structure: "unstructured" keeps the weights that are largest in magnitude in the whole layer. "block" keeps
            those that connect the g-th block of input channels to the g-th block of output channels.

    Parameters: for "unstructured" `values` (kept, 1), with the buffer `index` (kept,), the positions of the values in
    the flattened dense weight in ascending order; for "block" `weight` (N, M/(groups*G), K, K). `bias` (N,).

    Raises ValueError for a density outside (0, 1], a number of blocks that does not divide the channels, and an unknown
    structure.
    """

    blocks: int
    weight: nn.Parameter
    values: nn.Parameter
    index: Tensor

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
        density: float = 0.25,
        structure: Structure = "unstructured",
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, padding_mode)
        check_choice("structure", structure, STRUCTURES)
        if isinstance(density, bool) or not isinstance(density, int | float) or not 0 < density <= 1:
            raise ValueError(f"density={density!r} must be a share of the weights; valid: a number in (0, 1]")
        self.density = density
        self.structure = structure
        self._shape = torch.Size((out_channels, in_channels // groups, *self.kernel_size))
        if structure == "block":
            self.blocks = _resolve_blocks(density, in_channels // groups, out_channels // groups)
            shape = (out_channels, self._shape[1] // self.blocks, *self.kernel_size)
            self.weight = empty_parameter(*shape, device=device, dtype=dtype)
        else:
            kept = max(1, round(density * self._shape.numel()))
            self.values = empty_parameter(kept, 1, device=device, dtype=dtype)
            self.register_buffer("index", torch.arange(kept, device=device))
        self.bias = empty_parameter(out_channels, device=device, dtype=dtype) if bias else None
        self.reset_parameters()

    @classmethod
    @torch.no_grad()
    def from_conv(cls, conv: nn.Conv2d, *, density: float = 0.25, structure: Structure = "unstructured") -> Self:
        """Returns the operator that is nearest to `conv` in least squares: it keeps weights of `conv` as they are.

        Raises ValueError as the constructor does.
        """
        operator = cls(**conv_arguments(conv), density=density, structure=structure)
        operator.set_weight_(conv.weight)
        return operator._with_bias_and_mode_of(conv)

    @torch.no_grad()
    def set_weight_(self, weight: Tensor) -> None:
        """Sets the weights from a dense weight (N, M/groups, K, K); "unstructured" selects the largest magnitudes."""
        if self.structure == "block":
            by_block = weight.unflatten(1, (self.blocks, -1)).unflatten(0, (self.groups, self.blocks, -1))
            self.weight.copy_(torch.stack([by_block[:, b, :, b] for b in range(self.blocks)], 1).flatten(0, 2))
        else:
            flat = weight.flatten()
            self.index.copy_(flat.abs().topk(len(self.index)).indices.sort().values)
            self.values.copy_(flat[self.index, None])

    def reset_parameters(self, init: str = "torch") -> None:
        """Draws fresh weights (schemes: `ops.init`).

        For "block" they have the fans of the group convolution. For "unstructured" a dense weight with the fans of the
        standard convolution is drawn; its largest magnitudes, which are kept, hold most of its variance. Raises
        ValueError for an unknown scheme.
        """
        fan_in, fan_out = self._dense_fans()
        if self.structure == "block":
            fan_in, fan_out = fan_in // self.blocks, fan_out // self.blocks
            init_weight_(self.weight, init, fan_in=fan_in, fan_out=fan_out)
        else:
            self.set_weight_(init_weight_(self.values.new_empty(self._shape), init, fan_in=fan_in, fan_out=fan_out))
        init_bias_(self.bias, init, fan_in=fan_in)

    def macs(self, out_h: int, out_w: int) -> int:
        """Returns the multiply-accumulates for one image: one for each weight that is kept and each output position."""
        return out_h * out_w * (self.weight if self.structure == "block" else self.values).numel()

    def weight_bits(self) -> int:
        """Returns the bits of the deployed weights: 32 for each weight that is kept.

        "unstructured" adds the bits of the positions, in the shorter of two forms: one bit for each position of the
        dense weight, or the number of the position for each weight.
        """
        if self.structure == "block":
            return super().weight_bits()
        kept, positions = len(self.index), self._shape.numel()
        return 32 * kept + min(positions, kept * (positions - 1).bit_length())

    def dense_weight(self) -> Tensor:
        """Returns the weight (N, M/groups, K, K) of the equivalent standard convolution, zeros included, detached."""
        if self.structure == "unstructured":
            return self._scattered().detach()
        dense = self.weight.detach().new_zeros(self._shape)
        by_block = dense.unflatten(1, (self.blocks, -1)).unflatten(0, (self.groups, self.blocks, -1))
        for block, weight in enumerate(self.weight.detach().unflatten(0, (self.groups, self.blocks, -1)).unbind(1)):
            by_block[:, block, :, block] = weight
        return dense

    def forward(self, x: Tensor) -> Tensor:
        """Applies a group convolution, or for "unstructured" a dense one whose weight contains the zeros."""
        return self._convolved(x)

    def forward_exact(self, x: Tensor) -> Tensor:
        """Computes the same as `forward`; for "unstructured" it multiplies only the weights that are kept."""
        if self.structure == "block":
            return self._convolved(x)
        x, padding = self._padded(x)
        axes = zip(x.shape[2:], padding, self.dilation, self.kernel_size, self.stride, strict=True)
        positions = [(size + 2 * p - d * (k - 1) - 1) // s + 1 for size, p, d, k, s in axes]
        windows = F.unfold(x, self.kernel_size, self.dilation, padding, self.stride)
        y = self._products(windows.transpose(0, 1).flatten(1)).unflatten(1, (len(x), *positions)).transpose(0, 1)
        return self._plus_bias(y)

    def deployed(self) -> nn.Module:
        """Returns the group convolution, or the dense one whose weight contains the zeros.

        No library used here computes faster with scattered zeros.
        """
        weight, groups = self._filled()
        return conv(weight, self.bias, groups, **geometry(self))

    def _scale_(self, scale: Tensor) -> bool:
        if self.structure == "block":
            self.weight = scaled(self.weight, scale)
        else:
            self.values = scaled(self.values, scale[self.index // self._fan_in()])
        return True

    def _fan_in(self) -> int:
        return self._shape[1:].numel()

    def _convolved(self, x: Tensor) -> Tensor:
        x, padding = self._padded(x)
        weight, groups = self._filled()
        return F.conv2d(x, weight, self.bias, self.stride, padding, self.dilation, groups)

    def _filled(self) -> tuple[Tensor, int]:
        """Returns the weight and the number of groups of the equivalent `nn.Conv2d`."""
        block = self.structure == "block"
        return (self.weight, self.groups * self.blocks) if block else (self._scattered(), self.groups)

    def _scattered(self) -> Tensor:
        flat = self.values.new_zeros(self._shape.numel())
        return flat.scatter(0, self.index, self.values[:, 0]).view(self._shape)

    def _products(self, windows: Tensor) -> Tensor:
        """Returns the product (N, L) of the kept weights (N, M/groups*K*K) and `windows` (M*K*K, L).

        It does not multiply by zeros. The weights of each filter are split into runs whose lengths are different powers
        of two, and the runs of the same length, at most one for each filter, are multiplied together.
        """
        fan_in = self._fan_in()
        filters = self.index // fan_in
        inputs = self.index % fan_in + filters // (self.out_channels // self.groups) * fan_in
        counts = filters.bincount(minlength=self.out_channels).tolist()
        ends = list(accumulate(counts))
        dtype = windows.dtype
        accumulated = torch.promote_types(dtype, torch.float32)
        y = windows.new_zeros((self.out_channels, windows.shape[1]), dtype=accumulated)
        for bit in range(max(counts).bit_length()):
            length = 1 << bit
            having = [n for n, count in enumerate(counts) if count & length]
            for part in _parts(having, GATHERED // max(1, length * windows.shape[1])):
                # The runs of a filter are ordered by length, the longest first.
                first = torch.tensor([ends[n] - counts[n] % (2 * length) for n in part], device=windows.device)
                run = first[:, None] + torch.arange(length, device=windows.device)
                products = torch.bmm(self.values[run].transpose(1, 2), windows[inputs[run]])[:, 0]
                y.index_add_(0, torch.tensor(part, device=windows.device), products.to(accumulated))
                dtype = products.dtype
        return y.to(dtype)


def _parts(items: list[int], size: int) -> list[list[int]]:
    size = max(1, size)
    return [items[start : start + size] for start in range(0, len(items), size)]


def _resolve_blocks(density: float, in_channels: int, out_channels: int) -> int:
    """Returns the number of blocks on the diagonal. The channels are those of one group."""
    blocks = round(1 / density)
    if abs(density * blocks - 1) > 0.005 or in_channels % blocks or out_channels % blocks:
        valid = [b for b in range(1, in_channels + 1) if in_channels % b == 0 and out_channels % b == 0]
        raise ValueError(
            f"density={density!r} of structure='block' must be 1/G, where G divides in_channels={in_channels} and "
            f"out_channels={out_channels} of a group; valid: {', '.join(f'1/{b}' for b in valid)}"
        )
    return blocks
