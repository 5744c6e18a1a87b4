"""Weights, and in part inputs, of few bits, trained through float latents. With F = weights of an output channel:

| precision | weights | inputs | bits of a weight | multiplications left in an output element |
|---|---|---|---|---|
| `binary` | +-a_n | float | 1 | 1, by a_n |
| `ternary` | -a, 0, a | float | 2 | 1, by a |
| `xnor` | +-a_n | signs, scaled | 1 | 2, by a_n and by the scale of the inputs |
| `fixed` | fixed point, b bits | float, or fixed point | b | F, of b bits |
| `shared` | one of k numbers | float | ceil(log2 k) | min(k, F): inputs are summed by cluster first |

`binary` and `xnor` are the Binary-Weight-Network and XNOR-Net of Rastegari et al. 2016 (arXiv 1603.05279), `ternary` is
Li & Liu 2016 (arXiv 1605.04711), `shared` the trained quantisation of Han et al. 2016 (arXiv 1510.00149), section 3.
`fixed` is dynamic fixed point (Courbariaux et al. 2015, arXiv 1412.7024), with a binary point for each output channel
and, in the inputs, for each image. Values and gradients are stated in `quantizers`. torch has of these fixed point
alone, as `torch.ao.nn.qat.Conv2d`, whose observers change state in each forward pass; here none does.

`shared` is meant for weights that are trained already: of fresh ones, k numbers a layer can still learn. The `params`
of a count have the codebook alone, `weight_bits` the assignment, too.

What XNOR-Net leaves open is chosen here. An input of exactly 0 stays 0, as in the authors' code: padding does, and the
zeros of a ReLU, after which an input is 0 or 1 (with 1 for both, all inputs would be equal). The scale of the inputs
divides by the whole window at borders, too; its gradient is its derivative. The paper's order of layers, a norm right
before each convolution, is the network's matter; weights are neither centred nor clipped.
"""

from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convrepro.ops.base import ConvOperator, Pair, conv_arguments, knobs
from convrepro.ops.deployed import ScaleAndRoundInput, SignInput, conv, geometry, linear
from convrepro.ops.init import init_bias_, init_weight_
from convrepro.ops.quantizers import binary, fixed_point, kmeans, sign, ternary

PRECISIONS = ("binary", "ternary", "xnor", "fixed", "shared")
BITS = range(2, 17)
CLUSTERS = range(2, 257)


def _resolve(word: str, value: int | None, precision: str, owner: str, default: int | None, valid: range) -> int | None:
    """The knob `word` of the precision `owner`, which other precisions refuse."""
    if precision != owner:
        if value is not None:
            raise ValueError(f"{word}={value!r} is a knob of precision={owner!r}, not of {precision!r}; valid: None")
        return None
    value = default if value is None else value
    if value is not None and (not isinstance(value, int) or value not in valid):
        raise ValueError(f"{word}={value!r} is unknown; valid: None ({default}), {valid[0]} to {valid[-1]}")
    return value


