"""Layers for deployed operators: plain convolutions and linear layers, and separate layers that round inputs.

All of them are for inference only. They work with `torch.export` and can be exported to ONNX.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convrepro.ops.base import ConvOperator, pair
from convrepro.ops.fixed_point import FixedPoint
from convrepro.ops.igc import FOLDED_GROUPS, ChannelShuffle, pointwise, shuffle
from convrepro.ops.kxk_plus_1x1 import fits, kxk_plus_1x1


def geometry(operator: ConvOperator) -> dict[str, Any]:
    """Returns the stride, padding, dilation and padding mode of an operator as arguments for `conv`."""
    return {name: getattr(operator, name) for name in ("stride", "padding", "dilation", "padding_mode")}


def conv(weight: Tensor, bias: Tensor | None = None, groups: int = 1, **geometry: Any) -> nn.Conv2d:
    """Returns the plain convolution with `weight` (N, C/groups, K, K) and `bias` (N,)."""
    filters, channels, height, width = weight.shape
    layer = nn.Conv2d(channels * groups, filters, (height, width), groups=groups, bias=False, device="meta", **geometry)
    _set(layer, weight, bias)
    return layer


def linear(weight: Tensor, bias: Tensor | None = None) -> nn.Linear:
    """Returns the plain linear layer with `weight` (N, C) and `bias` (N,)."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    _set(layer, weight, bias)
    return layer


def _set(layer: nn.Conv2d | nn.Linear, weight: Tensor, bias: Tensor | None) -> None:
    layer.weight = nn.Parameter(weight.detach(), False)
    layer.bias = _frozen(bias)
    layer.eval()


def _frozen(bias: Tensor | None) -> nn.Parameter | None:
    return None if bias is None else nn.Parameter(bias.detach(), False)


def pointwise_layers(
    weight: Tensor, groups: int, bias: Tensor | None = None, before: int = 1, after: int = 1, *, form: str = "auto"
) -> list[nn.Module]:
    """Returns layers that compute the same as `igc.pointwise`; `form` is that of the interleaved group convolution."""
    if form == "folded" or (form == "auto" and groups <= FOLDED_GROUPS):
        each = torch.eye(weight.shape[1] * groups, dtype=weight.dtype, device=weight.device)[..., None, None]
        with torch.no_grad():
            dense = pointwise(each, weight, groups, None, before, after)
        return [conv(dense.transpose(0, 1), bias)]
    if bias is not None:
        bias = shuffle(bias, bias.shape[0] // after, 0)
    return [*shuffle_layers(before), conv(weight, bias, groups), *shuffle_layers(after)]


def shuffle_layers(groups: int) -> list[nn.Module]:
    """Returns a list with the layer that shuffles channels into `groups` groups; for one group it is empty."""
    return [ChannelShuffle(groups)] if groups > 1 else []


class KxkPlus1x1(nn.Module):
    """Computes `kxk(x)` plus the 1x1 convolution `mixing` of the pixels at the centres of the windows of `kxk`.

    The first and last centres lie `border` (height, width) pixels outside x, or inside x if the border is negative.
    `mixing` may have more filters than `kxk`; the additional ones have no KxK part. With `in_place`, the function
    `kxk_plus_1x1` adds the two convolutions wherever it supports the input.
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
        self._geometry = pair(kxk.stride, "stride"), pair(kxk.padding, "padding"), pair(kxk.dilation, "dilation")
        self.in_place = in_place and border == (0, 0) and kxk.padding_mode == "zeros" and not self.own_filters

    def forward(self, x: Tensor) -> Tensor:
        kxk, mixing = self.kxk, self.mixing
        if self.in_place and fits(x) and x.dtype == kxk.weight.dtype:
            centres = None if kxk.stride == (1, 1) else x[..., :: kxk.stride[0], :: kxk.stride[1]]
            weights = kxk.weight, mixing.weight.flatten(1), mixing.bias
            return kxk_plus_1x1(x, centres, *weights, *self._geometry, kxk.groups)
        height, width = self.cut
        y = F.pad(kxk(x), (0, 0, 0, 0, 0, self.own_filters)) if self.own_filters else kxk(x)
        return y + mixing(x[..., height : -height or None, width : -width or None])


class RoundInput(nn.Module):
    """Rounds an input of any shape to the fixed-point format `form`."""

    def __init__(self, form: FixedPoint) -> None:
        super().__init__()
        self.form = form

    def forward(self, x: Tensor) -> Tensor:
        return self.form.quantize(x)


class ScaleAndRoundInput(nn.Module):
    """Rounds an input as `quantizers.fixed_point` does, with a binary point for each entry along the first dimension.

    With `vectors`, each vector along the last dimension has its own binary point.

    The power of two is computed by a logarithm, because ONNX has no operation that returns the exponent of a float. In
    float64, the logarithm of a float32 that is not a power of two differs from every integer by at least 1e-7.
    Magnitudes below the smallest normal number count as 0.
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
    """Computes XNOR-Net's product: `layer(x.sign()) * means(x.abs()) + bias`, with broadcasting."""

    def __init__(self, layer: nn.Module, means: nn.Module, bias: Tensor | None) -> None:
        super().__init__()
        self.layer = layer
        self.means = means
        self.bias = _frozen(bias)

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x.sign()) * self.means(x.abs())
        return y if self.bias is None else y + self.bias
