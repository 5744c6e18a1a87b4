"""Initialisation of weights and biases from the true fans of an operator."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

SCHEMES = ("torch", "fan_in", "fan_out")


def init_weight_(weight: Tensor, init: str, *, fan_in: float, fan_out: float) -> Tensor:
    """Fills `weight` in place and returns it.

    `fan_in` is the number of products in one output element. `fan_out` is the number of output elements that one
    input element contributes to. Schemes: `torch` is the default of `nn.Conv2d`, U(-b, b) with b = 1/sqrt(fan_in);
    `fan_in` and `fan_out` are N(0, 2/fan) of He et al. 2015 (arXiv 1502.01852), equations 10 and 14.

    Raises ValueError for an unknown scheme.
    """
    check_init(init)
    if init == "torch":
        bound = 1 / math.sqrt(fan_in)
        return nn.init.uniform_(weight, -bound, bound)
    return nn.init.normal_(weight, 0.0, math.sqrt(2 / (fan_in if init == "fan_in" else fan_out)))


def check_init(init: str) -> None:
    """Raises ValueError for an unknown scheme."""
    if init not in SCHEMES:
        raise ValueError(f"init={init!r} is not a scheme; valid: {', '.join(SCHEMES)}")


def init_bias_(bias: Tensor | None, init: str, *, fan_in: float) -> None:
    """Fills `bias`, if there is one, in place: U(-b, b) with b = 1/sqrt(fan_in) for `torch`, else zeros."""
    if bias is None:
        return
    if init == "torch":
        bound = 1 / math.sqrt(fan_in)
        nn.init.uniform_(bias, -bound, bound)
    else:
        nn.init.zeros_(bias)


class RepeatedFill(TorchDispatchMode):
    """Makes random fills of large tensors cheap: inside this context they repeat one block of random numbers.

    It serves networks that are only counted. Their values do not matter, and drawing them takes longer than counting.
    """

    BLOCK = 65_537  # A prime number, so that no two rows of a matrix are equal.
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
