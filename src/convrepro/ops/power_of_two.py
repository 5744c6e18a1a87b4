"""Weights that are signed powers of two, in the three forms of DeepShift (arXiv 1905.13298).

Each form keeps float latent parameters. Every forward pass rounds them to weights +-2^p (or 0). The gradients are
those of `straight_through`, which uses custom autograd functions, or, while a graph is compiled or traced, adds terms
to the value that are zero in the forward pass.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from convrepro.ops.straight_through import scaled_through, straight_through

LN2 = math.log(2)
BITS = range(2, 7)
NO_SHIFT = -2048
"""The shift of a zero weight in v1. 2^-2048 is 0 in every float format."""


_DIGITS = {torch.int32: 23, torch.int64: 52}
"""The number of mantissa bits of the float format that has the width of the integer type."""


def nearest_power(x: Tensor) -> Tensor:
    """Returns 2^round(log2|x|) in float32, for float64 in float64.

    x is rounded upwards if it is above the geometric mean of two powers. In the bits of |x| = 1.m 2^e, the exponent
    lies above the digits m. The sum below carries into the exponent exactly if 1.m > sqrt(2). Zero becomes 0.
    Subnormal numbers become at most the smallest normal number. The result for NaN and infinity is arbitrary.
    """
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    if torch.jit.is_tracing():  # The tracer cannot record a view with another dtype.
        return torch.exp2(x.abs().double().log2_().round_()).to(x.dtype)
    integer = torch.int32 if x.dtype == torch.float32 else torch.int64
    one = 1 << _DIGITS[integer]
    root = math.isqrt(2 * one * one) + 1
    bits = x.view(integer) & torch.iinfo(integer).max
    return bits.add_(2 * one - root).bitwise_and_(-one).view(x.dtype)


def sign_and_exponent(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Splits a tensor of +-2^p and zeros into its signs, in {-1, 0, 1}, and exponents p, both int64.

    The exponent of a zero is 0. Raises ValueError if an entry is neither zero nor a power of two (NaN, infinity).
    """
    mantissa, exponent = torch.frexp(weight.detach().to(torch.promote_types(weight.dtype, torch.float32)))
    zero = mantissa == 0
    if not torch.all(zero | (mantissa.abs() == 0.5)):
        raise ValueError(
            "a quantised weight is neither 0 nor a power of two, because a latent weight is NaN or infinite; restart "
            "from finite weights"
        )
    return mantissa.sign().long(), torch.where(zero, 0, exponent.long() - 1)


def _round(x: Tensor, stochastic: bool) -> Tensor:
    if not stochastic:
        return x.round()
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    return (x + torch.rand_like(x)).floor()


def _from_half(x: Tensor) -> Tensor:
    """Returns x, with 0 where x lies strictly between -1/2 and 1/2."""
    just_below = 0.5 - torch.finfo(x.dtype).eps / 4
    return F.hardshrink(x, just_below)


@dataclass(frozen=True)
class Code:
    """The format of a weight that is stored in `bits` bits: a sign bit and, below it, the field `highest` - p.

    If `zero` is True, the largest value of the field stands for the weight 0.
    """

    bits: int
    highest: int
    zero: bool

    @classmethod
    def of_range(cls, lowest: int, highest: int, zero: bool) -> "Code":
        """Returns the shortest code for the shifts from `lowest` to `highest`, and for 0 if `zero` is True."""
        return cls(1 + (highest - lowest + zero).bit_length(), highest, zero)


class PowerOfTwo(ABC):
    """Base class of the forms of weights +-2^p. A form defines how latents become weights and weights become latents.

    `latents` lists the names of the latent parameters, which all have the shape of the weight. The shifts p are
    limited to [`lowest`, `highest`].
    """

    latents: tuple[str, ...]

    def __init__(self, lowest: int, highest: int) -> None:
        self.lowest = lowest
        self.highest = highest

    @abstractmethod
    def encode(self, weight: Tensor) -> tuple[Tensor, ...]:
        """Returns the latents for the float `weight`: p = round(log2|w|) and the sign of w. 0 stays 0."""

    @abstractmethod
    def weight(self, *latents: Tensor, stochastic: bool = False) -> Tensor:
        """Returns the weight for the latents, with the gradients of the form, in the dtype of the latents.

        With `stochastic`, rounding is upwards with the probability of the fractional part; without, to the nearest.
        """

    @abstractmethod
    def clamp_(self, *latents: Tensor) -> None:
        """Clamps the latents to their range, in place. Latents that are not finite become NaN."""

    def code(self, weight: Tensor) -> Code:
        """Returns the code that stores the quantised `weight`."""
        return Code.of_range(self.lowest, self.highest, zero=False)

    def _shifts(self, weight: Tensor) -> Tensor:
        """Returns round(log2|w|), clamped to the range of shifts; NaN where the weight is not finite."""
        weight = weight.detach()
        shifts = nearest_power(weight.double()).log2_().clamp_(self.lowest, self.highest)
        return straight_through(shifts.to(weight.dtype), weight)


