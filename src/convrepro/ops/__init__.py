"""Convolution operators, each a drop-in for `nn.Conv2d` with its own keyword-only knobs."""

from torch import nn

from convrepro.ops.base import ConvOperator, conv_arguments, knobs
from convrepro.ops.hetconv import HetConv2d
from convrepro.ops.separable import DepthwisePointwise, GroupPointwise
from convrepro.ops.shift import ShiftConv2d, ShiftLinear
from convrepro.ops.squeeze_excite import SqueezeExcite, SqueezeExciteConv

OPERATORS: dict[str, type[nn.Module]] = {
    "standard": nn.Conv2d,
    "hetconv": HetConv2d,
    "gwc_pwc": GroupPointwise,
    "dwc_pwc": DepthwisePointwise,
    "shift": ShiftConv2d,
}
"""Drop-ins for `nn.Conv2d` by the name that `conf/conv/` uses."""

LINEAR_OPERATORS: dict[str, type[nn.Module]] = {"shift": ShiftLinear}
"""Drop-ins for `nn.Linear`, for the operators that have one."""

__all__ = [
    "LINEAR_OPERATORS",
    "OPERATORS",
    "ConvOperator",
    "DepthwisePointwise",
    "GroupPointwise",
    "HetConv2d",
    "ShiftConv2d",
    "ShiftLinear",
    "SqueezeExcite",
    "SqueezeExciteConv",
    "conv_arguments",
    "knobs",
]
