"""DeepShift: weights that are powers of two, so that products become bit shifts. Elhoushi, Chen, Shafiq, Tian, Li:
"DeepShift: Towards Multiplication-Less Neural Networks", arXiv 1905.13298 (v1 2019; v5 2021, CVPR Workshops 2021).

| variant | weight | trained | shifts p for b bits | inputs | bias |
|---|---|---|---|---|---|
| `q` | sign(W) 2^round(log2 abs W) | W | -(2^(b-1) - 1) .. 0 | 16.16, cut | as inputs |
| `ps` | sgn(S) 2^round(P), sgn in {-1, 0, 1} | P, S | -(2^(b-1) - 2) .. 0 | 16.16, cut | as inputs |
| `v1` | (-1)^round(N) 2^round(S) | S, N | unlimited | 8.8, to nearest | float |

The gradients, all straight through the rounding and the limits, are stated in `power_of_two`.

The authors' published code differs; where it does, this is what is done here:
- No forward pass changes a parameter. The code clamps the stored latents at the start of each forward pass; here the
  limits are part of the rounding, and `after_optimizer_step` clamps the stored latents where `clamp_latent` is true.
  Called once before the first step, too, it gives the code's trajectory. Without it a latent can drift beyond a limit
  while the weight stays there, and has to come all the way back before the weight moves again.
- Inputs and biases are rounded in every layer (the code leaves them out in the linear layer of PS, and adds the
  unrounded bias in that of Q).
- S = +-1/2 gives the sign +-1, as the paper's figure has it (the code rounds half to even, to 0).
- log2|W| rounds at the exact geometric mean of two powers, on every device alike.
- Half-precision inputs are rounded in float32.
"""

from collections.abc import Sequence
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convrepro.ops.base import ConvOperator, Pair, conv_arguments, knobs
from convrepro.ops.deployed import RoundInput, conv, geometry, linear
from convrepro.ops.fixed_point import FixedPoint
from convrepro.ops.init import SCHEMES, init_bias_, init_weight_
from convrepro.ops.power_of_two import BITS, VARIANTS

ROUNDINGS = ("deterministic", "stochastic")


def _resolve_bits(variant: str, bits: int | str | None) -> int | None:
    if variant not in VARIANTS:
        raise ValueError(f"variant={variant!r} is unknown; valid: {', '.join(VARIANTS)}")
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


def _resolve_activation(variant: str, activation: str | Sequence[int]) -> FixedPoint | None:
    if activation == "float":
        return None
    if activation == "paper":
        activation = (8, 8) if variant == "v1" else (16, 16)
    if isinstance(activation, str) or not isinstance(activation, Sequence) or len(activation) != 2:
        raise ValueError(
            f"activation={activation!r} is unknown; valid: 'paper', 'float', [integer_bits, fraction_bits]"
        )
    return FixedPoint(*activation, nearest=variant == "v1")


def _keep_layout(value: Tensor, like: Tensor) -> Tensor:
    """`value` with the strides of `like`: arithmetic drops channels_last for one channel or a 1x1 kernel."""
    return value if value.stride() == like.stride() else torch.empty_like(like).copy_(value)