class Q(PowerOfTwo):
    """DeepShift-Q: the latent is an ordinary float weight W, and the weight is sign(W) 2^round(log2|W|).

    p lies in [-(2^(b-1) - 1), 0]. A |W| below the smallest power counts as this power; only an exact 0 becomes 0. The
    gradient passes unchanged through the logarithm, the rounding and the limits to W.
    """

    latents = ("weight",)

    def __init__(self, bits: int) -> None:
        super().__init__(-(2 ** (bits - 1) - 1), 0)

    def encode(self, weight: Tensor) -> tuple[Tensor, ...]:
        return (weight.detach(),)

    def weight(self, *latents: Tensor, stochastic: bool = False) -> Tensor:
        (latent,) = latents
        with torch.no_grad():
            power = torch.exp2(_round(latent.abs().log2(), True)) if stochastic else nearest_power(latent)
            value = power.clamp(2.0**self.lowest, 2.0**self.highest).to(latent.dtype).mul_(latent.sign())
        return straight_through(value, latent)

    @torch.no_grad()
    def clamp_(self, *latents: Tensor) -> None:
        (latent,) = latents
        magnitude = latent.abs().clamp(2.0**self.lowest, 2.0**self.highest)
        latent.copy_(straight_through(latent.sign() * magnitude, latent))


class PS(PowerOfTwo):
    """DeepShift-PS: the latents are a shift P and a sign S, and the weight is sgn(S) 2^round(P).

    p lies in [-(2^(b-1) - 2), 0]. sgn(S) is 1 for S >= 1/2, -1 for S <= -1/2 and 0 between. If g is the gradient of
    the weight V, the gradient of P is g V ln 2 and that of S is g.
    """

    latents = ("shift", "sign")

    def __init__(self, bits: int) -> None:
        super().__init__(-(2 ** (bits - 1) - 2), 0)

    def encode(self, weight: Tensor) -> tuple[Tensor, ...]:
        return self._shifts(weight), weight.detach().sign()

    def weight(self, *latents: Tensor, stochastic: bool = False) -> Tensor:
        shift, sign = latents
        with torch.no_grad():
            signs = (_round(sign, True) if stochastic else _from_half(sign)).sign_()
            value = torch.exp2(_round(shift, stochastic).clamp_(self.lowest, self.highest)).mul_(signs).to(shift.dtype)
        return scaled_through(value, shift, sign, LN2)

    @torch.no_grad()
    def clamp_(self, *latents: Tensor) -> None:
        shift, _ = latents
        shift.copy_(straight_through(shift.clamp(self.lowest, self.highest), shift))

    def code(self, weight: Tensor) -> Code:
        return Code.of_range(self.lowest, self.highest, zero=True)


class V1(PowerOfTwo):
    """The first version: the latents are a shift S and a negation N, and the weight is (-1)^round(N) 2^round(S).

    S has no limits and may be a shift to the left. Zero weights have S = -2048, which underflows to 0. If g is the
    gradient of the weight V, the gradient of S is g V ln 2 and that of N is g. The gradient of N is correct in
    direction for N in [-1, 0], where the sign of the weight is that of N + 1/2 and a larger N means a larger weight.
    The initial values are drawn from this interval, and `clamp_` keeps N in it. For a negative weight `encode` returns
    N = -1; the paper's conversion returns 1, which has the same parity.
    """

    latents = ("shift", "negation")

    def __init__(self, bits: None = None) -> None:
        super().__init__(NO_SHIFT, -NO_SHIFT)

    def encode(self, weight: Tensor) -> tuple[Tensor, ...]:
        return self._shifts(weight), -(weight < 0).to(weight.dtype)

    def weight(self, *latents: Tensor, stochastic: bool = False) -> Tensor:
        shift, negation = latents
        with torch.no_grad():
            odd = _round(negation, stochastic).remainder_(2)
            value = torch.exp2(_round(shift, stochastic)).mul_(odd.mul_(-2).add_(1)).to(shift.dtype)
        return scaled_through(value, shift, negation, LN2)

    @torch.no_grad()
    def clamp_(self, *latents: Tensor) -> None:
        _, negation = latents
        negation.copy_(straight_through(negation.clamp(-1, 0), negation))

    def code(self, weight: Tensor) -> Code:
        """Returns the shortest code for the powers from the smallest to the largest in `weight`, and for its zeros."""
        sign, exponent = sign_and_exponent(weight)
        present, zero = exponent[sign != 0], bool((sign == 0).any())
        lowest, highest = (int(present.min()), int(present.max())) if present.numel() else (1, 0)
        return Code.of_range(lowest, highest, zero)


VARIANTS: dict[str, Callable[..., PowerOfTwo]] = {"q": Q, "ps": PS, "v1": V1}
"""The forms, keyed by the value of the knob `variant`."""
