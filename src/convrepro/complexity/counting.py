"""The cost of a network, layer by layer, as fvcore counts it, and a comparison with two other ways to count.

Conventions: counts are for one image in evaluation mode. A multiply-accumulate (MAC) counts as one, and biases are not
counted. Operators are counted in their `forward_exact` form, which executes exactly the multiply-accumulates of their
definition (fvcore would count a masked weight as a dense one).
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from convrepro.complexity.rules import MULTIPLYING, Count, LayerCount
from convrepro.complexity.tracing import (
    ADDITIONS,
    CONV_OUTPUTS,
    SCALINGS,
    Trace,
    blank_image,
    counting_form,
    trace,
)
from convrepro.errors import ConvReproError
from convrepro.ops import ConvOperator, LinearOperator, Operator

_CLASSES: dict[str, tuple[type[nn.Module], ...]] = {
    "linear": (nn.Linear, LinearOperator),
    "conv": (ConvOperator, nn.modules.conv._ConvNd),
    "norm": (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.LocalResponseNorm, nn.RMSNorm),
}
"""The kind of a layer by the class of its module. The kind of other modules follows from their operations."""

_KINDS = {
    "conv": "conv",
    "linear": "linear",
    "addmm": "linear",
    "matmul": "matmul",
    "mm": "matmul",
    "bmm": "matmul",
    "einsum": "matmul",
    "scaled_dot_product_attention": "matmul",
    "batch_norm": "norm",
    "group_norm": "norm",
    "layer_norm": "norm",
    "instance_norm": "norm",
    "adaptive_avg_pool2d": "pool",
    "upsample_nearest2d": "resize",
    "upsample_bilinear2d": "resize",
    "grid_sampler": "resize",
}
"""The kind of a layer by the operation that fvcore counted."""

_STATISTICS = ("running_mean", "running_var")

_PROMISES = ("dense_macs", "scaled_bias", "multiplications", "shifts")
"""The fields of `LayerCount` that are methods of an operator."""


def count(model: nn.Module, input_size: tuple[int, int, int]) -> Count:
    """Counts `model` on one image of `input_size` (C, H, W). Every module and every operator is a layer.

    The modes, hooks and forward methods of the model do not change. The values of the parameters do not matter and may
    be uninitialised, except for an operator whose weight bits depend on them (DeepShift v1).

    Raises ConvReproError for an image that the model does not take, and if a part of the model has an unknown number of
    multiply-accumulates.
    """
    return _count(trace(model, input_size), input_size)


def cross_check(model: nn.Module, input_size: tuple[int, int, int]) -> Count:
    """Returns `count(model, input_size)` after comparing its MACs with two other counts, layer by layer.

    These are half of the FLOPs of torch's FlopCounterMode, and the result of the method `macs` of each operator.

    Raises ConvReproError with both numbers and the first layer that differs, and as `count` does.
    """
    traced = trace(model, input_size)
    counted = _count(traced, input_size)
    macs: Counter[str] = Counter()
    for layer in counted.layers:
        macs[layer.name] += layer.macs if layer.kind in MULTIPLYING else 0
    by_torch = _torch_macs(model, traced, input_size)
    for name, module in traced.layers.items():
        others: dict[str, int | Fraction] = {"torch's FlopCounterMode": by_torch[name]}
        if isinstance(module, Operator):
            others[f"{type(module).__name__}.macs()"] = _promised(traced, name, "macs")
        for source, other in others.items():
            if other != macs[name]:
                raise ConvReproError(
                    f"layer {name!r} ({type(module).__name__}) of a model with {sum(macs.values()):,} MACs: fvcore "
                    f"counts {macs[name]:,} MACs, {source} {other:,}"
                )
    return counted


def _count(traced: Trace, input_size: tuple[int, int, int]) -> Count:
    counted: set[nn.Parameter] = set()
    layers = [layer for name in traced.layers for layer in _layer_counts(traced, name, counted)]
    channels, height, width = input_size
    return Count((channels, height, width), tuple(layers))


def _layer_counts(traced: Trace, name: str, counted: set[nn.Parameter]) -> list[LayerCount]:
    """Returns the layer of a module, and one more layer for each further kind of operation in the module.

    The parameters of the module are added to `counted`.
    """
    module, operations = traced.layers[name], Counter(traced.operations[name])
    conv_outputs, additions, scalings = (operations.pop(key, 0) for key in (CONV_OUTPUTS, ADDITIONS, SCALINGS))
    macs: Counter[str] = Counter()
    for operation, number in operations.items():
        macs[_KINDS[operation]] += number
    main = next((kind for kind, classes in _CLASSES.items() if isinstance(module, classes)), None)
    if main in MULTIPLYING:
        macs[main] = sum(macs.pop(kind, 0) for kind in MULTIPLYING)
    main = main or max(macs, key=lambda kind: macs[kind], default="other")
    layers = [
        LayerCount(
            name,
            kind,
            type(module).__name__,
            macs=number,
            dense_macs=number,
            scaled_bias=conv_outputs if kind == "conv" else 0,
            multiplications=number if kind in MULTIPLYING else 0,
        )
        for kind, number in {main: macs.pop(main, 0), **macs}.items()
    ]
    layers[0] = _describe(layers[0], traced, counted)
    if not isinstance(module, Operator):
        layers[0] = replace(layers[0], additions=additions, scalings=scalings)
    return layers


def _describe(layer: LayerCount, traced: Trace, counted: set[nn.Parameter]) -> LayerCount:
    """Returns `layer` with the shape and the parameters of its module and, for an operator, what its methods return."""
    module = traced.layers[layer.name]
    parameters = dict(module.named_parameters(recurse=isinstance(module, Operator)))
    fresh = {key: p for key, p in parameters.items() if p not in counted}
    counted.update(fresh.values())
    kernel = getattr(module, "kernel_size", None) if layer.kind == "conv" else None
    facts: dict[str, Any] = {
        "in_channels": getattr(module, "in_channels", getattr(module, "in_features", None)),
        "out_channels": getattr(module, "out_channels", getattr(module, "out_features", None)),
        "kernel": kernel if isinstance(kernel, tuple) else (),
        "groups": getattr(module, "groups", 1) if layer.kind == "conv" else 1,
        "bias": any(key.endswith("bias") for key in parameters),
        "calls": len(traced.outputs[layer.name]),
        "params": sum(p.numel() for p in fresh.values()),
        "weights": sum(p.numel() for key, p in fresh.items() if not key.endswith("bias")),
        "statistics": sum(b.numel() for key, b in module.named_buffers(recurse=False) if key in _STATISTICS),
    }
    facts["weight_bits"] = 32 * facts["weights"]
    if facts["calls"] and (facts["kernel"] or layer.kind == "linear"):
        _, facts["out_h"], facts["out_w"] = traced.positions(layer.name)[-1]
    if isinstance(module, Operator):
        facts |= {field: _promised(traced, layer.name, field) for field in _PROMISES if hasattr(module, field)}
        facts["promised"] = _promised(traced, layer.name, "macs")
        facts["weight_bits"] = module.weight_bits()
    return replace(layer, **facts)


def _promised(traced: Trace, name: str, method: str) -> int | Fraction:
    """Returns the sum of an operator's method of (out_h, out_w) over the calls of the operator."""
    operator = traced.layers[name]
    return sum(images * getattr(operator, method)(h, w) for images, h, w in traced.positions(name))


def _torch_macs(model: nn.Module, traced: Trace, input_size: tuple[int, int, int]) -> Counter[str]:
    """Returns half of the FLOPs that torch counts in each layer, without those in its submodules.

    Attention is computed by matrix products, which torch can count.
    """
    own: Counter[str] = Counter()
    running: list[tuple[str, int]] = []

    def enter(name: str) -> Callable[..., None]:
        return lambda *_: running.append((name, flops.get_total_flops()))

    def leave(*_: object) -> None:
        name, before = running.pop()
        inclusive = flops.get_total_flops() - before
        own[name] += inclusive
        if running:
            own[running[-1][0]] -= inclusive

    with counting_form(model), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as flops:
        for name, module in traced.layers.items():
            module.register_forward_pre_hook(enter(name))
            module.register_forward_hook(leave)
        # With gradients disabled, FlopCounterMode fails if the input of a module is a view of a parameter.
        with torch.enable_grad():
            model(blank_image(model, input_size))
    return Counter({name: n // 2 for name, n in own.items()})
