"""DeepShift: weights that are powers of two, so that products become bit shifts. Elhoushi, Chen, Shafiq, Tian, Li:
"DeepShift: Towards Multiplication-Less Neural Networks", arXiv 1905.13298 (v1 2019; v5 2021, CVPR Workshops 2021).

| variant | weight | latents | shifts p for b bits | inputs | bias |
|---|---|---|---|---|---|
| `q` | sign(W) 2^round(log2 abs W) | W | -(2^(b-1) - 1) .. 0 | 16.16, rounded down | as inputs |
| `ps` | sgn(S) 2^round(P), sgn in {-1, 0, 1} | P, S | -(2^(b-1) - 2) .. 0 | 16.16, rounded down | as inputs |
| `v1` | (-1)^round(N) 2^round(S) | S, N | unlimited | 8.8, to nearest | float |

The latents are the parameters that are trained. Their gradients pass straight through the rounding and the limits;
`power_of_two` states them.

This implementation differs from the authors' published code in the following points:
- No forward pass changes a parameter. The authors' code clamps the stored latents at the start of each forward pass.
  Here the limits are part of the rounding, and `after_optimizer_step` clamps the stored latents if `clamp_latent` is
  True. With one more call before the first step, the trajectory is that of the authors' code. Without clamping, a
  latent can drift beyond a limit while the weight stays at the limit, and has to return before the weight moves again.
- Inputs and biases are rounded in every layer. The authors' code does not round them in the linear layer of PS, and
  adds the unrounded bias in that of Q.
- S = +-1/2 gives the sign +-1, as in the paper's figure. The authors' code rounds half to even, to 0.
- log2|W| is rounded at the exact geometric mean of two powers, on every device.
- Half-precision inputs are rounded in float32.
"""

from abc import abstractmethod
from collections.abc import Sequence
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
from convrepro.ops.deployed import RoundInput, conv, geometry, linear
from convrepro.ops.fixed_point import FixedPoint
from convrepro.ops.init import check_init, init_bias_, init_weight_
from convrepro.ops.power_of_two import BITS, VARIANTS

Variant = Literal["q", "ps", "v1"]
Bits = int | Literal["paper"] | None
Activation = Literal["paper", "float"] | Sequence[int]
Rounding = Literal["deterministic", "stochastic"]
ROUNDINGS = get_args(Rounding)


def _resolve_bits(variant: Variant, bits: Bits) -> int | None:
    check_choice("variant", variant, VARIANTS)
    if variant == "v1":
        if bits not in ("paper", None):
            raise ValueError(f"bits={bits!r}: the shifts of variant='v1' have no limits; valid: 'paper', None")
        return None
    if bits == "paper":
        return 5
    if not isinstance(bits, int) or bits not in BITS:
        raise ValueError(
            f"bits={bits!r} of variant={variant!r} is unknown; valid: 'paper', {', '.join(map(str, BITS))}"
        )
    return bits


def _resolve_activation(variant: Variant, activation: Activation) -> FixedPoint | None:
    bits: Sequence[int] | None = None if isinstance(activation, str) else activation
    if activation == "float":
        return None
    if activation == "paper":
        bits = (8, 8) if variant == "v1" else (16, 16)
    if not isinstance(bits, Sequence) or len(bits) != 2:
        raise ValueError(
            f"activation={activation!r} is unknown; valid: 'paper', 'float', [integer_bits, fraction_bits]"
        )
    return FixedPoint(bits[0], bits[1], nearest=variant == "v1")


def _keep_layout(value: Tensor, like: Tensor) -> Tensor:
    """Returns `value` with the strides of `like`; arithmetic loses channels_last for one channel or a 1x1 kernel."""
    return value if value.stride() == like.stride() else torch.empty_like(like).copy_(value)