class ShiftOperator(nn.Module):
    """What `ShiftConv2d` and `ShiftLinear` share: the latent parameters and what becomes of them.

    The latents and the bias are parameters of the layer itself; with `frozen` the latents are buffers. For Q the latent
    is called `weight`, so that a state dict of the float layer can be loaded as it is.
    """

    bias: nn.Parameter | None

    def _set_up(
        self,
        shape: tuple[int, ...],
        bias: bool,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
        *,
        variant: str,
        bits: int | str | None,
        activation: str | Sequence[int],
        rounding: str,
        frozen: bool,
        clamp_latent: bool,
    ) -> None:
        if rounding not in ROUNDINGS:
            raise ValueError(f"rounding={rounding!r} is unknown; valid: {', '.join(ROUNDINGS)}")
        self.variant = variant
        self.bits = _resolve_bits(variant, bits)
        if frozen and variant != "v1":
            raise ValueError(f"frozen={frozen!r} is a form of variant='v1', not of variant={variant!r}; valid: False")
        self.quantizer = VARIANTS[variant](self.bits)
        self.activation_format = form = _resolve_activation(variant, activation)
        self.activation = (form.integer_bits, form.fraction_bits) if form else "float"
        self.rounding = rounding
        self.frozen = frozen
        self.clamp_latent = clamp_latent
        for name in self.quantizer.latents:
            latent = torch.empty(shape, device=device, dtype=dtype)
            if frozen:
                self.register_buffer(name, latent)
            else:
                setattr(self, name, nn.Parameter(latent))
        self.bias = nn.Parameter(torch.empty(shape[0], device=device, dtype=dtype)) if bias else None
        self.reset_parameters()

    @property
    def latents(self) -> tuple[Tensor, ...]:
        """The latent tensors, in the order of `quantizer.latents`; each has the shape of the weight."""
        return tuple(getattr(self, name) for name in self.quantizer.latents)

    def quantized_weight(self) -> Tensor:
        """The weight as deployed, +-2^p or 0, rounded deterministically; differentiable with respect to the latents."""
        return self.quantizer.weight(*self.latents)

    @torch.no_grad()
    def set_weight_(self, weight: Tensor) -> None:
        """Take over a float weight by the variant's conversion. A weight of +-2^p within the limits is kept exactly."""
        for latent, value in zip(self.latents, self.quantizer.encode(weight), strict=True):
            latent.copy_(value)

    def after_optimizer_step(self) -> None:
        """Clamp the stored latents as the authors' code does, if `clamp_latent`; trainers call it after each step."""
        if self.clamp_latent and not self.frozen:
            self.quantizer.clamp_(*self.latents)

    @property
    def own_decay(self) -> bool:
        """Whether weight decay is of the weight that the latents stand for, not of the latents: that of PS.

        Trainers then add the decay times `weight_penalty()` to the loss, and let the optimizer decay no latent.
        """
        return self.variant == "ps"

    def weight_penalty(self) -> Tensor:
        """Half the sum of the squares of 2^P, with P as it is stored: not rounded, whatever the sign. For PS only.

        This is the authors' published code; their text has (2^P S)^2, in which a weight of 0 does not count.
        """
        shift, _ = self.latents
        return torch.exp2(2 * shift).sum() / 2

    def deployed(self) -> nn.Module:
        """The plain layer with `quantized_weight()`, after the rounding of inputs; the bias is rounded here.

        A norm that follows stays a layer of its own, so that the weights are powers of two.
        """
        form, weight, bias = self.activation_format, self.quantized_weight(), self.bias
        if form is not None and bias is not None and self.variant != "v1":
            bias = form.quantize(bias)
        if isinstance(self, ConvOperator):
            layer = conv(_keep_layout(weight, self.latents[0]), bias, self.groups, **geometry(self))
        else:
            layer = linear(weight, bias)
        return layer if form is None else nn.Sequential(RoundInput(form), layer)

    def macs(self, out_h: int = 1, out_w: int = 1) -> int:
        """Shift-and-add operations for one image with out_h x out_w output positions: the MACs of the float layer."""
        return out_h * out_w * self.latents[0].numel()

    def multiplications(self, out_h: int = 1, out_w: int = 1) -> int:
        """Multiplications among `macs`: none."""
        return 0

    def shifts(self, out_h: int = 1, out_w: int = 1) -> int:
        """Multiplications among `macs` that became bit shifts: all."""
        return self.macs(out_h, out_w)

    def weight_bits(self) -> int:
        """Bits of the weights as `shift_packing` stores them: for Q and PS b each. For v1 what the range in use needs.

        An exact 0 among Q's weights, which no training leaves there, takes 32 bits more when packed.
        """
        weight = self.latents[0]
        bits = self.quantizer.code(self.quantized_weight()).bits if self.bits is None else self.bits
        return bits * weight.numel()

    @torch.no_grad()
    def _take_over(self, layer: nn.Conv2d | nn.Linear) -> Self:
        self.set_weight_(layer.weight)
        if self.bias is not None:
            self.bias.copy_(layer.bias)
        return self.train(layer.training)

    def _draw(self, init: str, *, fan_in: float, fan_out: float, v1_bias: float) -> None:
        if init not in SCHEMES:
            raise ValueError(f"init={init!r} is not a scheme; valid: {', '.join(SCHEMES)}")
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
        """Input, weight and bias as they enter the product."""
        stochastic = self.training and self.rounding == "stochastic"
        weight, bias = self.quantizer.weight(*self.latents, stochastic=stochastic), self.bias
        if self.activation_format is not None:
            x = self.activation_format.quantize(x)
            if bias is not None and self.variant != "v1":
                bias = self.activation_format.quantize(bias)
        return x, weight, bias


