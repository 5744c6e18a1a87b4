"""A traced forward pass of a network, with what fvcore counts in it, module by module.

fvcore counts an unknown operation as zero, rounds an `einsum` to four digits, and ignores the batch of a second matrix.
Here `einsum` and matrix products are counted exactly, and an operation raises an error unless it is counted or is known
to have no multiply-accumulate.
"""

import math
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from convrepro.errors import ConvReproError
from convrepro.ops import ConvOperator, Operator

with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)  # fvcore scripts its losses on import, and torch.jit is deprecated.
    from fvcore.nn import FlopCountAnalysis
    from fvcore.nn.jit_handles import conv_flop_count, get_shape

_FREE = {
    "arithmetic on single elements": """
        __or__ __xor__ abs addcdiv addcmul bitwise_and bitwise_left_shift bitwise_or bitwise_right_shift
        bitwise_xor ceil clamp_max clamp_min clone cos cumsum div erf exp exp2 expm1 floor floor_divide fmod
        frac frexp heaviside index_add ldexp log log10 log1p log2 maximum minimum nan_to_num neg pow reciprocal
        remainder round rsqrt rsub sgn sign sin sqrt square sub tan trunc where""",
    "activations": """
        celu elu gelu glu hardshrink hardsigmoid hardswish hardtanh leaky_relu log_sigmoid log_softmax mish prelu relu6
        selu sigmoid silu softmax softplus softsign tanh threshold""",
    "reductions and comparisons": """
        all amax amin any argmax argmin isfinite isinf isnan le linalg_vector_norm logical_and logical_not
        logical_or lt mean min ne norm prod std std_mean sum topk var var_mean""",
    "normalisation, pooling and resizing that fvcore leaves out": """
        adaptive_avg_pool1d adaptive_max_pool1d adaptive_max_pool2d avg_pool1d avg_pool2d avg_pool3d max_pool1d
        max_pool2d max_pool2d_with_indices max_pool3d rms_norm upsample_bicubic2d upsample_linear1d""",
    "copies and new shapes": """
        alias as_strided broadcast_to channel_shuffle col2im concat diagonal empty_like expand_as fill flip
        im2col index_select lift_fresh linspace masked_fill masked_select meshgrid movedim numpy_T one_hot
        ones_like pad pixel_shuffle pixel_unshuffle rand_like repeat repeat_interleave reshape_as scalar_tensor
        scatter squeeze swapaxes tensor_split tile transpose tril triu unflatten unfold view_as zero""",
    "off in evaluation mode": "alpha_dropout dropout feature_dropout",
}

FREE_OPERATIONS = frozenset(name for names in _FREE.values() for name in names.split())
"""ATen operations without multiply-accumulates, in place or not, in addition to those that fvcore itself ignores."""

CONV_OUTPUTS, ADDITIONS, SCALINGS = "conv_outputs", "additions", "scalings"
"""What is counted besides the multiply-accumulates: output elements of convolutions, of sums of two tensors of one
shape, and of products of feature maps and one factor for each channel."""

Shape = tuple[int, ...]


class UnfitImageError(ConvReproError):
    """The model does not take an image of this size (C, H, W): it raised `error`."""

    def __init__(self, model: nn.Module, input_size: tuple[int, int, int], error: Exception) -> None:
        made_for = getattr(model, "pretrained_cfg", {}).get("input_size")
        hint = f"; it was made for {'x'.join(map(str, made_for))}" if made_for else ""
        super().__init__(f"the model does not take an image of {'x'.join(map(str, input_size))}: {error}{hint}")


@dataclass(frozen=True)
class Trace:
    """A forward pass on one image.

    Attributes:
        layers: the modules by name, each once, without those inside an operator.
        operations: what fvcore counted in each module, by operation, and `CONV_OUTPUTS`, `ADDITIONS` and `SCALINGS`.
            The counts of a module do not include its submodules, except for an operator.
        outputs: the shapes of the output tensors of all calls of each module.
    """

    layers: dict[str, nn.Module]
    operations: dict[str, Counter[str]]
    outputs: dict[str, list[Shape]]

    def positions(self, name: str) -> list[tuple[int, int, int]]:
        """Returns (images, out_h, out_w) for each call of a convolution or a linear layer.

        For the output (B, T, N) of a linear layer it is (1, B, T).
        """
        kernel, shapes = getattr(self.layers[name], "kernel_size", None), self.outputs[name]
        if kernel is None:
            return [(1, *_plane(shape[:-1])) for shape in shapes]
        rank = len(kernel)
        return [(math.prod(shape[: -rank - 1]), *_plane(shape[-rank:])) for shape in shapes]


