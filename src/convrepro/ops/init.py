"""Initialisation of filters, given the true fans of an operator."""

import math

from torch import Tensor, nn

SCHEMES = ("torch", "fan_in", "fan_out")


def init_weight_(weight: Tensor, init: str, *, fan_in: float, fan_out: float) -> Tensor:
    """Fill `weight` in place and return it.

    `fan_in` is the number of products in one output element, `fan_out` the number of output elements that one
    input element reaches. Schemes: `torch` is the default of `nn.Conv2d`, U(-b, b) with b = 1/sqrt(fan_in);
    `fan_in` and `fan_out` are N(0, 2/fan), He et al. 2015 (arXiv 1502.01852), equations 10 and 14.

    Raises ValueError for an unknown scheme.
    """
    if init == "torch":
        bound = 1 / math.sqrt(fan_in)
        return nn.init.uniform_(weight, -bound, bound)
    if init in ("fan_in", "fan_out"):
        return nn.init.normal_(weight, 0.0, math.sqrt(2 / (fan_in if init == "fan_in" else fan_out)))
    raise ValueError(f"init={init!r} is not a scheme; valid: {', '.join(SCHEMES)}")


def init_bias_(bias: Tensor | None, init: str, *, fan_in: float) -> None:
    """Fill `bias` in place: U(-1/sqrt(fan_in), 1/sqrt(fan_in)) for `torch`, zero for the He schemes; None is left."""
    if bias is None:
        return
    if init == "torch":
        bound = 1 / math.sqrt(fan_in)
        nn.init.uniform_(bias, -bound, bound)
    else:
        nn.init.zeros_(bias)
