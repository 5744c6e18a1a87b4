"""What a network costs, layer by layer, as fvcore counts it; and the same number by two other ways.

Conventions: one image, evaluation mode, one multiply-accumulate (MAC) is one, biases are not counted. Operators are
counted in their `forward_exact` form, which executes the multiply-accumulates of their definition and no others (fvcore
takes a masked weight for a dense one).
"""

from collections import Counter
from dataclasses import replace
from fractions import Fraction

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from convrepro.complexity.rules import MULTIPLYING, Count, LayerCount
from convrepro.complexity.tracing import (
    ADDITIONS,
    CONV_OUTPUTS,
    OPERATOR,
    SCALINGS,
    Trace,
    blank_image,
    counting_form,
    trace,
)
from convrepro.errors import ConvReproError
from convrepro.ops import LINEAR_OPERATORS, ConvOperator

_CLASSES = {
    "linear": (nn.Linear, *LINEAR_OPERATORS.values()),
    "conv": (ConvOperator, nn.modules.conv._ConvNd),
    "norm": (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.LocalResponseNorm, nn.RMSNorm),
}
"""Kind of layer by the module's class; that of other modules follows from what they compute."""

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
"""Kind of layer by the operation that fvcore counted."""

_STATISTICS = ("running_mean", "running_var")

_PROMISES = ("dense_macs", "scaled_bias", "multiplications", "shifts")
"""Fields of `LayerCount` that an operator itself knows."""


def count(model: nn.Module, input_size: tuple[int, int, int]) -> Count:
    """Count `model` on one image of `input_size` (C, H, W); every module and every operator is a layer.

    The model is left as it was: modes, hooks, forwards. Parameters may have any values, initialised or not, but for
    the weight bits of an operator that depend on them (DeepShift v1).

    Raises ConvReproError where a part of the model holds an unknown number of multiply-accumulates.
    """
    return _count(trace(model, input_size), input_size)


def cross_check(model: nn.Module, input_size: tuple[int, int, int]) -> Count:
    """`count(model, input_size)`, after comparing the MACs with those of torch's FlopCounterMode (half of its FLOPs),
    and with what each operator's `macs` promises.

    Raises ConvReproError with both numbers and the first layer that differs; and as `count` does.
    """
    traced = trace(model, input_size)
    counted = _count(traced, input_size)
    macs = Counter()
    for layer in counted.layers:
        macs[layer.name] += layer.macs if layer.kind in MULTIPLYING else 0
    by_torch = _torch_macs(model, traced, input_size)
    for name, module in traced.layers.items():
        others = {"torch's FlopCounterMode": by_torch[name]}
        if isinstance(module, OPERATOR):
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
    return Count(tuple(input_size), tuple(layers))


def _layer_counts(traced: Trace, name: str, counted: set[nn.Parameter]) -> list[LayerCount]:
    """The layer of a module, and one for each further kind of operation in it; adds its parameters to `counted`."""
    module, operations = traced.layers[name], Counter(traced.operations[name])
    conv_outputs, additions, scalings = (operations.pop(key, 0) for key in (CONV_OUTPUTS, ADDITIONS, SCALINGS))
    macs: Counter[str] = Counter()
    for operation, number in operations.items():
        macs[_KINDS[operation]] += number
    main = next((kind for kind, classes in _CLASSES.items() if isinstance(module, classes)), None)
    if main in MULTIPLYING:
        macs[main] = sum(macs.pop(kind, 0) for kind in MULTIPLYING)
    main = main or max(macs, key=macs.get, default="other")
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
    if not isinstance(module, OPERATOR):
        layers[0] = replace(layers[0], additions=additions, scalings=scalings)
    return layers


def _describe(layer: LayerCount, traced: Trace, counted: set[nn.Parameter]) -> LayerCount:
    """`layer` with the shape, the parameters and the promises of its module."""
    module = traced.layers[layer.name]
    is_operator = isinstance(module, OPERATOR)
    parameters = dict(module.named_parameters(recurse=is_operator))
    fresh = {key: p for key, p in parameters.items() if p not in counted}
    counted.update(fresh.values())
    kernel = getattr(module, "kernel_size", None) if layer.kind == "conv" else None
    facts: dict[str, object] = {
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
    if is_operator:
        facts |= {field: _promised(traced, layer.name, field) for field in _PROMISES if hasattr(module, field)}
        facts["weight_bits"] = module.weight_bits()
    return replace(layer, **facts)


def _promised(traced: Trace, name: str, method: str) -> int | Fraction:
    """Sum of what an operator's method of (out_h, out_w) gives over its calls."""
    operator = traced.layers[name]
    return sum(images * getattr(operator, method)(h, w) for images, h, w in traced.positions(name))


def _torch_macs(model: nn.Module, traced: Trace, input_size: tuple[int, int, int]) -> Counter[str]:
    """Half of the FLOPs that torch counts in each layer itself, with attention as matrix products."""
    own: Counter[str] = Counter()
    running: list[tuple[str, int]] = []

    def enter(name: str):
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
        with torch.enable_grad():  # without, FlopCounterMode fails where a module's input is a view of a parameter
            model(blank_image(model, input_size))
    return Counter({name: n // 2 for name, n in own.items()})
