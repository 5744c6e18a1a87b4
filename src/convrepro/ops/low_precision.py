"""Weights, and optionally inputs, of few bits, trained through float latents. F is the number of weights of a filter:

| precision | weights | inputs | bits of a weight | multiplications left in an output element |
|---|---|---|---|---|
| `binary` | +-a_n | float | 1 | 1, by a_n |
| `ternary` | -a, 0, a | float | 2 | 1, by a |
| `xnor` | +-a_n | signs, scaled | 1 | 2, by a_n and by the scale of the inputs |
| `fixed` | fixed point, b bits | float or fixed point | b | F, of b bits |
| `shared` | one of k numbers | float | ceil(log2 k) | min(k, F), because inputs are summed by cluster first |

`binary` and `xnor` are the Binary-Weight-Network and XNOR-Net of Rastegari et al. 2016 (arXiv 1603.05279), `ternary` is
Li & Liu 2016 (arXiv 1605.04711), and `shared` is the trained quantisation of Han et al. 2016 (arXiv 1510.00149),
section 3. `fixed` is dynamic fixed point (Courbariaux et al. 2015, arXiv 1412.7024) with a binary point for each output
channel and, for the inputs, for each image. `quantizers` states values and gradients. Of these forms torch has only
fixed point, as `torch.ao.nn.qat.Conv2d`, whose observers change their state in each forward pass; here no forward pass
changes a state.

`shared` is meant for weights that are already trained. From fresh weights, a layer can only learn k numbers. `params`
in a count contains only the codebook; `weight_bits` contains the assignment as well.

The paper on XNOR-Net leaves some points open, and the choices here are as follows. An input of exactly 0 stays 0, as in
the authors' code; this concerns the padding and the output of a ReLU, after which an input becomes 0 or 1 (if 0 became
1, all inputs would be equal). The scale of the inputs divides by the size of the whole window also at borders, and its
gradient is its derivative. The network is responsible for the paper's order of layers, with a norm directly before each
convolution. Weights are neither centred nor clipped.
"""

from abc import abstractmethod
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import Self

from convrepro.ops.base import (
    ConvOperator,
    LinearOperator,
    Operator,
    Pair,
    check_choice,
    conv_arguments,
    empty_parameter,
    linear_arguments,
)
from convrepro.ops.deployed import ScaleAndRoundInput, SignInput, conv, geometry, linear
from convrepro.ops.init import init_bias_, init_weight_
from convrepro.ops.quantizers import binary, fixed_point, kmeans, sign, ternary

Precision = Literal["binary", "ternary", "xnor", "fixed", "shared"]
PRECISIONS = get_args(Precision)
BITS = range(2, 17)
CLUSTERS = range(2, 257)


def _resolve(name: str, value: int | None, precision: str, owner: str, default: int | None, valid: range) -> int | None:
    """Returns the value of a knob that only the precision `owner` has; for other precisions the value must be None."""
    if precision != owner:
        if value is not None:
            raise ValueError(f"{name}={value!r} is a knob of precision={owner!r}, not of {precision!r}; valid: None")
        return None
    value = default if value is None else value
    if value is not None and (not isinstance(value, int) or value not in valid):
        raise ValueError(f"{name}={value!r} is out of range; valid: None ({default}), {valid[0]} to {valid[-1]}")
    return value


