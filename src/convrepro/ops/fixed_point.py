"""Fixed-point numbers for activations and biases, as DeepShift (arXiv 1905.13298) rounds them."""

from dataclasses import dataclass

import torch
from torch import Tensor

from convrepro.ops.straight_through import straight_through


@dataclass(frozen=True)
class FixedPoint:
    """Signed fixed-point numbers: integer codes times `resolution` = 2^-fraction_bits.

    Fields:
        integer_bits: bits before the binary point, the sign among them; 2 or more.
        fraction_bits: bits after it; 0 or more. Both together at most 32.
        nearest: round to the nearest number, halves upwards, and saturate at 2^(integer_bits-1) - resolution
            (DeepShift v1). Otherwise cut towards minus infinity and saturate at 2^(integer_bits-1) - 1 (the public
            code of Q and PS, which leaves the numbers above that one unused).

    The least number is -2^(integer_bits-1) in both. In float32 the result is exact up to 24 bits in total, and beyond
    for every input that float32 resolves.

    Raises ValueError for bits outside these ranges.
    """

    integer_bits: int
    fraction_bits: int
    nearest: bool = False

    def __post_init__(self) -> None:
        bits = (self.integer_bits, self.fraction_bits)
        if not all(isinstance(b, int) for b in bits) or bits[0] < 2 or bits[1] < 0 or sum(bits) > 32:
            raise ValueError(
                f"fixed point with integer_bits={self.integer_bits}, fraction_bits={self.fraction_bits}: must be whole "
                "numbers, integer_bits (with the sign) at least 2, fraction_bits at least 0, together at most 32"
            )

    @property
    def resolution(self) -> float:
        """The distance between neighbours, 2^-fraction_bits."""
        return 2.0**-self.fraction_bits

    @property
    def minimum(self) -> float:
        """The least number, -2^(integer_bits-1)."""
        return -(2.0 ** (self.integer_bits - 1))

    @property
    def maximum(self) -> float:
        """The greatest number that rounding gives."""
        return -self.minimum - (self.resolution if self.nearest else 1.0)

    def quantize(self, x: Tensor) -> Tensor:
        """`x` in this format, in its own dtype; the gradient is the identity, for saturated values too.

        Half-precision input is rounded in float32 and cast back. NaN and infinity give NaN.
        """
        with torch.no_grad():
            scaled = x.to(torch.promote_types(x.dtype, torch.float32)) * 2.0**self.fraction_bits
            if self.nearest:
                code = scaled.floor()
                code += scaled - code >= 0.5
            else:
                code = scaled.floor_()
            value = code.mul_(self.resolution).clamp_(self.minimum, self.maximum).to(x.dtype)
        return straight_through(value, x)
