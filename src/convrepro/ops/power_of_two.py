"""Weights that are signed powers of two, in the three forms of DeepShift (arXiv 1905.13298).

Each form keeps float latent parameters, from which every forward pass makes weights +-2^p (or 0) by rounding. The
gradients are those of `straight_through`: steps of autograd of our own, or, where a graph is compiled or traced, the
value plus terms that are zero in the forward pass.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from convrepro.ops.straight_through import scaled_through, straight_through

LN2 = math.log(2)
BITS = range(2, 7)
NO_SHIFT = -2048
"""The shift of a zero weight in v1: 2^-2048 is 0 in every float format."""


_DIGITS = {torch.int32: 23, torch.int64: 52}
"""Binary digits after the leading one of the float format that is as wide as the integer."""


def nearest_power(x: Tensor) -> Tensor:
    """2^round(log2|x|) in float32, or float64 for float64: x rounds upwards from the geometric mean of two powers on.

    In the bits of |x| = 1.m 2^e the exponent stands above the digits m. What is added to them carries into the exponent
    exactly where 1.m > sqrt(2). Zero gives 0; subnormal numbers give at most the least normal one; NaN and infinity
    give any number.
    """
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    if torch.jit.is_tracing():  # the tracer cannot record a view as another dtype
        return torch.exp2(x.abs().double().log2_().round_()).to(x.dtype)
    integer = torch.int32 if x.dtype == torch.float32 else torch.int64
    one = 1 << _DIGITS[integer]
    root = math.isqrt(2 * one * one) + 1
    bits = x.view(integer) & torch.iinfo(integer).max
    return bits.add_(2 * one - root).bitwise_and_(-one).view(x.dtype)


def sign_and_exponent(weight: Tensor) -> tuple[Tensor, Tensor]:
    """A tensor of +-2^p and zeros as (sign in {-1, 0, 1}, exponent p), int64; the exponent of a zero is 0.

    Raises ValueError if an entry is neither zero nor a power of two (NaN, infinity).
    """
    mantissa, exponent = torch.frexp(weight.detach().to(torch.promote_types(weight.dtype, torch.float32)))
    zero = mantissa == 0
    if not torch.all(zero | (mantissa.abs() == 0.5)):
        raise ValueError("a quantised weight is neither 0 nor a power of two: a latent weight is NaN or infinite")
    return mantissa.sign().long(), torch.where(zero, 0, exponent.long() - 1)


def _round(x: Tensor, stochastic: bool) -> Tensor:
    if not stochastic:
        return x.round()
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    return (x + torch.rand_like(x)).floor()


def _from_half(x: Tensor) -> Tensor:
    """x, and 0 where it lies strictly between -1/2 and 1/2."""
    just_below = 0.5 - torch.finfo(x.dtype).eps / 4
    return F.hardshrink(x, just_below)


@dataclass(frozen=True)
class Code:
    """How a weight is stored in `bits` bits: a sign bit and, below it, the field `highest` - p.

    With `zero`, the last value of the field stands for the weight 0.
    """

    bits: int
    highest: int
    zero: bool

    @classmethod
    def of_range(cls, lowest: int, highest: int, zero: bool) -> "Code":
        """The shortest code for the shifts from `lowest` to `highest`, and for 0 if `zero`."""
        return cls(1 + (highest - lowest + zero).bit_length(), highest, zero)


class PowerOfTwo(ABC):
    """A form of weights +-2^p: its latent parameters, what they stand for, and how float weights become latents.

    `latents` names the parameters; all have the shape of the weight. The shifts p are limited to
    [`lowest`, `highest`].
    """

    latents: tuple[str, ...]

    def __init__(self, lowest: int, highest: int) -> None:
        self.lowest = lowest
        self.highest = highest

    @abstractmethod
    def encode(self, weight: Tensor) -> tuple[Tensor, ...]:
        """The latents that stand for the float `weight`: p = round(log2|w|) and the sign of w; 0 stays 0."""

    @abstractmethod
    def weight(self, *latents: Tensor, stochastic: bool = False) -> Tensor:
        """The weight that the latents stand for, with the form's gradients; its dtype is theirs.

        `stochastic` rounds up with the probability of the fractional part, instead of to the nearest.
        """

    @abstractmethod
    def clamp_(self, *latents: Tensor) -> None:
        """Bring the latents into their range, in place. Latents that are not finite become NaN."""

    def code(self, weight: Tensor) -> Code:
        """The code that stores the quantised `weight`."""
        return Code.of_range(self.lowest, self.highest, zero=False)

    def _shifts(self, weight: Tensor) -> Tensor:
        """round(log2|w|), kept in the range; NaN where the weight is not finite."""
        weight = weight.detach()
        shifts = nearest_power(weight.double()).log2_().clamp_(self.lowest, self.highest)
        return straight_through(shifts.to(weight.dtype), weight)


class Q(PowerOfTwo):
    """DeepShift-Q: the latent is an ordinary float weight W; the weight is sign(W) 2^round(log2|W|).

    p in [-(2^(b-1) - 1), 0]. |W| below the least power counts as that power; only an exact 0 gives 0. The gradient
    reaches W unchanged through the logarithm, the rounding and the limits.
    """

    latents = ("weight",)

    def __init__(self, bits: int) -> None:
        super().__init__(-(2 ** (bits - 1) - 1), 0)

    def encode(self, weight: Tensor) -> tuple[Tensor, ...]:
        return (weight.detach(),)

    def weight(self, latent: Tensor, *, stochastic: bool = False) -> Tensor:
        with torch.no_grad():
            power = torch.exp2(_round(latent.abs().log2(), True)) if stochastic else nearest_power(latent)
            value = power.clamp(2.0**self.lowest, 2.0**self.highest).to(latent.dtype).mul_(latent.sign())
        return straight_through(value, latent)

    @torch.no_grad()
    def clamp_(self, latent: Tensor) -> None:
        magnitude = latent.abs().clamp(2.0**self.lowest, 2.0**self.highest)
        latent.copy_(straight_through(latent.sign() * magnitude, latent))


class PS(PowerOfTwo):
    """DeepShift-PS: the latents are a shift P and a sign S; the weight is sgn(S) 2^round(P) with sgn in {-1, 0, 1}.

    p in [-(2^(b-1) - 2), 0]. sgn(S) is 1 from S = 1/2 on, -1 from S = -1/2 on downwards, 0 between. With g the
    gradient of the weight V, P gets g V ln 2 and S gets g.
    """

    latents = ("shift", "sign")

    def __init__(self, bits: int) -> None:
        super().__init__(-(2 ** (bits - 1) - 2), 0)

    def encode(self, weight: Tensor) -> tuple[Tensor, ...]:
        return self._shifts(weight), weight.detach().sign()

    def weight(self, shift: Tensor, sign: Tensor, *, stochastic: bool = False) -> Tensor:
        with torch.no_grad():
            signs = (_round(sign, True) if stochastic else _from_half(sign)).sign_()
            value = torch.exp2(_round(shift, stochastic).clamp_(self.lowest, self.highest)).mul_(signs).to(shift.dtype)
        return scaled_through(value, shift, sign, LN2)

    @torch.no_grad()
    def clamp_(self, shift: Tensor, sign: Tensor) -> None:
        shift.copy_(straight_through(shift.clamp(self.lowest, self.highest), shift))

    def code(self, weight: Tensor) -> Code:
        return Code.of_range(self.lowest, self.highest, zero=True)


class V1(PowerOfTwo):
    """The first version: the latents are a shift S and a negation N; the weight is (-1)^round(N) 2^round(S).

    S has no limits: shifts to the left, too, and zero weights have S = -2048, which underflows to 0. With g the
    gradient of the weight V, S gets g V ln 2 and N gets g. The latter is meant for N in [-1, 0], from which the
    initial values are drawn and where a larger N does mean a larger weight: there, N stands for the sign of N + 1/2.
    `encode` writes -1 where the paper's conversion writes 1, of the same parity, and `clamp_` keeps N there.
    """

    latents = ("shift", "negation")

    def __init__(self, bits: None = None) -> None:
        super().__init__(NO_SHIFT, -NO_SHIFT)

    def encode(self, weight: Tensor) -> tuple[Tensor, ...]:
        return self._shifts(weight), -(weight < 0).to(weight.dtype)

    def weight(self, shift: Tensor, negation: Tensor, *, stochastic: bool = False) -> Tensor:
        with torch.no_grad():
            odd = _round(negation, stochastic).remainder_(2)
            value = torch.exp2(_round(shift, stochastic)).mul_(odd.mul_(-2).add_(1)).to(shift.dtype)
        return scaled_through(value, shift, negation, LN2)

    @torch.no_grad()
    def clamp_(self, shift: Tensor, negation: Tensor) -> None:
        negation.copy_(straight_through(negation.clamp(-1, 0), negation))

    def code(self, weight: Tensor) -> Code:
        """The shortest code for the powers from the least to the greatest in `weight`, and for 0 if it has any."""
        sign, exponent = sign_and_exponent(weight)
        present, zero = exponent[sign != 0], bool((sign == 0).any())
        lowest, highest = (int(present.min()), int(present.max())) if present.numel() else (1, 0)
        return Code.of_range(lowest, highest, zero)


VARIANTS: dict[str, type[PowerOfTwo]] = {"q": Q, "ps": PS, "v1": V1}
"""The forms by the name that the knob `variant` takes."""