class LowPrecisionOperator(nn.Module):
    """What `LowPrecisionConv2d` and `LowPrecisionLinear` share: the latent weight and what becomes of it.

    Parameters: `weight`, the float latent, so that a state dict of the float layer can be loaded as it is. For `shared`
    instead `codebook` (1, clusters), which trains, and the buffer `assignment` (uint8, the shape of the weight), which
    does not. `bias` is float.
    """

    bias: nn.Parameter | None

    def _set_up(
        self,
        shape: tuple[int, ...],
        bias: bool,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
        *,
        precision: str,
        bits: int | None,
        clusters: int | None,
        activation_bits: int | None,
    ) -> None:
        if precision not in PRECISIONS:
            raise ValueError(f"precision={precision!r} is unknown; valid: {', '.join(PRECISIONS)}")
        self.precision = precision
        self.bits = _resolve("bits", bits, precision, "fixed", 8, BITS)
        self.clusters = _resolve("clusters", clusters, precision, "shared", 16, CLUSTERS)
        self.activation_bits = _resolve("activation_bits", activation_bits, precision, "fixed", None, BITS)
        self._shape = torch.Size(shape)
        factory = {"device": device, "dtype": dtype}
        if precision == "shared":
            self.codebook = nn.Parameter(torch.empty((1, self.clusters), **factory))
            self.register_buffer("assignment", torch.zeros(shape, device=device, dtype=torch.uint8))
        else:
            self.weight = nn.Parameter(torch.empty(shape, **factory))
        self.bias = nn.Parameter(torch.empty(shape[0], **factory)) if bias else None
        self.reset_parameters()

    def quantized_weight(self) -> Tensor:
        """The weight as deployed; differentiable with respect to the latents."""
        if self.precision == "shared":
            return self.codebook[0].index_select(0, self.assignment.flatten().int()).view(self._shape)
        if self.precision == "fixed":
            return fixed_point(self.weight, self.bits)
        return ternary(self.weight) if self.precision == "ternary" else binary(self.weight)

    @torch.no_grad()
    def set_weight_(self, weight: Tensor) -> None:
        """Take over a float weight: as the latent, or for `shared` by k-means of all its entries."""
        if self.precision != "shared":
            self.weight.copy_(weight)
        elif not weight.is_meta:
            codebook, assignment = kmeans(weight, self.clusters)
            self.codebook.copy_(codebook[None])
            self.assignment.copy_(assignment)

    def macs(self, out_h: int = 1, out_w: int = 1) -> int:
        """Accumulations for one image with out_h x out_w output positions: one for each weight, zeros included.

        They are additions and subtractions for `binary`, `ternary` and `shared`, bit operations and counts for `xnor`.
        """
        return out_h * out_w * self._shape.numel()

    def multiplications(self, out_h: int = 1, out_w: int = 1) -> int:
        """Multiplications that remain, those by the scales included, as the table above has them."""
        fan_in = self._shape[1:].numel()
        shared = min(self.clusters, fan_in) if self.precision == "shared" else None
        return out_h * out_w * self._shape[0] * (shared or {"fixed": fan_in, "xnor": 2}.get(self.precision, 1))

    def weight_bits(self) -> int:
        """Bits of the weights and of what they share: scales and centroids have 32 each, a binary point has 8."""
        weights, channels = self._shape.numel(), self._shape[0]
        if self.precision == "shared":
            return weights * (self.clusters - 1).bit_length() + 32 * self.clusters
        bits = {"ternary": 2, "fixed": self.bits}.get(self.precision, 1)
        return weights * bits + {"ternary": 32, "fixed": 8 * channels}.get(self.precision, 32 * channels)

    @torch.no_grad()
    def _take_over(self, layer: nn.Conv2d | nn.Linear) -> Self:
        self.set_weight_(layer.weight)
        if self.bias is not None:
            self.bias.copy_(layer.bias)
        return self.train(layer.training)

    @torch.no_grad()
    def _draw(self, init: str, *, fan_in: float, fan_out: float) -> None:
        latent = next(self.parameters())
        self.set_weight_(init_weight_(latent.new_empty(self._shape), init, fan_in=fan_in, fan_out=fan_out))
        init_bias_(self.bias, init, fan_in=fan_in)