class ShiftConv2d(ShiftOperator, ConvOperator):
    """Convolution with weights +-2^p: input (B, in_channels, H, W), output (B, out_channels, H', W') as `nn.Conv2d`.

    Its output is that of the standard convolution of the rounded input with `quantized_weight()`, which
    `shift_integer.integer_forward` reproduces with integers and shifts. It has the MACs of `nn.Conv2d`, each of them a
    shift and an addition, and equals `nn.Conv2d` where the weights are powers of two and the inputs have the format.

    Knobs:
        variant: "q", "ps" or "v1", the forms in the table above.
        bits: b, 2 to 6 bits for a weight with its sign. "paper" is 5 for Q and PS; v1 has no limit (None).
        activation: "paper" (the variant's own fixed point), "float" (no rounding), or [integer_bits, fraction_bits],
            where the integer bits include the sign; see `fixed_point.FixedPoint`. The bias of Q and PS has it, too.
        rounding: of the latents, in training: "deterministic" (to nearest) or "stochastic" (up with the probability of
            the fractional part). Evaluation is deterministic.
        frozen: v1 only: S and N never change and only the bias trains, which is what the authors' first code did.
        clamp_latent: whether `after_optimizer_step` clamps the stored latents: W to the magnitudes of the powers, P to
            the range of shifts, N to [-1, 0]. False leaves them free; for v1 that is the formula taken literally.

    bits=6 needs a format with powers down to 2^-31: float32 or bfloat16, not float16.

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
        variant: str = "q",
        bits: int | str | None = "paper",
        activation: str | Sequence[int] = "paper",
        rounding: str = "deterministic",
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
    def from_conv(cls, conv: nn.Conv2d, **knobs: object) -> "ShiftConv2d":
        """The operator with `conv`'s weight, converted by the variant's rule, and its bias.

        The latent of Q is the float weight itself; PS and v1 round log2|w|. Raises ValueError as the constructor does.
        """
        return cls(**conv_arguments(conv), **knobs)._take_over(conv)

    def reset_parameters(self, init: str = "torch") -> None:
        """Fresh latents: Q draws W by the scheme (`ops.init`); PS converts a weight drawn so; v1 has its own rule.

        v1, whatever `init` says: S ~ U(-10, -1), N ~ U(-1, 0), bias ~ U(-1/sqrt(fan_in), 1/sqrt(fan_in)).
        Raises ValueError for an unknown scheme.
        """
        taps = self.kernel_size[0] * self.kernel_size[1]
        fan_in, fan_out = (taps * channels // self.groups for channels in (self.in_channels, self.out_channels))
        self._draw(init, fan_in=fan_in, fan_out=fan_out, v1_bias=fan_in**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        """Round the input and the latents, then convolve."""
        x, weight, bias = self._operands(x)
        weight = _keep_layout(weight, self.latents[0])
        x, padding = self._padded(x)
        return F.conv2d(x, weight, bias, self.stride, padding, self.dilation, self.groups)


class ShiftLinear(ShiftOperator):
    """Linear layer with weights +-2^p: input (..., in_features), output (..., out_features) as `nn.Linear`.

    Knobs, cost methods and what raises are those of `ShiftConv2d`.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        variant: str = "q",
        bits: int | str | None = "paper",
        activation: str | Sequence[int] = "paper",
        rounding: str = "deterministic",
        frozen: bool = False,
        clamp_latent: bool = True,
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
            variant=variant,
            bits=bits,
            activation=activation,
            rounding=rounding,
            frozen=frozen,
            clamp_latent=clamp_latent,
        )

    @classmethod
    def from_linear(cls, linear: nn.Linear, **knobs: object) -> "ShiftLinear":
        """The operator with `linear`'s weight, converted by the variant's rule, and its bias; see `ShiftConv2d`."""
        where = {"device": linear.weight.device, "dtype": linear.weight.dtype}
        return cls(linear.in_features, linear.out_features, linear.bias is not None, **where, **knobs)._take_over(
            linear
        )

    def reset_parameters(self, init: str = "torch") -> None:
        """Fresh latents as in `ShiftConv2d`, but v1's bias ~ U(-0.1, 0.1). Raises ValueError for an unknown scheme."""
        self._draw(init, fan_in=self.in_features, fan_out=self.out_features, v1_bias=0.1)

    def forward(self, x: Tensor) -> Tensor:
        """Round the input and the latents, then multiply."""
        return F.linear(*self._operands(x))

    def extra_repr(self) -> str:
        words = [f"{self.in_features}, {self.out_features}"]
        return ", ".join(words + [f"{knob}={getattr(self, knob)!r}" for knob in knobs(type(self))])