class LowPrecisionOperator(Operator):
    """Base class of `LowPrecisionConv2d` and `LowPrecisionLinear`: it owns the latent and derives the weight from it.

    The parameter `weight` is the float latent, so that the layer can load a state dict of the float layer. "shared" has
    the parameter `codebook` (1, clusters) instead, which is trained, and the buffer `assignment` (uint8, in the shape
    of the weight), which is not. `bias` is float.

    The attribute `bits` is None for every precision except "fixed", and `clusters` for every precision except "shared".
    """

    weight: nn.Parameter
    codebook: nn.Parameter
    assignment: Tensor

    def _set_up(
        self,
        shape: tuple[int, ...],
        bias: bool,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
        *,
        precision: Precision,
        bits: int | None,
        clusters: int | None,
        activation_bits: int | None,
    ) -> None:
        check_choice("precision", precision, PRECISIONS)
        self.precision = precision
        self.bits = _resolve("bits", bits, precision, "fixed", 8, BITS)
        self.clusters = _resolve("clusters", clusters, precision, "shared", 16, CLUSTERS)
        self.activation_bits = _resolve("activation_bits", activation_bits, precision, "fixed", None, BITS)
        self._shape = torch.Size(shape)
        if self.clusters is not None:
            self.codebook = empty_parameter(1, self.clusters, device=device, dtype=dtype)
            self.register_buffer("assignment", torch.zeros(shape, device=device, dtype=torch.uint8))
        else:
            self.weight = empty_parameter(*shape, device=device, dtype=dtype)
        self.bias = empty_parameter(shape[0], device=device, dtype=dtype) if bias else None
        self.reset_parameters()

    def quantized_weight(self) -> Tensor:
        """Returns the deployed weight, which is differentiable with respect to the latents."""
        if self.clusters is not None:
            return self.codebook[0].index_select(0, self.assignment.flatten().int()).view(self._shape)
        if self.bits is not None:
            return fixed_point(self.weight, self.bits)
        return ternary(self.weight) if self.precision == "ternary" else binary(self.weight)

    @torch.no_grad()
    def set_weight_(self, weight: Tensor) -> None:
        """Sets the latent to a float weight; "shared" clusters all entries of the weight by k-means."""
        if self.clusters is None:
            self.weight.copy_(weight)
        elif not weight.is_meta:
            codebook, assignment = kmeans(weight, self.clusters)
            self.codebook.copy_(codebook[None])
            self.assignment.copy_(assignment)

    def macs(self, out_h: int = 1, out_w: int = 1) -> int:
        """Returns the accumulations for one image with out_h x out_w output positions: one for each weight.

        Weights that are zero count as well. The accumulations are additions and subtractions for "binary", "ternary"
        and "shared", and bit operations and bit counts for "xnor".
        """
        return out_h * out_w * self._shape.numel()

    def multiplications(self, out_h: int = 1, out_w: int = 1) -> int:
        """Returns the multiplications that remain, including those by scales (see the table of the module)."""
        fan_in = self._shape[1:].numel()
        if self.clusters is not None:
            remaining = min(self.clusters, fan_in)
        else:
            remaining = {"fixed": fan_in, "xnor": 2}.get(self.precision, 1)
        return out_h * out_w * self._shape[0] * remaining

    def weight_bits(self) -> int:
        """Returns the bits of the weights and of shared numbers: 32 for a scale or centroid, 8 for a binary point."""
        weights, channels = self._shape.numel(), self._shape[0]
        if self.clusters is not None:
            return weights * (self.clusters - 1).bit_length() + 32 * self.clusters
        if self.bits is not None:
            return weights * self.bits + 8 * channels
        return 2 * weights + 32 if self.precision == "ternary" else weights + 32 * channels

    def deployed(self) -> nn.Module:
        """Returns the plain layer with the weight `quantized_weight()`, and before it the rounding of inputs, if any.

        A norm that follows is not folded, so that the weights stay the codes that were trained.
        """
        weight = self.quantized_weight()
        if self.precision == "xnor":
            return self._deployed_xnor(weight)
        layer, bits = self._plain_layer(weight, self.bias), self.activation_bits
        return layer if bits is None else nn.Sequential(self._input_rounding(bits), layer)

    @abstractmethod
    def _plain_layer(self, weight: Tensor, bias: Tensor | None) -> nn.Module:
        """Returns the float layer with this weight and bias."""

    @abstractmethod
    def _deployed_xnor(self, weight: Tensor) -> SignInput:
        """Returns the deployed form for the precision "xnor"."""

    @abstractmethod
    def _input_rounding(self, bits: int) -> ScaleAndRoundInput:
        """Returns the layer that rounds inputs to `bits` bits."""

    def _converted_from(self, layer: nn.Conv2d | nn.Linear) -> Self:
        self.set_weight_(layer.weight)
        return self._with_bias_and_mode_of(layer)

    @torch.no_grad()
    def _draw(self, init: str, *, fan_in: float, fan_out: float) -> None:
        latent = next(self.parameters())
        self.set_weight_(init_weight_(latent.new_empty(self._shape), init, fan_in=fan_in, fan_out=fan_out))
        init_bias_(self.bias, init, fan_in=fan_in)


