"""Convolution operators. Each is a drop-in for `nn.Conv2d` and has its own keyword-only knobs."""

from torch import nn

from convrepro.ops.base import (
    ConvOperator,
    LinearOperator,
    Operator,
    Pair,
    check_choice,
    check_divisor,
    check_positive,
    conv_arguments,
    divisors,
    empty_parameter,
    knobs,
    linear_arguments,
    scaled,
)
from convrepro.ops.hetconv import HetConv2d
from convrepro.ops.igcv1 import IGCV1Conv2d
from convrepro.ops.igcv2 import IGCV2Conv2d
from convrepro.ops.igcv3 import IGCV3Conv2d
from convrepro.ops.init import init_bias_, init_weight_
from convrepro.ops.low_precision import LowPrecisionConv2d, LowPrecisionLinear
from convrepro.ops.low_rank import LowRankConv2d
from convrepro.ops.separable import DepthwisePointwise, GroupPointwise
from convrepro.ops.shift import ShiftConv2d, ShiftLinear
from convrepro.ops.sparse import SparseConv2d
from convrepro.ops.squeeze_excite import SqueezeExcite, SqueezeExciteConv

OPERATORS: dict[str, type[nn.Module]] = {
    "standard": nn.Conv2d,
    "hetconv": HetConv2d,
    "gwc_pwc": GroupPointwise,
    "dwc_pwc": DepthwisePointwise,
    "shift": ShiftConv2d,
    "igcv1": IGCV1Conv2d,
    "igcv2": IGCV2Conv2d,
    "igcv3": IGCV3Conv2d,
    "low_precision": LowPrecisionConv2d,
    "low_rank": LowRankConv2d,
    "sparse": SparseConv2d,
}
"""Drop-ins for `nn.Conv2d`, keyed by the name that `conf/conv/` uses."""

LINEAR_OPERATORS: dict[str, type[nn.Module]] = {"shift": ShiftLinear, "low_precision": LowPrecisionLinear}
"""Drop-ins for `nn.Linear`, for the operators that have a linear form."""

__all__ = [
    "LINEAR_OPERATORS",
    "OPERATORS",
    "ConvOperator",
    "DepthwisePointwise",
    "GroupPointwise",
    "HetConv2d",
    "IGCV1Conv2d",
    "IGCV2Conv2d",
    "IGCV3Conv2d",
    "LinearOperator",
    "LowPrecisionConv2d",
    "LowPrecisionLinear",
    "LowRankConv2d",
    "Operator",
    "Pair",
    "ShiftConv2d",
    "ShiftLinear",
    "SparseConv2d",
    "SqueezeExcite",
    "SqueezeExciteConv",
    "check_choice",
    "check_divisor",
    "check_positive",
    "conv_arguments",
    "divisors",
    "empty_parameter",
    "init_bias_",
    "init_weight_",
    "knobs",
    "linear_arguments",
    "scaled",
]