class LowPrecisionConv2d(LowPrecisionOperator, ConvOperator):
    """Convolution in few bits: input (B, in_channels, H, W), output (B, out_channels, H', W') as `nn.Conv2d`.

    Its output is that of the standard convolution with `quantized_weight()`; for `xnor`, of the signs of the input,
    times the mean of the input's magnitudes under the window and in the group's channels (paper, section 3.2). It has
    the MACs of `nn.Conv2d` in a cheaper form, and equals it where the weights are of the form already.

    Knobs:
        precision: "binary", "ternary", "xnor", "fixed" or "shared", the forms in the table above.
        bits: of a weight for `fixed`, 2 to 16 with the sign; None is 8.
        clusters: number of weights for `shared`, 2 to 256; None is 16.
        activation_bits: of an input for `fixed`, 2 to 16; None leaves the inputs float.

    Raises ValueError for a knob outside these values, or one of another precision that is not None.
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
        precision: str = "binary",
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
    def from_conv(cls, conv: nn.Conv2d, **knobs: object) -> "LowPrecisionConv2d":
        """The operator with `conv`'s weight as its latent, or for `shared` clustered, and its bias.

        Raises ValueError as the constructor does.
        """
        return cls(**conv_arguments(conv), **knobs)._take_over(conv)

    def reset_parameters(self, init: str = "torch") -> None:
        """Draw a float weight (schemes: `ops.init`) and take it over. Raises ValueError for an unknown scheme."""
        taps = self.kernel_size[0] * self.kernel_size[1]
        fan_in, fan_out = (taps * channels // self.groups for channels in (self.in_channels, self.out_channels))
        self._draw(init, fan_in=fan_in, fan_out=fan_out)

    def forward(self, x: Tensor) -> Tensor:
        """Round the weight, and the input where the precision says so, then convolve."""
        x, padding = self._padded(x)
        words = (self.stride, padding, self.dilation, self.groups)
        if self.precision == "xnor":
            y = F.conv2d(sign(x), self.quantized_weight(), None, *words)
            y = y * self._magnitude(x, padding, y.shape[2:]).to(y.dtype)
            return y if self.bias is None else y + self.bias[:, None, None].to(y.dtype)
        if self.activation_bits is not None:
            x = fixed_point(x, self.activation_bits)
        return F.conv2d(x, self.quantized_weight(), self.bias, *words)

    def deployed(self) -> nn.Module:
        """The plain convolution with `quantized_weight()`, after the rounding of inputs where there is one.

        A norm that follows stays a layer of its own, so that the weights are the codes that were trained.
        """
        words, weight = geometry(self), self.quantized_weight()
        if self.precision == "xnor":
            filters = 1 if self.groups == 1 else self.out_channels
            means = weight.new_full((filters, *self._shape[1:]), 1 / self._shape[1:].numel())
            layers = (conv(w, None, self.groups, **words) for w in (weight, means))
            return SignInput(*layers, None if self.bias is None else self.bias[:, None, None])
        layer = conv(weight, self.bias, self.groups, **words)
        return layer if self.activation_bits is None else nn.Sequential(ScaleAndRoundInput(self.activation_bits), layer)

    def _magnitude(self, x: Tensor, padding: tuple[int, int], positions: torch.Size) -> Tensor:
        """Mean of abs(x) over each window and the channels of each group: (B, 1 or out_channels, H', W')."""
        planes = x.abs().unflatten(1, (self.groups, -1)).mean(2)
        windows = F.unfold(planes, self.kernel_size, self.dilation, padding, self.stride)
        means = windows.unflatten(1, (self.groups, -1)).mean(2).unflatten(2, positions)
        return means if self.groups == 1 else means.repeat_interleave(self.out_channels // self.groups, dim=1)


class LowPrecisionLinear(LowPrecisionOperator):
    """Linear layer in few bits: input (..., in_features), output (..., out_features) as `nn.Linear`.

    Knobs, cost methods and what raises are those of `LowPrecisionConv2d`; the scale of the inputs for `xnor`, and their
    binary point for `fixed`, belong to each vector of in_features.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        precision: str = "binary",
        bits: int | None = None,
        clusters: int | None = None,
        activation_bits: int | None = None,
    ) -> None:
        super().__init__()
        for word, value in (("in_features", in_features), ("out_features", out_features)):
            if value < 1:
                raise ValueError(f"{word}={value} must be at least 1")
        self.in_features = in_features
        self.out_features = out_features
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
    def from_linear(cls, linear: nn.Linear, **knobs: object) -> "LowPrecisionLinear":
        """The operator with `linear`'s weight as its latent, or for `shared` clustered, and its bias."""
        where = {"device": linear.weight.device, "dtype": linear.weight.dtype}
        operator = cls(linear.in_features, linear.out_features, linear.bias is not None, **where, **knobs)
        return operator._take_over(linear)

    def reset_parameters(self, init: str = "torch") -> None:
        """Draw a float weight (schemes: `ops.init`) and take it over. Raises ValueError for an unknown scheme."""
        self._draw(init, fan_in=self.in_features, fan_out=self.out_features)

    def forward(self, x: Tensor) -> Tensor:
        """Round the weight, and the input where the precision says so, then multiply."""
        if self.precision == "xnor":
            y = F.linear(sign(x), self.quantized_weight())
            y = y * x.abs().mean(-1, keepdim=True).to(y.dtype)
            return y if self.bias is None else y + self.bias.to(y.dtype)
        if self.activation_bits is not None:
            x = fixed_point(x.reshape(-1, self.in_features), self.activation_bits).view(x.shape)
        return F.linear(x, self.quantized_weight(), self.bias)

    def deployed(self) -> nn.Module:
        """The plain layer with `quantized_weight()`, after the rounding of inputs where there is one."""
        weight = self.quantized_weight()
        if self.precision == "xnor":
            means = weight.new_full((1, self.in_features), 1 / self.in_features)
            return SignInput(linear(weight), linear(means), self.bias)
        layer, bits = linear(weight, self.bias), self.activation_bits
        return layer if bits is None else nn.Sequential(ScaleAndRoundInput(bits, vectors=True), layer)

    def extra_repr(self) -> str:
        words = [f"{self.in_features}, {self.out_features}"]
        return ", ".join(words + [f"{knob}={getattr(self, knob)!r}" for knob in knobs(type(self))])
