"""A case: an operator with its knobs, and what the tests need to know about it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)


def count_weights(module: nn.Module) -> int:
    """The number of weights, for an operator whose parameters are its weights, biases, norms and scalars."""
    return sum(p.numel() for p in module.parameters() if p.ndim > 1)


@dataclass(frozen=True)
class OperatorCase:
    """An operator with its knobs, and what the tests need to know about it."""

    operator: Any
    """Its class."""
    in_channels: int = 8
    out_channels: int = 12
    """Channels with which, and with twice as many groups as one, the operator can be built."""
    knobs: dict[str, Any] = field(default_factory=dict)
    """The operator's own keywords, by name; what is left out has the default of the signature."""
    name: str = ""
    """In the names of the tests; by default the class and its knobs."""
    degenerate: dict[str, Any] | None = None
    """Constructor words (knobs among them) at which `from_conv(conv)` equals the convolution, or None."""
    bad: tuple[tuple[dict[str, Any], tuple[str, ...]], ...] = ()
    """Pairs (constructor words that must raise ValueError, pieces that the message must contain)."""
    weights: Callable[[nn.Module], int] = count_weights
    """The number of non-zero weights of the kernel, each used once for an output position."""
    products: Callable[[nn.Module, int, int], int] | None = None
    """Multiply-accumulates for (out_h, out_w), where a weight is not used once for each output position."""
    multiplies: bool = True
    """Whether each multiply-accumulate is a multiplication or a shift; otherwise most are additions."""
    undecayed: frozenset[str] = frozenset({"bias"})
    """The parameters of fewer than two dimensions, which get no weight decay; those of norms are not listed."""
    tolerance: float = 1e-5
    """Largest absolute difference between `forward` and `forward_exact` in float32."""
    autocast_tolerance: float = 0.05
    """Largest absolute difference between bfloat16 autocast and float32."""

    def __post_init__(self) -> None:
        if not self.name:
            words = [f"{knob}={value}" for knob, value in self.knobs.items()]
            object.__setattr__(self, "name", "-".join([self.operator.__name__, *words]))

    def build(self, kernel_size: Any = 3, **words: Any) -> Any:
        """The operator with this case's channels and knobs, unless `words` say otherwise."""
        channels = {"in_channels": self.in_channels, "out_channels": self.out_channels}
        return self.operator(**{**channels, "kernel_size": kernel_size, **self.knobs, **words})


def images(case: OperatorCase, batch: int = 2, height: int = 9, width: int = 12, **words: Any) -> Tensor:
    """Random images (batch, C, height, width) for the operator of the case."""
    return torch.randn(batch, case.in_channels, height, width, **words)


def is_of_a_norm(operator: nn.Module, name: str) -> bool:
    """Whether the parameter or buffer of this name belongs to a norm inside the operator."""
    return isinstance(operator.get_submodule(name.rpartition(".")[0]), NORMS)


def modes(operator: nn.Module) -> Iterator[Any]:
    """The operator in each mode in which the output for an image depends on that image alone."""
    if not any(isinstance(module, NORMS) for module in operator.modules()):
        yield operator.train()
    yield operator.eval()