def _plane(shape: Shape) -> tuple[int, int]:
    return (math.prod(shape[:-1]), shape[-1]) if shape else (1, 1)


def trace(model: nn.Module, input_size: tuple[int, int, int]) -> Trace:
    """Traces `model` on one image (C, H, W).

    Raises UnfitImageError for an image that the model does not take, and ConvReproError for an operation with an
    unknown number of multiply-accumulates.
    """
    layers = dict(_layers(model))
    outputs: dict[str, list[Shape]] = {name: [] for name in layers}

    def record(shapes: list[Shape]) -> Callable[[nn.Module, object, object], None]:
        def hook(module: nn.Module, args: object, output: object) -> None:
            if isinstance(output, Tensor):
                shapes.append(_shape(output))

        return hook

    image = blank_image(model, input_size)
    with counting_form(model):
        for name, module in layers.items():
            module.register_forward_hook(record(outputs[name]))
        analysis = FlopCountAnalysis(model, image).set_op_handle(**_HANDLES)
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        try:
            operations = _own(analysis.by_module_and_operator(), layers)
        except ConvReproError:
            raise
        except (RuntimeError, ValueError, AssertionError) as error:
            raise UnfitImageError(model, input_size, error) from error
    for name, unknown in _own({name: analysis.unsupported_ops(name) for name in layers}, layers).items():
        for operation in unknown:
            if not _is_free(operation):
                raise ConvReproError(
                    f"{operation} in {_place(layers, name)} holds an unknown number of multiply-accumulates; countable "
                    "are torch's convolutions, linear layers, matrix products and scaled dot-product attention"
                )
    return Trace(layers, operations, outputs)


def _shape(output: Tensor) -> Shape:
    """Returns the shape as integers. While tracing, they would be tensors, which are slow and part of the trace."""
    tracing = torch._C._get_tracing_state()
    torch._C._set_tracing_state(None)  # type: ignore[attr-defined]  # missing in torch's stubs
    shape = tuple(output.shape)
    torch._C._set_tracing_state(tracing)  # type: ignore[attr-defined]
    return shape


def blank_image(model: nn.Module, input_size: tuple[int, int, int]) -> Tensor:
    """Returns zeros (1, C, H, W) on the device and in the dtype of the model.

    Raises ConvReproError if `input_size` is not three positive integers, or if the model is on the meta device.
    """
    sizes = list(input_size) if isinstance(input_size, Iterable) else []
    if len(sizes) != 3 or not all(isinstance(size, int) and size > 0 for size in sizes):
        raise ConvReproError(f"input_size={input_size!r} must be three positive integers: channels, height, width")
    weight = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    if weight.is_meta:
        raise ConvReproError("fvcore cannot trace a model on the meta device; valid: model.to_empty(device='cpu')")
    return torch.zeros(1, *sizes, device=weight.device, dtype=weight.dtype)


@contextmanager
def counting_form(model: nn.Module) -> Iterator[None]:
    """Puts `model` into evaluation mode, disables gradients, and replaces `forward` by `forward_exact`.

    On exit, the modes and forward methods are restored, and all hooks that were added inside the context are removed
    (fvcore leaves its own hooks if the model raises an error).
    """
    modules = list(model.modules())
    modes = [(module, module.training) for module in modules]
    hooks = [h for module in modules for h in (module._forward_hooks, module._forward_pre_hooks)]
    hook_ids = [set(registered) for registered in hooks]
    exact: list[Any] = [module for module in modules if _has_exact_form(module)]
    forwards = [(module, module.__dict__.get("forward")) for module in exact]
    fast_attention = torch.backends.mha.get_fastpath_enabled()
    try:
        for module in modules:
            module.training = False
        for module in exact:
            module.forward = module.forward_exact
        torch.backends.mha.set_fastpath_enabled(False)
        with torch.no_grad():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_attention)
        for module, mode in modes:
            module.training = mode
        for module, forward in forwards:
            module.__dict__.pop("forward", None)
            if forward is not None:
                module.forward = forward
        for registered, kept in zip(hooks, hook_ids, strict=True):
            for added in set(registered) - kept:
                del registered[added]


