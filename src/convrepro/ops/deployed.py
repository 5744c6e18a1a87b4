"""What operators become when they are deployed: plain layers, and the rounding of inputs as layers of its own.

All of them are for inference, work with `torch.export` and have a form in ONNX.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convrepro.ops.base import ConvOperator
from convrepro.ops.fixed_point import FixedPoint
from convrepro.ops.igc import FOLDED_GROUPS, ChannelShuffle, pointwise, shuffle
from convrepro.ops.kxk_plus_1x1 import fits, kxk_plus_1x1


def geometry(operator: ConvOperator) -> dict[str, Any]:
    """Stride, padding and dilation of an operator, as words for `conv`."""
    return {word: getattr(operator, word) for word in ("stride", "padding", "dilation", "padding_mode")}


def conv(weight: Tensor, bias: Tensor | None = None, groups: int = 1, **geometry: Any) -> nn.Conv2d:
    """The plain convolution with `weight` (N, C/groups, K, K) and `bias` (N,)."""
    channels = weight.shape[1] * groups, weight.shape[0], tuple(weight.shape[2:])
    layer = nn.Conv2d(*channels, groups=groups, bias=False, device="meta", **geometry)
    _set(layer, weight, bias)
    return layer


def linear(weight: Tensor, bias: Tensor | None = None) -> nn.Linear:
    """The plain linear layer with `weight` (N, C) and `bias` (N,)."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    _set(layer, weight, bias)
    return layer


def _set(layer: nn.Module, weight: Tensor, bias: Tensor | None) -> None:
    layer.weight = nn.Parameter(weight.detach(), False)
    layer.bias = None if bias is None else nn.Parameter(bias.detach(), False)
    layer.eval()


def pointwise_layers(
    weight: Tensor, groups: int, bias: Tensor | None = None, before: int = 1, after: int = 1, *, form: str = "auto"
) -> list[nn.Module]:
    """The layers that give what `igc.pointwise` gives, in the `form` that an interleaved group convolution has."""
    if form == "folded" or (form == "auto" and groups <= FOLDED_GROUPS):
        each = torch.eye(weight.shape[1] * groups, dtype=weight.dtype, device=weight.device)[..., None, None]
        with torch.no_grad():
            dense = pointwise(each, weight, groups, None, before, after)
        return [conv(dense.transpose(0, 1), bias)]
    if bias is not None:
        bias = shuffle(bias, bias.shape[0] // after, 0)
    return [*shuffle_layers(before), conv(weight, bias, groups), *shuffle_layers(after)]


def shuffle_layers(groups: int) -> list[nn.Module]:
    """The layer that shuffles channels into `groups` groups; none for one group."""
    return [ChannelShuffle(groups)] if groups > 1 else []


class KxkPlus1x1(nn.Module):
    """`kxk(x)` plus the 1x1 convolution `mixing` of what lies under the centres of its windows.

    The centres lie up to `border` (height, width) outside of x, or, where it is negative, only inside. Where `mixing`
    has more filters than `kxk`, the others are its own. With `in_place` it is added in place where that `fits`.
    """

    def __init__(self, kxk: nn.Conv2d, mixing: nn.Conv2d, border: tuple[int, int], in_place: bool) -> None:
        super().__init__()
        self.kxk = kxk
        self.mixing = conv(
            mixing.weight,
            mixing.bias,
            stride=kxk.stride,
            padding=tuple(max(b, 0) for b in border),
            padding_mode=kxk.padding_mode,
        )
        self.cut = tuple(max(-b, 0) for b in border)
        self.own_filters = mixing.out_channels - kxk.out_channels
        self.in_place = in_place and border == (0, 0) and kxk.padding_mode == "zeros" and not self.own_filters

    def forward(self, x: Tensor) -> Tensor:
        kxk, mixing = self.kxk, self.mixing
        if self.in_place and fits(x) and x.dtype == kxk.weight.dtype:
            centres = None if kxk.stride == (1, 1) else x[..., :: kxk.stride[0], :: kxk.stride[1]]
            words = kxk.stride, kxk.padding, kxk.dilation, kxk.groups
            return kxk_plus_1x1(x, centres, kxk.weight, mixing.weight.flatten(1), mixing.bias, *words)
        height, width = self.cut
        y = F.pad(kxk(x), (0, 0, 0, 0, 0, self.own_filters)) if self.own_filters else kxk(x)
        return y + mixing(x[..., height : -height or None, width : -width or None])


class RoundInput(nn.Module):
    """Rounds an input of any shape to the fixed-point numbers of `form`."""

    def __init__(self, form: FixedPoint) -> None:
        super().__init__()
        self.form = form

    def forward(self, x: Tensor) -> Tensor:
        return self.form.quantize(x)


class ScaleAndRoundInput(nn.Module):
    """`quantizers.fixed_point` with a binary point for each entry along the first dimension, or for each vector along
    the last with `vectors`.

    The power of two comes from a logarithm, for ONNX has nothing that takes a float apart. In float64 that of a float32
    is told from a whole number, by 1e-7 at least. Numbers below the least normal one count as 0.
    """

    def __init__(self, bits: int, *, vectors: bool = False) -> None:
        super().__init__()
        self.bits = bits
        self.vectors = vectors

    def forward(self, x: Tensor) -> Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        over = -1 if self.vectors else tuple(range(1, x.ndim))
        least = wide.abs().amax(over, keepdim=True) / (2 ** (self.bits - 1) - 1)
        exponent = (least.clamp(min=torch.finfo(wide.dtype).tiny).double().log2() - 1e-8).ceil()
        step = exponent.exp2().to(wide.dtype)
        return ((wide / step).round() * step).to(x.dtype)


class SignInput(nn.Module):
    """XNOR-Net's product: `layer` of the input's signs, times `means` of its magnitudes, plus `bias`; all broadcast."""

    def __init__(self, layer: nn.Module, means: nn.Module, bias: Tensor | None) -> None:
        super().__init__()
        self.layer = layer
        self.means = means
        self.bias = None if bias is None else nn.Parameter(bias.detach(), False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x.sign()) * self.means(x.abs())
        return y if self.bias is None else y + self.bias