class LowPrecisionConv2d(LowPrecisionOperator, ConvOperator):
    """Convolution in few bits: input (B, in_channels, H, W), output (B, out_channels, H', W') as `nn.Conv2d`.

    Its output is that of the standard convolution with the weight `quantized_weight()`. For "xnor" that convolution is
    applied to the signs of the input, and the output is multiplied by the mean magnitude of the input in the window
    and in the channels of the group (paper, section 3.2). The operator has the MACs of `nn.Conv2d` in a cheaper form,
    and it equals `nn.Conv2d` if quantisation does not change the weights.

    Knobs:
        precision: "binary", "ternary", "xnor", "fixed" or "shared", the forms in the table above.
        bits: the bits of a weight including its sign, for "fixed", 2 to 16. None stands for 8.
        clusters: the number of different weights, for "shared", 2 to 256. None stands for 16.
        activation_bits: the bits of an input, for "fixed", 2 to 16. None keeps the inputs float.

    Raises ValueError for a knob outside these values, and for a knob of another precision that is not None.
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
        precision: Precision = "binary",
        bits: int | None = None,
        clusters: int | None = None,
        activation_bits: int | None = None,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, padding_mode)
        self._set_up(
            (out_channels, in_channels // groups, *self.kernel_size),
            bias,
            device,
            dtype,
            precision=precision,
            bits=bits,
            clusters=clusters,
            activation_bits=activation_bits,
        )

    @classmethod
    def from_conv(cls, conv: nn.Conv2d, **knobs: Any) -> Self:
        """Returns the operator with the weight and the bias of `conv`; "shared" clusters the weight.

        Raises ValueError as the constructor does.
        """
        return cls(**conv_arguments(conv), **knobs)._converted_from(conv)

    def reset_parameters(self, init: str = "torch") -> None:
        """Draws a float weight (schemes: `ops.init`) and sets the latent to it.

        Raises ValueError for an unknown scheme.
        """
        fan_in, fan_out = self._dense_fans()
        self._draw(init, fan_in=fan_in, fan_out=fan_out)

    def _scale_(self, scale: Tensor) -> bool:
        """Returns False: weights are codes of few bits."""
        return False

    def forward(self, x: Tensor) -> Tensor:
        """Rounds the weight, and the input if the precision requires it, then applies the convolution."""
        x, padding = self._padded(x)
        arguments = (self.stride, padding, self.dilation, self.groups)
        if self.precision == "xnor":
            y = F.conv2d(sign(x), self.quantized_weight(), None, *arguments)
            return self._plus_bias(y * self._magnitude(x, padding, y.shape[2:]).to(y.dtype))
        if self.activation_bits is not None:
            x = fixed_point(x, self.activation_bits)
        return F.conv2d(x, self.quantized_weight(), self.bias, *arguments)

    def _plain_layer(self, weight: Tensor, bias: Tensor | None) -> nn.Conv2d:
        return conv(weight, bias, self.groups, **geometry(self))

    def _deployed_xnor(self, weight: Tensor) -> SignInput:
        filters = 1 if self.groups == 1 else self.out_channels
        means = weight.new_full((filters, *self._shape[1:]), 1 / self._shape[1:].numel())
        bias = None if self.bias is None else self.bias[:, None, None]
        return SignInput(self._plain_layer(weight, None), self._plain_layer(means, None), bias)

    def _input_rounding(self, bits: int) -> ScaleAndRoundInput:
        return ScaleAndRoundInput(bits)

    def _magnitude(self, x: Tensor, padding: tuple[int, int], positions: torch.Size) -> Tensor:
        """Returns the mean of abs(x) in each window and group of channels: (B, 1 or out_channels, H', W')."""
        planes = x.abs().unflatten(1, (self.groups, -1)).mean(2)
        windows = F.unfold(planes, self.kernel_size, self.dilation, padding, self.stride)
        means = windows.unflatten(1, (self.groups, -1)).mean(2).unflatten(2, positions)
        return means if self.groups == 1 else means.repeat_interleave(self.out_channels // self.groups, dim=1)


class LowPrecisionLinear(LowPrecisionOperator, LinearOperator):
    """Linear layer in few bits: input (..., in_features), output (..., out_features) as `nn.Linear`.

    Its knobs, cost methods and errors are those of `LowPrecisionConv2d`. Each input vector has its own scale for
    "xnor" and its own binary point for "fixed".
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        precision: Precision = "binary",
        bits: int | None = None,
        clusters: int | None = None,
        activation_bits: int | None = None,
    ) -> None:
        super().__init__(in_features, out_features)
        self._set_up(
            (out_features, in_features),
            bias,
            device,
            dtype,
            precision=precision,
            bits=bits,
            clusters=clusters,
            activation_bits=activation_bits,
        )

    @classmethod
    def from_linear(cls, linear: nn.Linear, **knobs: Any) -> Self:
        """Returns the operator with the weight and the bias of `linear`; "shared" clusters the weight.

        Raises ValueError as the constructor does.
        """
        return cls(**linear_arguments(linear), **knobs)._converted_from(linear)

    def reset_parameters(self, init: str = "torch") -> None:
        """Draws a float weight (schemes: `ops.init`) and sets the latent to it.

        Raises ValueError for an unknown scheme.
        """
        self._draw(init, fan_in=self.in_features, fan_out=self.out_features)

    def forward(self, x: Tensor) -> Tensor:
        """Rounds the weight, and the input if the precision requires it, then applies the linear layer."""
        if self.precision == "xnor":
            y = F.linear(sign(x), self.quantized_weight())
            y = y * x.abs().mean(-1, keepdim=True).to(y.dtype)
            return y if self.bias is None else y + self.bias.to(y.dtype)
        if self.activation_bits is not None:
            x = fixed_point(x.reshape(-1, self.in_features), self.activation_bits).view(x.shape)
        return F.linear(x, self.quantized_weight(), self.bias)

    def _plain_layer(self, weight: Tensor, bias: Tensor | None) -> nn.Linear:
        return linear(weight, bias)

    def _deployed_xnor(self, weight: Tensor) -> SignInput:
        means = weight.new_full((1, self.in_features), 1 / self.in_features)
        return SignInput(linear(weight), linear(means), self.bias)

    def _input_rounding(self, bits: int) -> ScaleAndRoundInput:
        return ScaleAndRoundInput(bits, vectors=True)
