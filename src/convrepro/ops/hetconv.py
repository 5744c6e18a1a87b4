"""HetConv: filters whose kernels have different sizes. Singh, Verma, Rai, Namboodiri: "HetConv: Heterogeneous
Kernel-Based Convolutions for Deep CNNs", CVPR 2019 (arXiv 1903.04120), section 3.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convrepro.ops import hetconv_triton
from convrepro.ops.base import ConvOperator, Pair, conv_arguments, divisors, scaled
from convrepro.ops.deployed import KxkPlus1x1, conv, geometry, shuffle_layers
from convrepro.ops.igc import channel_shuffle, shuffle
from convrepro.ops.init import init_bias_, init_weight_
from convrepro.ops.kxk_plus_1x1 import fits, kxk_plus_1x1, packed

ARRANGEMENTS = ("contiguous", "shifted")
FORMS = ("auto", "plain", "fused", "triton")


class HetConv2d(ConvOperator):
    """Convolution whose filters use a KxK kernel on one input channel in `p` and a 1x1 kernel on the others.

    With M input channels, N filters and part P, filter i (0-based) has KxK kernels on the channels c = i (mod P);
    its 1x1 kernels lie at the centre of the KxK window. Input (B, M, H, W), output (B, N, H', W') as `nn.Conv2d`.

    MACs for H' x W' positions: `H' * W' * (N*M/P*K^2 + N*M - N*M/P)`, the share 1/P + (1 - 1/P)/K^2 of the standard
    convolution (section 3.2). At p=1 it is the standard convolution.

    Where P exceeds M, the filters with i mod P >= M have no KxK kernel at all: with p="out" (P = N, the paper's row
    "PC") and N = 2M, half of the filters are 1x1 convolutions.

    Knobs:
        p: the part P, or "out" for P = out_channels. P must divide out_channels, and divide in_channels or be a
            multiple of it.
        arrangement: "shifted" is the paper's (figure 3: filter i+1 starts one channel after filter i). "contiguous"
            is the same up to a fixed permutation of channels and filters, and saves permuting the activations: the
            g-th block of filters has its KxK kernels on the g-th block of channels.
        form: how it is computed, to the same result. "plain" adds two convolutions, everywhere. "fused" adds the
            second one in place (`ops.kxk_plus_1x1`), on a CPU in channels_last. "triton" is one kernel
            (`ops.hetconv_triton`), on a GPU. "auto" takes "fused" where it can, "triton" where that was measured to be
            faster (bfloat16 in channels_last on a GPU, not compiled: `hetconv_triton.wins`), else "plain"; `deployed`
            does not know its inputs, and takes "triton" only where that was asked for.

    Only the non-zero weights are parameters. They are stored block by block, in both arrangements alike: row r of
    `weight_kxk` (rows, M/G, K, K), with G = min(P, M), belongs to block r // (N/P); `weight_1x1` (rows, M - M/G) holds
    the same filters' 1x1 kernels on the channels of the other blocks, in order; `weight_pointwise` (N - rows, M) holds
    the filters without a KxK kernel. A parameter that would be empty is None. `bias` (N,) follows the output channels.

    Raises ValueError for groups other than 1, an even kernel size, an unfit p, an unknown arrangement or form; and in
    `forward` where "fused" or "triton" was asked for and cannot be.
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
        p: int | str = 4,
        arrangement: str = "contiguous",
        form: str = "auto",
    ) -> None:
        if groups != 1:
            raise ValueError(f"groups={groups}: HetConv2d connects every filter to every channel; valid: 1")
        if arrangement not in ARRANGEMENTS:
            raise ValueError(f"arrangement={arrangement!r} is unknown; valid: {', '.join(ARRANGEMENTS)}")
        if form not in FORMS:
            raise ValueError(f"form={form!r} is unknown; valid: {', '.join(FORMS)}")
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, padding_mode)
        if any(k % 2 == 0 for k in self.kernel_size):
            raise ValueError(f"kernel_size={self.kernel_size} must be odd to have a centre; valid: 1, 3, 5, ...")
        self.p = p
        self.arrangement = arrangement
        self.form = form
        self.parts = _resolve_part(p, in_channels, out_channels)
        self.blocks = min(self.parts, in_channels)
        block_in, rows = in_channels // self.blocks, self.blocks * (out_channels // self.parts)
        self.pointwise_filters = out_channels - rows

        def parameter(*shape: int) -> nn.Parameter | None:
            return nn.Parameter(torch.empty(shape, device=device, dtype=dtype)) if 0 not in shape else None

        self.weight_kxk = parameter(rows, block_in, *self.kernel_size)
        self.weight_1x1 = parameter(rows, in_channels - block_in)
        self.weight_pointwise = parameter(self.pointwise_filters, in_channels)
        self.bias = parameter(out_channels) if bias else None
        self.reset_parameters()

    @classmethod
    def from_conv(
        cls, conv: nn.Conv2d, *, p: int | str = 4, arrangement: str = "contiguous", form: str = "auto"
    ) -> "HetConv2d":
        """The HetConv nearest to `conv` in least squares: its weights at every place where HetConv has one.

        Raises ValueError as the constructor does.
        """
        operator = cls(**conv_arguments(conv), p=p, arrangement=arrangement, form=form)
        with torch.no_grad():
            kernels = operator._by_block(conv.weight)
            own = torch.arange(operator.blocks, device=conv.weight.device)
            operator.weight_kxk.copy_(kernels[own, :, own].reshape_as(operator.weight_kxk))
            centre = kernels[(..., *(k // 2 for k in operator.kernel_size))]
            if operator.weight_1x1 is not None:
                others = centre[own[:, None], :, operator._other_blocks(own.device)].transpose(1, 2)
                operator.weight_1x1.copy_(others.reshape_as(operator.weight_1x1))
            if operator.weight_pointwise is not None:
                operator.weight_pointwise.copy_(centre[operator.blocks :].reshape_as(operator.weight_pointwise))
            if operator.bias is not None:
                operator.bias.copy_(conv.bias)
        return operator.train(conv.training)

    def reset_parameters(self, init: str = "torch") -> None:
        """Draw fresh weights (schemes: `ops.init`) with the fans that each filter truly has; the bias takes their mean.

        Raises ValueError for an unknown scheme.
        """
        taps, block_in = self.kernel_size[0] * self.kernel_size[1], self.in_channels // self.blocks
        per_part = self.out_channels // self.parts
        fan_out = per_part * taps + self.out_channels - per_part
        fan_in = block_in * taps + self.in_channels - block_in
        for weight, fan in (
            (self.weight_kxk, fan_in),
            (self.weight_1x1, fan_in),
            (self.weight_pointwise, self.in_channels),
        ):
            if weight is not None:
                init_weight_(weight, init, fan_in=fan, fan_out=fan_out)
        init_bias_(self.bias, init, fan_in=self.macs(1, 1) / self.out_channels)

    def macs(self, out_h: int, out_w: int) -> int:
        """Multiply-accumulates for one image: one for each non-zero weight and output position."""
        taps, kxk = self.kernel_size[0] * self.kernel_size[1], self.out_channels * self.in_channels // self.parts
        return out_h * out_w * (kxk * taps + self.out_channels * self.in_channels - kxk)

    def dense_weight(self) -> Tensor:
        """The weight (N, M, K, K) of the equal standard convolution, with the structural zeros filled in; detached."""
        with torch.no_grad():
            dense = self.weight_kxk.new_zeros(self.out_channels, self.in_channels, *self.kernel_size)
            kernels = self._by_block(dense)
            own = torch.arange(self.blocks, device=dense.device)
            kernels[own, :, own] = self.weight_kxk.unflatten(0, (self.blocks, -1))
            kernels[(..., *(k // 2 for k in self.kernel_size))] += self._pointwise_by_block()
        return dense

    def forward(self, x: Tensor) -> Tensor:
        """A grouped KxK convolution plus a dense 1x1 convolution with zeros in the filters' own blocks."""
        x, padding = self._padded(x)
        if self.parts == 1:
            return F.conv2d(x, self.weight_kxk, self.bias, self.stride, padding, self.dilation)
        if self._triton(x):
            return self._forward_triton(x, padding)
        if self._fused(x):
            return self._forward_fused(x, padding)
        kxk = self._kxk(x, padding)
        if self.pointwise_filters:
            kxk = F.pad(kxk, (0, 0, 0, 0, 0, self.pointwise_filters))
        weight = self._from_blocks(self._pointwise_by_block())
        return self._in_output_order(kxk) + F.conv2d(self._centres(x, padding), weight[..., None, None], self.bias)

    def _triton(self, x: Tensor) -> bool:
        """Whether this input is computed in the form of one Triton kernel."""
        if self.form != "auto":
            return self.form == "triton"
        return self.weight_pointwise is None and hetconv_triton.wins(x, self.weight_kxk.dtype)

    def _fused(self, x: Tensor) -> bool:
        """Whether this input is computed in the fused form."""
        able = fits(x) and self.weight_pointwise is None and self.weight_kxk.dtype == x.dtype
        if self.form == "fused" and not able:
            raise ValueError(
                "form='fused' needs a CPU, an input in channels_last of the weights' float32 or float64, no autocast, "
                f"tracing or compilation, and p not above in_channels={self.in_channels}; valid here: auto, plain"
            )
        return able and self.form != "plain"

    def _forward_fused(self, x: Tensor, padding: tuple[int, int]) -> Tensor:
        """Input and filters are permuted before and after, so that the 1x1 kernels meet blocks in order."""
        x = self._in_block_order(x)
        centres = self._centres(x, padding)
        return self._in_output_order(
            kxk_plus_1x1(
                x,
                None if centres is x else centres,
                self.weight_kxk,
                self._pointwise_by_block().flatten(2, 3).flatten(0, 1),
                None if self.bias is None else self._by_part(self.bias),
                self.stride,
                padding,
                self.dilation,
                self.blocks,
            )
        )

    def _forward_triton(self, x: Tensor, padding: tuple[int, int]) -> Tensor:
        if self.weight_pointwise is not None or not hetconv_triton.fits(x):
            raise ValueError(
                f"form='triton' needs Triton, a GPU, float32, float16 or bfloat16, and p not above "
                f"in_channels={self.in_channels}; got {x.dtype} on {x.device}, p={self.p}; valid here: auto, plain"
            )
        words = self.stride, padding, self.dilation, self.blocks
        bias = None if self.bias is None else self._by_part(self.bias)
        images = self._in_block_order(x if x.ndim == 4 else x[None])
        y = self._in_output_order(hetconv_triton.hetconv(images, self.weight_kxk, self.weight_1x1, bias, *words))
        return y if x.ndim == 4 else y[0]

    def forward_exact(self, x: Tensor) -> Tensor:
        """As `forward`, without the multiplications by structural zeros: the 1x1 kernels act on gathered channels."""
        x, padding = self._padded(x)
        y = self._kxk(x, padding)
        centres = self._in_block_order(self._centres(x, padding))
        if self.weight_1x1 is not None:
            channels = centres.flatten(2).transpose(1, 2).unflatten(2, (self.blocks, -1))
            others = channels[:, :, self._other_blocks(x.device)].flatten(3).transpose(1, 2)
            weight = self.weight_1x1.unflatten(0, (self.blocks, -1)).transpose(1, 2)
            y = y + (others @ weight).transpose(2, 3).reshape(y.shape)
        if self.weight_pointwise is not None:
            y = torch.cat((y, F.conv2d(centres, self.weight_pointwise[..., None, None])), dim=1)
        y = self._in_output_order(y)
        return y if self.bias is None else y + self.bias[:, None, None].to(y.dtype)

    def deployed(self) -> nn.Module:
        """A group convolution plus a 1x1 convolution with resolved weights, or for p=1 the standard convolution.

        Groups of few channels are merged where that is faster (`kxk_plus_1x1.packed`).
        """
        if self.parts == 1:
            return conv(self.weight_kxk, self.bias, **geometry(self))
        able = self.weight_pointwise is None and self.padding_mode == "zeros"
        if self.form == "triton" and able and hetconv_triton.fits(self.weight_kxk):
            return self._deployed_triton()
        weight, groups = packed(self.weight_kxk, self.blocks)
        mixing = self._pointwise_by_block().flatten(2, 3).flatten(0, 1)[..., None, None]
        words = zip(self.padding, self.dilation, self.kernel_size, strict=True)
        layer = KxkPlus1x1(
            conv(weight, None, groups, **geometry(self)),
            conv(mixing, None if self.bias is None else self._by_part(self.bias)),
            border=tuple(p - d * (k // 2) for p, d, k in words),
            in_place=self.form != "plain",
        )
        if self.arrangement == "contiguous":
            return layer
        return nn.Sequential(*shuffle_layers(self.in_channels // self.blocks), layer, *shuffle_layers(self.parts))

    def _deployed_triton(self) -> nn.Module:
        words = self.kernel_size, self.stride, self.padding, self.dilation
        layer = hetconv_triton.Layer(self.in_channels, self.out_channels, self.blocks, *words)
        bias = None if self.bias is None else self._by_part(self.bias)
        packed = hetconv_triton.PackedHetConv(layer, self.weight_kxk, self.weight_1x1, bias)
        if self.arrangement == "contiguous":
            return packed
        return nn.Sequential(*shuffle_layers(self.in_channels // self.blocks), packed, *shuffle_layers(self.parts))

    def _scale_(self, scale: Tensor) -> bool:
        scale = self._by_part(scale)
        rows = len(self.weight_kxk)
        self.weight_kxk = scaled(self.weight_kxk, scale[:rows])
        if self.weight_1x1 is not None:
            self.weight_1x1 = scaled(self.weight_1x1, scale[:rows])
        if self.weight_pointwise is not None:
            self.weight_pointwise = scaled(self.weight_pointwise, scale[rows:])
        return True

    def _kxk(self, x: Tensor, padding: tuple[int, int]) -> Tensor:
        """The KxK kernels' share of the output, filters in block order, those without a KxK kernel left out."""
        x = self._in_block_order(x)
        return F.conv2d(x, self.weight_kxk, None, self.stride, padding, self.dilation, self.blocks)

    def _centres(self, x: Tensor, padding: tuple[int, int]) -> Tensor:
        """What lies under the centre of each window: (B, M, H', W')."""
        height, width = (p - d * (k // 2) for p, d, k in zip(padding, self.dilation, self.kernel_size, strict=True))
        if height or width:
            x = F.pad(x, (width, width, height, height))
        return x if self.stride == (1, 1) else x[..., :: self.stride[0], :: self.stride[1]]

    def _pointwise_by_block(self) -> Tensor:
        """All 1x1 kernels as (P, N/P, G, M/G), zero where a filter has its KxK kernels."""
        blocks, rows = self.blocks, self.out_channels // self.parts
        if self.weight_1x1 is None:
            kernels = self.weight_kxk.new_zeros(blocks, rows, blocks, self.in_channels // blocks)
        else:
            # Read row by row, a G x G grid with a zero diagonal is one zero, then G - 1 times: G entries and a zero.
            entries = self.weight_1x1.reshape(blocks, rows, blocks - 1, -1).transpose(1, 2)
            runs = F.pad(entries.reshape(blocks - 1, blocks, -1), (0, 0, 0, 1)).flatten(0, 1)
            kernels = F.pad(runs, (0, 0, 1, 0)).view(blocks, blocks, rows, -1).transpose(1, 2)
        if self.weight_pointwise is not None:
            kernels = torch.cat((kernels, self.weight_pointwise.reshape(-1, *kernels.shape[1:])))
        return kernels

    def _other_blocks(self, device: torch.device) -> Tensor:
        """(G, G - 1): row g lists the blocks of channels other than g."""
        index = torch.arange(self.blocks, device=device)
        return index.expand(self.blocks, -1)[index != index[:, None]].view(self.blocks, -1)

    def _by_block(self, weight: Tensor) -> Tensor:
        """A view of `weight` (N, M, ...) as (P, N/P, G, M/G, ...): part, filter, block, channel."""
        if self.arrangement == "contiguous":
            return weight.unflatten(1, (self.blocks, -1)).unflatten(0, (self.parts, -1))
        return weight.unflatten(1, (-1, self.blocks)).unflatten(0, (-1, self.parts)).transpose(0, 1).transpose(2, 3)

    def _from_blocks(self, kernels: Tensor) -> Tensor:
        """The inverse of `_by_block`."""
        if self.arrangement == "shifted":
            kernels = kernels.transpose(0, 1).transpose(2, 3)
        return kernels.flatten(2, 3).flatten(0, 1)

    def _in_block_order(self, x: Tensor) -> Tensor:
        """Input channels sorted by block."""
        return x if self.arrangement == "contiguous" else channel_shuffle(x, self.in_channels // self.blocks)

    def _in_output_order(self, y: Tensor) -> Tensor:
        """Filters in block order, brought to the order of the output."""
        return y if self.arrangement == "contiguous" else channel_shuffle(y, self.parts)

    def _by_part(self, values: Tensor) -> Tensor:
        """`values` (N,) of the filters, which follow the output channels, in block order."""
        return values if self.arrangement == "contiguous" else shuffle(values, self.out_channels // self.parts, 0)


def _resolve_part(p: int | str, in_channels: int, out_channels: int) -> int:
    """P as a number; raises ValueError where the channels do not allow it."""
    part = out_channels if p == "out" else p
    valid = [d for d in divisors(out_channels) if in_channels % d == 0 or d % in_channels == 0]
    if not isinstance(part, int) or part not in valid:
        raise ValueError(
            f"p={p!r} must divide out_channels={out_channels} and divide, or be a multiple of, "
            f"in_channels={in_channels} ('out' stands for p=out_channels); valid: {', '.join(map(str, valid))}"
        )
    return part
