"""Initialisation of filters, given the true fans of an operator."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

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


class RepeatedFill(TorchDispatchMode):
    """While entered, a random fill of a large tensor repeats a block of numbers: for networks that are only counted,
    whose numbers do not matter, but take longer than the counting.
    """

    BLOCK = 65_537  # a prime, so that no two rows of a matrix are equal
    FILLS = (torch.ops.aten.normal_.default, torch.ops.aten.uniform_.default)

    def __torch_dispatch__(
        self, function: Callable, types: Sequence, args: Sequence = (), kwargs: Mapping | None = None
    ) -> Any:
        if function not in self.FILLS or args[0].numel() <= self.BLOCK:
            return function(*args, **(kwargs or {}))
        tensor, *numbers = args
        block = function(tensor.new_empty(self.BLOCK), *numbers, **(kwargs or {}))
        flat = tensor.view(-1)
        whole = flat.numel() // self.BLOCK * self.BLOCK
        flat[:whole].view(-1, self.BLOCK).copy_(block)
        flat[whole:] = block[: flat.numel() - whole]
        return tensor
