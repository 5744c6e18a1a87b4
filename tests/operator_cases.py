"""One entry for each operator variant; `test_operators.py` runs all its tests on every entry."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from convrepro.ops import DepthwisePointwise, GroupPointwise, HetConv2d, ShiftConv2d


def count_weights(module: nn.Module) -> int:
    """The number of weights, for an operator whose parameters are its weights and a bias."""
    return sum(p.numel() for name, p in module.named_parameters() if not name.endswith("bias"))


@dataclass(frozen=True)
class OperatorCase:
    """An operator with its knobs, and what the tests need to know about it."""

    name: str
    operator: type[nn.Module]
    knobs: dict[str, Any] = field(default_factory=dict)
    in_channels: int = 8
    out_channels: int = 12
    degenerate: dict[str, Any] | None = None
    """Constructor words (knobs among them) at which `from_conv(conv)` equals the convolution, or None."""
    bad: tuple[tuple[dict[str, Any], tuple[str, ...]], ...] = ()
    """Pairs (constructor words that must raise ValueError, pieces that the message must contain)."""
    weights: Callable[[nn.Module], int] = count_weights
    """The number of non-zero weights of the kernel, each used once for an output position."""
    tolerance: float = 1e-5
    """Largest absolute difference between `forward` and `forward_exact` in float32."""
    autocast_tolerance: float = 0.05
    """Largest absolute difference between bfloat16 autocast and float32."""

    def build(self, kernel_size: Any = 3, **words: Any) -> nn.Module:
        """The operator with this case's channels and knobs, unless `words` say otherwise."""
        channels = {"in_channels": self.in_channels, "out_channels": self.out_channels}
        return self.operator(**{**channels, "kernel_size": kernel_size, **self.knobs, **words})


def hetconv_case(p: int | str, arrangement: str, in_channels: int = 8, out_channels: int = 12) -> OperatorCase:
    return OperatorCase(
        name=f"hetconv-{p}-{arrangement}-{in_channels}-{out_channels}",
        operator=HetConv2d,
        knobs={"p": p, "arrangement": arrangement},
        in_channels=in_channels,
        out_channels=out_channels,
        degenerate={"p": 1, "arrangement": arrangement} if p == 2 and in_channels > 1 else None,
        bad=(
            (
                {"p": 5},
                ("p=5", "divide", f"out_channels={out_channels}", f"in_channels={in_channels}", "valid: 1, 2, "),
            ),
            ({"p": 0}, ("p=0", "divide", "valid: 1, 2, ")),
            ({"p": "in"}, ("p='in'", "'out'")),
            ({"arrangement": "cyclic"}, ("arrangement='cyclic'", "contiguous, shifted")),
            ({"groups": 2, "p": 1}, ("groups=2", "valid: 1")),
            ({"kernel_size": (3, 2)}, ("kernel_size=(3, 2)", "odd", "valid: 1, 3, 5")),
        ),
        weights=lambda module: int(module.dense_weight().count_nonzero()),
    )


def shift_case(name: str, **own: Any) -> OperatorCase:
    return OperatorCase(
        name=name,
        operator=ShiftConv2d,
        knobs=own,
        bad=(
            ({"variant": "PS"}, ("variant='PS'", "valid: q, ps, v1")),
            ({"variant": "q", "bits": 7, "frozen": False}, ("bits=7", "variant='q'", "'paper', 2, 3, 4, 5, 6")),
            ({"variant": "v1", "bits": 5}, ("bits=5", "no limits", "'paper', None")),
            ({"activation": "int8"}, ("activation='int8'", "'paper', 'float', [integer_bits, fraction_bits]")),
            ({"rounding": "nearest"}, ("rounding='nearest'", "deterministic, stochastic")),
            ({"variant": "q", "frozen": True}, ("frozen=True", "variant='v1'", "valid: False")),
            ({"groups": 3}, ("groups=3", "divide")),
        ),
        weights=lambda module: int(module.quantized_weight().count_nonzero()),
    )


CASES = [
    hetconv_case(1, "contiguous"),
    hetconv_case(2, "contiguous"),
    hetconv_case(2, "shifted"),
    hetconv_case("out", "contiguous", 8, 16),
    hetconv_case("out", "shifted", 8, 8),
    hetconv_case(8, "shifted", 4, 16),
    hetconv_case(2, "contiguous", 1, 4),
    OperatorCase(
        name="gwc_pwc",
        operator=GroupPointwise,
        knobs={"num_groups": 4},
        bad=(
            ({"num_groups": 3}, ("num_groups=3", "divide", "in_channels=8", "valid: 1, 2, 4, 8")),
            ({"groups": 2}, ("groups=2", "valid: 1")),
        ),
    ),
    OperatorCase(
        name="dwc_pwc",
        operator=DepthwisePointwise,
        degenerate={"kernel_size": 1},
        bad=(({"groups": 2}, ("groups=2", "valid: 1")),),
    ),
    shift_case("shift-q", variant="q"),
    shift_case("shift-ps", variant="ps", bits=3),
    shift_case("shift-v1", variant="v1"),
    shift_case("shift-v1-frozen", variant="v1", frozen=True),
    shift_case("shift-float", variant="q", activation="float", clamp_latent=False),
]
