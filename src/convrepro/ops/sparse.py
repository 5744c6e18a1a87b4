"""Sparse: a convolution with a share of its weights. The largest of them, or blocks on the diagonal.

Unstructured: magnitude pruning of Han, Pool, Tran, Dally: "Learning both Weights and Connections for Efficient Neural
Networks", 2015 (arXiv 1506.02626), the criterion of `torch.nn.utils.prune.l1_unstructured`, in one step and with the
places fixed from then on. torch keeps a dense parameter and a mask; here the weights that are left are the parameter.

Block-diagonal weights are a group convolution, the plain `grouped` of comparisons. Products of such convolutions, with
permutations of channels between them, are the operators `igcv1`, `igcv2` and `igcv3`.
"""

from itertools import accumulate
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convrepro.ops.base import ConvOperator, Pair, conv_arguments, scaled
from convrepro.ops.deployed import conv, geometry
from convrepro.ops.init import init_bias_, init_weight_

STRUCTURES = ("unstructured", "block")
GATHERED = 1 << 24
"""Most numbers that `forward_exact` gathers at a time. With much fewer, a traced run leaves the heap in pieces."""


class SparseConv2d(ConvOperator):
    """Convolution with the share `density` of its weights: input (B, M, H, W), output (B, N, H', W') as `nn.Conv2d`.

    Its output is that of the standard convolution with the weight `dense_weight()`, whose non-zero entries alone are
    parameters: what is zero stays zero under each optimizer. MACs for H' x W' positions: one for each of them. At
    density 1 it is the standard convolution.

    Knobs:
        density: share of the weights that are left, in (0, 1]; for `block` 1/G with a number G of blocks that divides
            the input and output channels of each group (to within 0.5 %, so that 0.333 is a third).
        structure: "unstructured", the weights largest in magnitude in the whole layer, or "block", those that connect
            the g-th block of input channels to the g-th block of output channels.

    Parameters: for `unstructured` `values` (weights left, 1), with the buffer `index` (weights left,): their places in
    the flattened dense weight, ascending; for `block` `weight` (N, M/(groups*G), K, K). `bias` (N,).

    Raises ValueError for a density outside (0, 1], an unfit number of blocks or an unknown structure.
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
        density: float = 0.25,
        structure: str = "unstructured",
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, padding_mode)
        if structure not in STRUCTURES:
            raise ValueError(f"structure={structure!r} is unknown; valid: {', '.join(STRUCTURES)}")
        if isinstance(density, bool) or not isinstance(density, int | float) or not 0 < density <= 1:
            raise ValueError(f"density={density!r} must be a share of the weights; valid: a number in (0, 1]")
        self.density = density
        self.structure = structure
        self._shape = torch.Size((out_channels, in_channels // groups, *self.kernel_size))
        factory = {"device": device, "dtype": dtype}
        if structure == "block":
            self.blocks = _resolve_blocks(density, in_channels // groups, out_channels // groups)
            shape = (out_channels, self._shape[1] // self.blocks, *self.kernel_size)
            self.weight = nn.Parameter(torch.empty(shape, **factory))
        else:
            left = max(1, round(density * self._shape.numel()))
            self.values = nn.Parameter(torch.empty((left, 1), **factory))
            self.register_buffer("index", torch.arange(left, device=device))
        self.bias = nn.Parameter(torch.empty(out_channels, **factory)) if bias else None
        self.reset_parameters()

    @classmethod
    @torch.no_grad()
    def from_conv(cls, conv: nn.Conv2d, *, density: float = 0.25, structure: str = "unstructured") -> Self:
        """The nearest to `conv` in least squares over the weight: the weights that are left, as they are.

        Raises ValueError as the constructor does.
        """
        operator = cls(**conv_arguments(conv), density=density, structure=structure)
        operator.set_weight_(conv.weight)
        if operator.bias is not None:
            operator.bias.copy_(conv.bias)
        return operator.train(conv.training)

    @torch.no_grad()
    def set_weight_(self, weight: Tensor) -> None:
        """Take over a dense weight (N, M/groups, K, K): of it `unstructured` keeps the largest magnitudes."""
        if self.structure == "block":
            by_block = weight.unflatten(1, (self.blocks, -1)).unflatten(0, (self.groups, self.blocks, -1))
            self.weight.copy_(torch.stack([by_block[:, b, :, b] for b in range(self.blocks)], 1).flatten(0, 2))
        else:
            flat = weight.flatten()
            self.index.copy_(flat.abs().topk(len(self.index)).indices.sort().values)
            self.values.copy_(flat[self.index, None])

    def reset_parameters(self, init: str = "torch") -> None:
        """Draw fresh weights (schemes: `ops.init`): for `block` with the fans of the group convolution; for
        `unstructured` a dense weight with its fans, whose largest magnitudes are most of its variance.

        Raises ValueError for an unknown scheme.
        """
        blocks = self.blocks if self.structure == "block" else 1
        taps = self.kernel_size[0] * self.kernel_size[1]
        fan_in, fan_out = (taps * n // (self.groups * blocks) for n in (self.in_channels, self.out_channels))
        if self.structure == "block":
            init_weight_(self.weight, init, fan_in=fan_in, fan_out=fan_out)
        else:
            self.set_weight_(init_weight_(self.values.new_empty(self._shape), init, fan_in=fan_in, fan_out=fan_out))
        init_bias_(self.bias, init, fan_in=fan_in)

    def macs(self, out_h: int, out_w: int) -> int:
        """Multiply-accumulates for one image: one for each weight that is left and each output position."""
        return out_h * out_w * (self.weight if self.structure == "block" else self.values).numel()

    def weight_bits(self) -> int:
        """32 for each weight that is left, and for `unstructured` their places, in the shorter of two forms: a bit for
        each place, or the number of the place for each weight.
        """
        if self.structure == "block":
            return super().weight_bits()
        left, places = len(self.index), self._shape.numel()
        return 32 * left + min(places, left * (places - 1).bit_length())

    def dense_weight(self) -> Tensor:
        """The weight (N, M/groups, K, K) of the equal standard convolution, with zeros filled in; detached."""
        if self.structure == "unstructured":
            return self._scattered().detach()
        dense = self.weight.detach().new_zeros(self._shape)
        by_block = dense.unflatten(1, (self.blocks, -1)).unflatten(0, (self.groups, self.blocks, -1))
        for block, weight in enumerate(self.weight.detach().unflatten(0, (self.groups, self.blocks, -1)).unbind(1)):
            by_block[:, block, :, block] = weight
        return dense

    def forward(self, x: Tensor) -> Tensor:
        """A group convolution, or a dense one with zeros filled in."""
        return self._convolved(x)

    def forward_exact(self, x: Tensor) -> Tensor:
        """As `forward`; for `unstructured` by products of the weights that are left with the inputs they meet."""
        if self.structure == "block":
            return self._convolved(x)
        x, padding = self._padded(x)
        words = zip(x.shape[2:], padding, self.dilation, self.kernel_size, self.stride, strict=True)
        positions = [(size + 2 * p - d * (k - 1) - 1) // s + 1 for size, p, d, k, s in words]
        windows = F.unfold(x, self.kernel_size, self.dilation, padding, self.stride)
        y = self._products(windows.transpose(0, 1).flatten(1)).unflatten(1, (len(x), *positions)).transpose(0, 1)
        return y if self.bias is None else y + self.bias[:, None, None].to(y.dtype)

    def deployed(self) -> nn.Module:
        """The group convolution, or the dense one with zeros filled in: no library here gains from scattered zeros."""
        weight, groups = self._filled()
        return conv(weight, self.bias, groups, **geometry(self))

    def _scale_(self, scale: Tensor) -> bool:
        if self.structure == "block":
            self.weight = scaled(self.weight, scale)
        else:
            self.values = scaled(self.values, scale[self.index // self._shape[1:].numel()])
        return True

    def _convolved(self, x: Tensor) -> Tensor:
        x, padding = self._padded(x)
        weight, groups = self._filled()
        return F.conv2d(x, weight, self.bias, self.stride, padding, self.dilation, groups)

    def _filled(self) -> tuple[Tensor, int]:
        """The weight of the equal convolution, and its number of groups."""
        block = self.structure == "block"
        return (self.weight, self.groups * self.blocks) if block else (self._scattered(), self.groups)

    def _scattered(self) -> Tensor:
        flat = self.values.new_zeros(self._shape.numel())
        return flat.scatter(0, self.index, self.values[:, 0]).view(self._shape)

    def _products(self, windows: Tensor) -> Tensor:
        """The weights left (N, M/groups*K*K) times `windows` (M*K*K, L), without a product by zero: (N, L).

        The weights of each filter are cut into runs whose lengths are powers of two, and runs of one length, one for a
        filter, are multiplied together.
        """
        fan_in = self._shape[1:].numel()
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
                # A filter's runs stand at the end of its weights, the shortest last.
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
    """The number of blocks on the diagonal of a group with so many channels."""
    blocks = round(1 / density)
    if abs(density * blocks - 1) > 0.005 or in_channels % blocks or out_channels % blocks:
        valid = [b for b in range(1, in_channels + 1) if in_channels % b == 0 and out_channels % b == 0]
        raise ValueError(
            f"density={density!r} of structure='block' must be 1/G, G blocks dividing in_channels={in_channels} and "
            f"out_channels={out_channels} of a group; valid: {', '.join(f'1/{b}' for b in valid)}"
        )
    return blocks