def _has_exact_form(module: nn.Module) -> bool:
    return getattr(type(module), "forward_exact", ConvOperator.forward_exact) is not ConvOperator.forward_exact


def _layers(module: nn.Module, name: str = "", seen: set[nn.Module] | None = None) -> Iterator[tuple[str, nn.Module]]:
    seen = set() if seen is None else seen
    if module in seen:
        return
    seen.add(module)
    yield name, module
    if not isinstance(module, Operator):
        for child, submodule in module.named_children():
            yield from _layers(submodule, f"{name}.{child}" if name else child, seen)


def _own(inclusive: dict[str, Counter[str]], layers: dict[str, nn.Module]) -> dict[str, Counter[str]]:
    """Returns the counts of each layer without its submodules, from counts that include them."""
    own = {name: Counter(inclusive[name]) for name in layers}
    for name in filter(None, layers):
        own[name.rpartition(".")[0]].subtract(inclusive[name])
    return {name: +counter for name, counter in own.items()}


def _is_free(operation: str) -> bool:
    namespace, _, name = operation.partition("::")
    return namespace == "aten" and (name in FREE_OPERATIONS or name.removesuffix("_") in FREE_OPERATIONS)


def _place(layers: dict[str, nn.Module], name: str) -> str:
    return f"{name or 'the model itself'} ({type(layers[name]).__name__})"


def _convolution(inputs: list, outputs: list) -> Counter[str]:
    """Counts aten::_convolution and aten::_convolution_mode.

    The first has 12 or 13 arguments. The second, for padding="same", has 7 and is never transposed.
    """
    shape = get_shape(outputs[0])
    transposed = len(inputs) > 7 and inputs[6].toIValue()
    macs = conv_flop_count(get_shape(inputs[0]), get_shape(inputs[1]), shape, transposed)
    return Counter({"conv": macs, CONV_OUTPUTS: math.prod(shape)})


def _add(inputs: list, outputs: list) -> Counter[str]:
    """Counts residual additions, which add two tensors of one shape, but no additions of numbers or biases."""
    first, second = get_shape(inputs[0]), get_shape(inputs[1])
    return Counter({ADDITIONS: math.prod(first)}) if first == second and first else Counter()


def _mul(inputs: list, outputs: list) -> Counter[str]:
    """Counts products of feature maps (B, C, ...) and factors (B, C, 1, ...), in either order."""
    shape = get_shape(outputs[0]) or []
    per_channel = [*shape[:2], *[1] * len(shape[2:])]
    scaled = len(shape) > 2 and per_channel in (get_shape(inputs[0]), get_shape(inputs[1]))
    return Counter({SCALINGS: math.prod(shape)}) if scaled else Counter()


def _matmul(inputs: list, outputs: list) -> int:
    return math.prod(get_shape(outputs[0])) * get_shape(inputs[0])[-1]


def _einsum(inputs: list, outputs: list) -> int:
    """Counts one product for each combination of the indices of two operands."""
    equation = inputs[0].toIValue().replace(" ", "")
    operands = equation.split("->")[0].split(",")
    if len(operands) > 2 or "." in equation:
        raise ConvReproError(f"einsum {equation!r} cannot be counted; valid: one or two operands, without '...'")
    shapes = [get_shape(value) for value in inputs[1].node().inputs()]
    sizes = {i: n for indices, shape in zip(operands, shapes, strict=True) for i, n in zip(indices, shape, strict=True)}
    return math.prod(sizes.values()) if len(operands) == 2 else 0


def _attention(inputs: list, outputs: list) -> int:
    query, key, value = (get_shape(v) for v in inputs[:3])
    return math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


_HANDLES = {
    "aten::_convolution": _convolution,
    "aten::_convolution_mode": _convolution,
    "aten::add": _add,
    "aten::add_": _add,
    "aten::mul": _mul,
    "aten::mul_": _mul,
    "aten::matmul": _matmul,
    "aten::mm": _matmul,
    "aten::bmm": _matmul,
    "aten::einsum": _einsum,
    "aten::scaled_dot_product_attention": _attention,
}