class ShiftOperator(Operator):
    """Base class of `ShiftConv2d` and `ShiftLinear`: it owns the latents and derives the weight from them.

    The latents and the bias are parameters of the layer; with `frozen` the latents are buffers. The latent of Q is
    named `weight`, so that the layer can load a state dict of the float layer.
    """

    activation: tuple[int, int] | str

    def _set_up(
        self,
        shape: tuple[int, ...],
        bias: bool,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
        *,
        variant: Variant,
        bits: Bits,
        activation: Activation,
        rounding: Rounding,
        frozen: bool,
        clamp_latent: bool,
    ) -> None:
        check_choice("rounding", rounding, ROUNDINGS)
        self.variant = variant
        self.bits = _resolve_bits(variant, bits)
        if frozen and variant != "v1":
            raise ValueError(f"frozen={frozen!r} is a knob of variant='v1', not of variant={variant!r}; valid: False")
        self.quantizer = VARIANTS[variant](self.bits)
        self.activation_format = form = _resolve_activation(variant, activation)
        self.activation = (form.integer_bits, form.fraction_bits) if form else "float"
        self.rounding = rounding
        self.frozen = frozen
        self.clamp_latent = clamp_latent
        for name in self.quantizer.latents:
            latent = empty_parameter(*shape, device=device, dtype=dtype)
            if frozen:
                self.register_buffer(name, latent.detach())
            else:
                setattr(self, name, latent)
        self.bias = empty_parameter(shape[0], device=device, dtype=dtype) if bias else None
        self.reset_parameters()

    @property
    def latents(self) -> tuple[Tensor, ...]:
        """The latent tensors, in the order of `quantizer.latents`; each has the shape of the weight."""
        return tuple(getattr(self, name) for name in self.quantizer.latents)

    def quantized_weight(self) -> Tensor:
        """Returns the deployed weight, +-2^p or 0, which is differentiable with respect to the latents.

        Rounding is deterministic.
        """
        return self.quantizer.weight(*self.latents)

    @torch.no_grad()
    def set_weight_(self, weight: Tensor) -> None:
        """Sets the latents from a float weight by the variant's conversion; +-2^p within the limits is kept exactly."""
        for latent, value in zip(self.latents, self.quantizer.encode(weight), strict=True):
            latent.copy_(value)

    def after_optimizer_step(self) -> None:
        """Clamps the stored latents as the authors' code does, if `clamp_latent` is True.

        The training loop calls it after each step of the optimizer.
        """
        if self.clamp_latent and not self.frozen:
            self.quantizer.clamp_(*self.latents)

    @property
    def own_decay(self) -> bool:
        """Whether weight decay applies to the weight instead of the latents, which holds for PS.

        If so, the training loop adds the decay times `weight_penalty()` to the loss, and the optimizer does not decay
        the latents.
        """
        return self.variant == "ps"

    def weight_penalty(self) -> Tensor:
        """Returns half the sum of the squares of 2^P, where P is not rounded and the sign does not count; for PS only.

        This follows the authors' published code. Their text has (2^P S)^2, to which a weight of 0 adds nothing.
        """
        shift, _ = self.latents
        return torch.exp2(2 * shift).sum() / 2

    def deployed(self) -> nn.Module:
        """Returns a layer that rounds the input, if the format is not float, followed by the plain layer.

        The plain layer has the weight `quantized_weight()` and the rounded bias. A norm that follows is not folded, so
        that the weights stay powers of two.
        """
        layer = self._plain_layer(self.quantized_weight(), self._rounded_bias())
        return layer if self.activation_format is None else nn.Sequential(RoundInput(self.activation_format), layer)

    @abstractmethod
    def _plain_layer(self, weight: Tensor, bias: Tensor | None) -> nn.Module:
        """Returns the float layer with this weight and bias."""

    def _rounded_bias(self) -> Tensor | None:
        """Returns the bias as it enters the sum. v1 does not round it."""
        if self.bias is None or self.activation_format is None or self.variant == "v1":
            return self.bias
        return self.activation_format.quantize(self.bias)

    def macs(self, out_h: int = 1, out_w: int = 1) -> int:
        """Returns the MACs of the float layer for one image; here each is a shift and an addition."""
        return out_h * out_w * self.latents[0].numel()

    def multiplications(self, out_h: int = 1, out_w: int = 1) -> int:
        """Returns 0, because every multiplication became a shift."""
        return 0

    def shifts(self, out_h: int = 1, out_w: int = 1) -> int:
        """Returns `macs`, because every multiplication became a shift."""
        return self.macs(out_h, out_w)

    def weight_bits(self) -> int:
        """Returns the bits of the weights as `shift_packing` stores them.

        Each weight takes b bits for Q and PS; for v1 it takes the bits that the range of its shifts needs. An exact 0
        among the weights of Q, which training practically never produces, takes 32 more bits when packed.
        """
        weight = self.latents[0]
        bits = self.quantizer.code(self.quantized_weight()).bits if self.bits is None else self.bits
        return bits * weight.numel()

    def _converted_from(self, layer: nn.Conv2d | nn.Linear) -> Self:
        self.set_weight_(layer.weight)
        return self._with_bias_and_mode_of(layer)

    def _draw(self, init: str, *, fan_in: float, fan_out: float, v1_bias: float) -> None:
        check_init(init)
        if self.variant == "v1":
            shift, negation = self.latents
            nn.init.uniform_(shift, -10, -1)
            nn.init.uniform_(negation, -1, 0)
            if self.bias is not None:
                nn.init.uniform_(self.bias, -v1_bias, v1_bias)
            return
        self.set_weight_(init_weight_(torch.empty_like(self.latents[0]), init, fan_in=fan_in, fan_out=fan_out))
        init_bias_(self.bias, init, fan_in=fan_in)

    def _operands(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Returns the rounded input, weight and bias."""
        stochastic = self.training and self.rounding == "stochastic"
        weight = self.quantizer.weight(*self.latents, stochastic=stochastic)
        if self.activation_format is not None:
            x = self.activation_format.quantize(x)
        return x, weight, self._rounded_bias()


class ShiftConv2d(ShiftOperator, ConvOperator):
    """Convolution with weights +-2^p: input (B, in_channels, H, W), output (B, out_channels, H', W') as `nn.Conv2d`.

    Its output is that of the standard convolution of the rounded input with the weight `quantized_weight()`;
    `shift_integer.integer_forward` reproduces it with integers and shifts. It has the MACs of `nn.Conv2d`, where each
    MAC is a shift and an addition. It equals `nn.Conv2d` if the weights are powers of two and the inputs fixed-point
    numbers of the format.

    Knobs:
        variant: "q", "ps" or "v1", the forms in the table above.
        bits: b, the bits of a weight including its sign, 2 to 6. "paper" is 5 for Q and PS. v1 has no limit (None).
        activation: "paper" (the variant's own fixed-point format), "float" (no rounding), or [integer_bits,
            fraction_bits], where the integer bits include the sign (`fixed_point.FixedPoint`). The bias of Q and PS
            has the same format.
        rounding: the rounding of the latents in training, "deterministic" (to the nearest) or "stochastic" (upwards
            with the probability of the fractional part). Evaluation is deterministic.
        frozen: for v1 only. If True, S and N never change and only the bias is trained, as in the authors' first code.
        clamp_latent: whether `after_optimizer_step` clamps the stored latents: W to the magnitudes of the powers, P to
            the range of shifts, N to [-1, 0]. For v1, False is the literal reading of the formula.

    bits=6 needs a float format with powers down to 2^-31: float32 or bfloat16, not float16.

    Raises ValueError for a knob outside these values.
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
        variant: Variant = "q",
        bits: Bits = "paper",
        activation: Activation = "paper",
        rounding: Rounding = "deterministic",
        frozen: bool = False,
        clamp_latent: bool = True,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, padding_mode)
        self._set_up(
            (out_channels, in_channels // groups, *self.kernel_size),
            bias,
            device,
            dtype,
            variant=variant,
            bits=bits,
            activation=activation,
            rounding=rounding,
            frozen=frozen,
            clamp_latent=clamp_latent,
        )

    @classmethod
    def from_conv(cls, conv: nn.Conv2d, **knobs: Any) -> Self:
        """Returns the operator with the weight of `conv`, converted by the variant's rule, and the bias of `conv`.

        The latent of Q is the float weight itself; PS and v1 round log2|w|. Raises ValueError as the constructor does.
        """
        return cls(**conv_arguments(conv), **knobs)._converted_from(conv)

    def reset_parameters(self, init: str = "torch") -> None:
        """Draws fresh latents: Q draws W by the scheme (`ops.init`), and PS converts a weight that is drawn so.

        v1 ignores the scheme: S ~ U(-10, -1), N ~ U(-1, 0), bias ~ U(-1/sqrt(fan_in), 1/sqrt(fan_in)).
        Raises ValueError for an unknown scheme.
        """
        fan_in, fan_out = self._dense_fans()
        self._draw(init, fan_in=fan_in, fan_out=fan_out, v1_bias=fan_in**-0.5)

    def _plain_layer(self, weight: Tensor, bias: Tensor | None) -> nn.Module:
        return conv(_keep_layout(weight, self.latents[0]), bias, self.groups, **geometry(self))

    def _scale_(self, scale: Tensor) -> bool:
        """Returns False: weights are powers of two."""
        return False

    def forward(self, x: Tensor) -> Tensor:
        """Rounds the input and the latents, then applies the convolution."""
        x, weight, bias = self._operands(x)
        weight = _keep_layout(weight, self.latents[0])
        x, padding = self._padded(x)
        return F.conv2d(x, weight, bias, self.stride, padding, self.dilation, self.groups)


class ShiftLinear(ShiftOperator, LinearOperator):
    """Linear layer with weights +-2^p: input (..., in_features), output (..., out_features) as `nn.Linear`.

    Its knobs, cost methods and errors are those of `ShiftConv2d`.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        variant: Variant = "q",
        bits: Bits = "paper",
        activation: Activation = "paper",
        rounding: Rounding = "deterministic",
        frozen: bool = False,
        clamp_latent: bool = True,
    ) -> None:
        super().__init__(in_features, out_features)
        self._set_up(
            (out_features, in_features),
            bias,
            device,
            dtype,
            variant=variant,
            bits=bits,
            activation=activation,
            rounding=rounding,
            frozen=frozen,
            clamp_latent=clamp_latent,
        )

    @classmethod
    def from_linear(cls, linear: nn.Linear, **knobs: Any) -> Self:
        """Returns the operator with the weight of `linear`, converted as in `ShiftConv2d`, and the bias of `linear`."""
        return cls(**linear_arguments(linear), **knobs)._converted_from(linear)

    def reset_parameters(self, init: str = "torch") -> None:
        """Draws fresh latents as `ShiftConv2d` does, except that the bias of v1 is U(-0.1, 0.1).

        Raises ValueError for an unknown scheme.
        """
        self._draw(init, fan_in=self.in_features, fan_out=self.out_features, v1_bias=0.1)

    def _plain_layer(self, weight: Tensor, bias: Tensor | None) -> nn.Module:
        return linear(weight, bias)

    def forward(self, x: Tensor) -> Tensor:
        """Rounds the input and the latents, then applies the linear layer."""
        return F.linear(*self._operands(x))
