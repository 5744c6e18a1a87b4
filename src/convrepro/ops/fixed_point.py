"""Fixed-point numbers for activations and biases, as DeepShift (arXiv 1905.13298) rounds them."""

from dataclasses import dataclass

import torch
from torch import Tensor

from convrepro.ops.straight_through import straight_through


@dataclass(frozen=True)
class FixedPoint:
    """A format of signed fixed-point numbers, which are integer codes times `resolution` = 2^-fraction_bits.

    Fields:
        integer_bits: bits before the binary point, including the sign; at least 2.
        fraction_bits: bits after the binary point; at least 0. Both together are at most 32.
        nearest: if True, numbers are rounded to the nearest, halves upwards, and saturate at
            2^(integer_bits-1) - resolution (DeepShift v1). If False, they are rounded towards minus infinity and
            saturate at 2^(integer_bits-1) - 1 (the public code of Q and PS, which does not use the numbers above it).

    The smallest number is -2^(integer_bits-1) in both cases. In float32 the result is exact for up to 24 bits in
    total, and for more bits wherever float32 resolves the input.

    Raises ValueError for bits outside these ranges.
    """

    integer_bits: int
    fraction_bits: int
    nearest: bool = False

    def __post_init__(self) -> None:
        bits = (self.integer_bits, self.fraction_bits)
        if not all(isinstance(b, int) for b in bits) or bits[0] < 2 or bits[1] < 0 or sum(bits) > 32:
            raise ValueError(
                f"integer_bits={self.integer_bits}, fraction_bits={self.fraction_bits} is not a fixed-point format; "
                "valid: integers, integer_bits (with sign) at least 2, fraction_bits at least 0, together at most 32"
            )

    @property
    def resolution(self) -> float:
        """The distance between neighbouring numbers, 2^-fraction_bits."""
        return 2.0**-self.fraction_bits

    @property
    def minimum(self) -> float:
        """The smallest number, -2^(integer_bits-1)."""
        return -(2.0 ** (self.integer_bits - 1))

    @property
    def maximum(self) -> float:
        """The largest number that rounding returns."""
        return -self.minimum - (self.resolution if self.nearest else 1.0)

    def quantize(self, x: Tensor) -> Tensor:
        """Rounds `x` to this format and returns it in its own dtype.

        The gradient is the identity, also for saturated values. Half-precision input is rounded in float32 and cast
        back. NaN and infinity become NaN.
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
