"""HetConv: filters whose kernels have different sizes. Singh, Verma, Rai, Namboodiri: "HetConv: Heterogeneous
Kernel-Based Convolutions for Deep CNNs", CVPR 2019 (arXiv 1903.04120), section 3.
"""

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import Self

from convrepro.ops import hetconv_triton
from convrepro.ops.base import ConvOperator, Pair, check_choice, conv_arguments, divisors, empty_parameter, scaled
from convrepro.ops.deployed import KxkPlus1x1, conv, geometry, shuffle_layers
from convrepro.ops.igc import channel_shuffle, shuffle
from convrepro.ops.init import init_bias_, init_weight_
from convrepro.ops.kxk_plus_1x1 import fits, kxk_plus_1x1, packed

Part = int | Literal["out"]
Arrangement = Literal["contiguous", "shifted"]
ARRANGEMENTS = get_args(Arrangement)
Form = Literal["auto", "plain", "fused", "triton"]
FORMS = get_args(Form)


class HetConv2d(ConvOperator):
    """Convolution whose filters have a KxK kernel on one in `p` input channels and 1x1 kernels on the other channels.

    With M input channels, N filters and part P, filter i (0-based) has KxK kernels on the channels c = i (mod P). Its
    1x1 kernels lie at the centre of the KxK window. Input (B, M, H, W), output (B, N, H', W') as `nn.Conv2d`.

    MACs for H' x W' positions: `H' * W' * (N*M/P*K^2 + N*M - N*M/P)`, which is 1/P + (1 - 1/P)/K^2 of those of the
    standard convolution (section 3.2). With p=1 the operator is the standard convolution.

    If P is larger than M, the filters with i mod P >= M have no KxK kernel. With p="out" (P = N, the paper's row "PC")
    and N = 2M, half of the filters are therefore 1x1 convolutions.

    Knobs:
        p: the part P, or "out" for P = out_channels. P must divide out_channels, and it must divide in_channels or be
            a multiple of in_channels.
        arrangement: "shifted" is the arrangement of the paper (figure 3: filter i+1 starts one channel after filter
            i). With "contiguous", the g-th block of filters has its KxK kernels on the g-th block of channels. The two
            are equal up to a fixed permutation of channels and filters; "contiguous" does not have to permute the
            activations.
        form: how the output is computed; the result is the same. "plain" adds two convolutions and works everywhere.
            "fused" adds the second one in place (`ops.kxk_plus_1x1`) and needs a CPU and channels_last. "triton" is one
            kernel (`ops.hetconv_triton`) and needs a GPU. "auto" uses "fused" wherever it is supported, "triton" where
            it was measured to be faster (bfloat16 in channels_last on a GPU, not compiled: `hetconv_triton.wins`), and
            "plain" elsewhere. `deployed` does not know its inputs: it uses "triton" only if form="triton".

    Only the non-zero weights are parameters. Both arrangements store them block by block. With G = min(P, M), row r of
    `weight_kxk` (rows, M/G, K, K) belongs to block r // (N/P). `weight_1x1` (rows, M - M/G) holds the 1x1 kernels of
    the same filters on the channels of the other blocks, in order. `weight_pointwise` (N - rows, M) holds the filters
    without a KxK kernel. A parameter that would be empty is None. `bias` (N,) follows the output channels.

    Raises ValueError for groups other than 1, an even kernel size, a p that does not fit the channels, an unknown
    arrangement and an unknown form. With form="fused" or "triton", `forward` raises ValueError for an unsupported
    input.
    """

    weight_kxk: nn.Parameter
    weight_1x1: nn.Parameter | None
    weight_pointwise: nn.Parameter | None

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
        p: Part = 4,
        arrangement: Arrangement = "contiguous",
        form: Form = "auto",
    ) -> None:
        if groups != 1:
            raise ValueError(f"groups={groups}: HetConv2d connects every filter to every channel; valid: 1")
        check_choice("arrangement", arrangement, ARRANGEMENTS)
        check_choice("form", form, FORMS)
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

        def parameter(*shape: int) -> nn.Parameter:
            return empty_parameter(*shape, device=device, dtype=dtype)

        self.weight_kxk = parameter(rows, block_in, *self.kernel_size)
        self.weight_1x1 = parameter(rows, in_channels - block_in) if self.blocks > 1 else None
        self.weight_pointwise = parameter(self.pointwise_filters, in_channels) if self.pointwise_filters else None
        self.bias = parameter(out_channels) if bias else None
        self.reset_parameters()

    @classmethod
    @torch.no_grad()
    def from_conv(
        cls,
        conv: nn.Conv2d,
        *,
        p: Part = 4,
        arrangement: Arrangement = "contiguous",
        form: Form = "auto",
    ) -> Self:
        """Returns the HetConv that is nearest to `conv` in least squares: it takes each of its weights from `conv`.

        Raises ValueError as the constructor does.
        """
        operator = cls(**conv_arguments(conv), p=p, arrangement=arrangement, form=form)
        kernels = operator._by_block(conv.weight)
        own = torch.arange(operator.blocks, device=conv.weight.device)
        operator.weight_kxk.copy_(kernels[own, :, own].reshape_as(operator.weight_kxk))
        centre = operator._at_centre(kernels)
        if operator.weight_1x1 is not None:
            others = centre[own[:, None], :, operator._other_blocks(own.device)].transpose(1, 2)
            operator.weight_1x1.copy_(others.reshape_as(operator.weight_1x1))
        if operator.weight_pointwise is not None:
            operator.weight_pointwise.copy_(centre[operator.blocks :].reshape_as(operator.weight_pointwise))
        return operator._with_bias_and_mode_of(conv)

    def reset_parameters(self, init: str = "torch") -> None:
        """Draws fresh weights (schemes: `ops.init`) with the true fans of each filter; the bias has their mean fan.

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
        """Returns the multiply-accumulates for one image: one for each non-zero weight and output position."""
        taps, kxk = self.kernel_size[0] * self.kernel_size[1], self.out_channels * self.in_channels // self.parts
        return out_h * out_w * (kxk * taps + self.out_channels * self.in_channels - kxk)

    def dense_weight(self) -> Tensor:
        """Returns the weight (N, M, K, K) of the equivalent standard convolution, zeros included, detached."""
        with torch.no_grad():
            dense = self.weight_kxk.new_zeros(self.out_channels, self.in_channels, *self.kernel_size)
            kernels = self._by_block(dense)
            own = torch.arange(self.blocks, device=dense.device)
            kernels[own, :, own] = self.weight_kxk.unflatten(0, (self.blocks, -1))
            self._at_centre(kernels).add_(self._pointwise_by_block())
        return dense

    def forward(self, x: Tensor) -> Tensor:
        """Adds a grouped KxK convolution and a dense 1x1 convolution with zeros in the filters' own blocks."""
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
        """Returns whether this input is computed in the fused form."""
        able = fits(x) and self.weight_pointwise is None and self.weight_kxk.dtype == x.dtype
        if self.form == "fused" and not able:
            raise ValueError(
                "form='fused' needs a CPU, an input in channels_last of the weights' float32 or float64, no autocast, "
                f"tracing or compilation, and p not above in_channels={self.in_channels}; valid here: auto, plain"
            )
        return able and self.form != "plain"

    def _forward_fused(self, x: Tensor, padding: tuple[int, int]) -> Tensor:
        """Computes the output by `kxk_plus_1x1`, with the input channels and the filters in block order."""
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
        """Computes the same as `forward` without multiplying by structural zeros: it gathers channels."""
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
        return self._plus_bias(self._in_output_order(y))

    def deployed(self) -> nn.Module:
        """Returns a layer that adds a group convolution and a 1x1 convolution; for p=1 the standard convolution.

        Groups of few channels are merged where that is faster (`kxk_plus_1x1.packed`).
        """
        if self.parts == 1:
            return conv(self.weight_kxk, self.bias, **geometry(self))
        able = self.weight_pointwise is None and self.padding_mode == "zeros"
        if self.form == "triton" and able and hetconv_triton.fits(self.weight_kxk):
            return self._deployed_triton()
        weight, groups = packed(self.weight_kxk, self.blocks)
        mixing = self._pointwise_by_block().flatten(2, 3).flatten(0, 1)[..., None, None]
        layer = KxkPlus1x1(
            conv(weight, None, groups, **geometry(self)),
            conv(mixing, None if self.bias is None else self._by_part(self.bias)),
            border=self._border(self.padding),
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
        """Returns what the KxK kernels add to the output, in block order, without the filters that have none."""
        x = self._in_block_order(x)
        return F.conv2d(x, self.weight_kxk, None, self.stride, padding, self.dilation, self.blocks)

    def _at_centre(self, kernels: Tensor) -> Tensor:
        """Returns a view of the central weight of each kernel: (..., K, K) -> (...)."""
        height, width = self.kernel_size
        return kernels[..., height // 2, width // 2]

    def _border(self, padding: tuple[int, int]) -> tuple[int, int]:
        """Returns how far the centres of the first and last windows lie outside the input; inside, if negative."""
        height, width = (p - d * (k // 2) for p, d, k in zip(padding, self.dilation, self.kernel_size, strict=True))
        return height, width

    def _centres(self, x: Tensor, padding: tuple[int, int]) -> Tensor:
        """Returns the pixels at the centres of the windows: (B, M, H', W')."""
        height, width = self._border(padding)
        if height or width:
            x = F.pad(x, (width, width, height, height))
        return x if self.stride == (1, 1) else x[..., :: self.stride[0], :: self.stride[1]]

    def _pointwise_by_block(self) -> Tensor:
        """Returns all 1x1 kernels as (P, N/P, G, M/G), with zeros where a filter has its KxK kernels."""
        blocks, rows = self.blocks, self.out_channels // self.parts
        if self.weight_1x1 is None:
            kernels = self.weight_kxk.new_zeros(blocks, rows, blocks, self.in_channels // blocks)
        else:
            # In row-major order, a G x G matrix with a zero diagonal is one zero followed by G - 1 runs of G entries
            # and a zero. So the diagonal is inserted by padding.
            entries = self.weight_1x1.reshape(blocks, rows, blocks - 1, -1).transpose(1, 2)
            runs = F.pad(entries.reshape(blocks - 1, blocks, -1), (0, 0, 0, 1)).flatten(0, 1)
            kernels = F.pad(runs, (0, 0, 1, 0)).view(blocks, blocks, rows, -1).transpose(1, 2)
        if self.weight_pointwise is not None:
            kernels = torch.cat((kernels, self.weight_pointwise.reshape(-1, *kernels.shape[1:])))
        return kernels

    def _other_blocks(self, device: torch.device) -> Tensor:
        """Returns (G, G - 1): row g lists the blocks of channels other than g."""
        index = torch.arange(self.blocks, device=device)
        return index.expand(self.blocks, -1)[index != index[:, None]].view(self.blocks, -1)

    def _by_block(self, weight: Tensor) -> Tensor:
        """Returns a view of `weight` (N, M, ...) as (P, N/P, G, M/G, ...): part, filter, block, channel."""
        if self.arrangement == "contiguous":
            return weight.unflatten(1, (self.blocks, -1)).unflatten(0, (self.parts, -1))
        return weight.unflatten(1, (-1, self.blocks)).unflatten(0, (-1, self.parts)).transpose(0, 1).transpose(2, 3)

    def _from_blocks(self, kernels: Tensor) -> Tensor:
        """Inverts `_by_block`."""
        if self.arrangement == "shifted":
            kernels = kernels.transpose(0, 1).transpose(2, 3)
        return kernels.flatten(2, 3).flatten(0, 1)

    def _in_block_order(self, x: Tensor) -> Tensor:
        """Sorts the input channels by block."""
        return x if self.arrangement == "contiguous" else channel_shuffle(x, self.in_channels // self.blocks)

    def _in_output_order(self, y: Tensor) -> Tensor:
        """Brings filters in block order to the order of the output channels."""
        return y if self.arrangement == "contiguous" else channel_shuffle(y, self.parts)

    def _by_part(self, values: Tensor) -> Tensor:
        """Brings `values` (N,), one for each output channel, to block order."""
        return values if self.arrangement == "contiguous" else shuffle(values, self.out_channels // self.parts, 0)


def _resolve_part(p: Part, in_channels: int, out_channels: int) -> int:
    """Returns P as a number. Raises ValueError if it does not fit the channels."""
    part = out_channels if p == "out" else p
    valid = [d for d in divisors(out_channels) if in_channels % d == 0 or d % in_channels == 0]
    if not isinstance(part, int) or part not in valid:
        raise ValueError(
            f"p={p!r} must divide out_channels={out_channels} and divide, or be a multiple of, "
            f"in_channels={in_channels} ('out' stands for p=out_channels); valid: {', '.join(map(str, valid))}"
        )
    return part
