"""HetConv in one Triton kernel: exactly the paper's MACs, one read of the input and one write of the output.

A grouped convolution plus a 1x1 convolution, which is what HetConv is to a library, writes and reads the output twice
more, and GPU libraries are slow at grouped convolutions. Here one kernel accumulates, for the filters of one block, the
centre tap over all channels and the other taps over the block's own channels (Singh et al., arXiv 1903.04120, section
3). The input gradient is the same product with channels and filters exchanged and the taps mirrored; the weight
gradient sums outer products over positions, in splits that are added in a fixed order.

Blocks too narrow for tensor cores are merged with their neighbours, zeros between them. The kernels are operators of
torch (`torch.ops.convrepro`), so that `torch.compile` and CUDA graphs take them as they are.
"""

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any, List  # noqa: UP035

import torch
from torch import Tensor, nn

from convrepro.ops import hetconv_launch as launch
from convrepro.ops.hetconv_launch import Layer
from convrepro.ops.hetconv_tiles import interpreted

DTYPES = (torch.float32, torch.float16, torch.bfloat16)

Words = List[int]  # noqa: UP006 (torch 2.6 knows no list[int])
"""Height and width."""


INSTALLED = find_spec("triton") is not None


def fits(x: Tensor) -> bool:
    """Whether the kernels take this input here: Triton is installed, and x is on a GPU (or Triton interprets), in
    float32, float16 or bfloat16, of less than 2^31 entries.
    """
    return (x.is_cuda or interpreted()) and INSTALLED and x.dtype in DTYPES and x.numel() < 2**31


def wins(x: Tensor, weights: torch.dtype) -> bool:
    """Whether x, with weights of that dtype, is of the kind for which the kernels were measured to be faster than two
    convolutions and the dense one (`reproductions/GPU.md`).

    It `fits`, is in channels_last on the current GPU, and is multiplied in bfloat16: autocast says so, or both are in
    it. What is traced or compiled is not of that kind.
    """
    if not x.is_cuda or torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False
    autocast = torch.is_autocast_enabled("cuda")
    dtypes = {torch.get_autocast_dtype("cuda")} if autocast else {x.dtype, weights}
    return (
        dtypes == {torch.bfloat16}
        and x.ndim == 4
        and x.is_contiguous(memory_format=torch.channels_last)
        and x.device.index == torch.cuda.current_device()
        and fits(x)
    )


def hetconv(
    x: Tensor,
    weight_kxk: Tensor,
    weight_1x1: Tensor | None,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    blocks: int,
) -> Tensor:
    """HetConv of x (B, M, H, W), which `fits`: (B, N, H', W') in channels_last. Differentiable once.

    weight_kxk (N, M/G, K, K) holds filter n's kernels on the channels of its own block n // (N/G), weight_1x1
    (N, M - M/G) its 1x1 kernels on the other channels in order (None for G = 1); bias (N,); G is `blocks`. All are
    cast to the dtype of x, or to autocast's where it is on; sums are in float32. float32 is multiplied as tf32 where
    `torch.backends.cudnn.allow_tf32`. Tiles are timed where `torch.backends.cudnn.benchmark`.

    MACs for H' x W' positions: `H' * W' * N * (M + (K^2 - 1) * M/G)`, more where blocks are merged.
    """
    words = list(stride), list(padding), list(dilation)
    return torch.ops.convrepro.hetconv(_cast(x), weight_kxk, weight_1x1, bias, *words, blocks)


class PackedHetConv(nn.Module):
    """`hetconv` for inference, its weights packed once; with `relu`, the kernel rectifies what it writes."""

    def __init__(
        self, layer: Layer, weight_kxk: Tensor, weight_1x1: Tensor | None, bias: Tensor | None, *, relu: bool = False
    ) -> None:
        super().__init__()
        self.layer = layer
        self.relu = relu
        self.weight = nn.Parameter(launch.pack(weight_kxk, weight_1x1, layer, weight_kxk.dtype), False)
        self.bias = None if bias is None else nn.Parameter(bias.detach(), False)

    def forward(self, x: Tensor) -> Tensor:
        x, layer = _cast(x), self.layer
        words = [list(word) for word in layer[3:]]
        return torch.ops.convrepro.packed_hetconv(
            x, self.weight.to(x.dtype), self.bias, layer.filters, layer.blocks, *words, self.relu
        )


def _cast(x: Tensor) -> Tensor:
    kind = x.device.type
    return x.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else x


def _pair(word: Sequence[int]) -> tuple[int, int]:
    height, width = word
    return height, width


def _layer(weight_kxk: Tensor, blocks: int, *words: Words) -> Layer:
    shape = weight_kxk.shape
    return Layer(shape[1] * blocks, shape[0], blocks, _pair(shape[2:]), *map(_pair, words))


def _empty(x: Tensor, filters: int, height: int, width: int) -> Tensor:
    """(B, filters, height, width) like x, in channels_last."""
    return x.new_empty(x.shape[0], height, width, filters).movedim(-1, 1)


@torch.library.custom_op("convrepro::hetconv", mutates_args=())
def _hetconv(
    x: Tensor,
    weight_kxk: Tensor,
    weight_1x1: Tensor | None,
    bias: Tensor | None,
    stride: Words,
    padding: Words,
    dilation: Words,
    blocks: int,
) -> Tensor:
    layer = _layer(weight_kxk, blocks, stride, padding, dilation)
    return launch.forward(x, launch.pack(weight_kxk, weight_1x1, layer, x.dtype), bias, layer)


@_hetconv.register_fake
def _(x: Tensor, weight_kxk: Tensor, weight_1x1: Tensor | None, bias: Tensor | None, *words: Any) -> Tensor:
    layer = _layer(weight_kxk, words[-1], *words[:3])
    return _empty(x, layer.filters, *layer.output_size(*x.shape[2:]))


@torch.library.custom_op("convrepro::packed_hetconv", mutates_args=())
def _packed_hetconv(
    x: Tensor,
    packed: Tensor,
    bias: Tensor | None,
    filters: int,
    blocks: int,
    kernel_size: Words,
    stride: Words,
    padding: Words,
    dilation: Words,
    relu: bool,
) -> Tensor:
    layer = Layer(x.shape[1], filters, blocks, *map(_pair, (kernel_size, stride, padding, dilation)))
    return launch.forward(x, packed, bias, layer, relu=relu)


@_packed_hetconv.register_fake
def _(x: Tensor, packed: Tensor, bias: Tensor | None, filters: int, blocks: int, *words: Any) -> Tensor:
    layer = Layer(x.shape[1], filters, blocks, *words[:4])
    return _empty(x, filters, *layer.output_size(*x.shape[2:]))


@torch.library.custom_op("convrepro::hetconv_input_gradient", mutates_args=())
def _input_gradient(
    grad: Tensor,
    weight_kxk: Tensor,
    weight_1x1: Tensor | None,
    size: Words,
    stride: Words,
    padding: Words,
    dilation: Words,
    blocks: int,
) -> Tensor:
    layer = _layer(weight_kxk, blocks, stride, padding, dilation)
    packed = launch.pack(weight_kxk, weight_1x1, layer, grad.dtype, transposed=True)
    return launch.input_gradient(grad, packed, layer, _pair(size))


@_input_gradient.register_fake
def _(grad: Tensor, weight_kxk: Tensor, weight_1x1: Tensor | None, size: Words, *words: Any) -> Tensor:
    return _empty(grad, weight_kxk.shape[1] * words[-1], *size)


@torch.library.custom_op("convrepro::hetconv_weight_gradient", mutates_args=())
def _weight_gradient(
    grad: Tensor, x: Tensor, weight_kxk: Tensor, stride: Words, padding: Words, dilation: Words, blocks: int
) -> Tensor:
    layer = _layer(weight_kxk, blocks, stride, padding, dilation)
    return launch.weight_gradient(grad, x, layer, weight_kxk.dtype)


@_weight_gradient.register_fake
def _(grad: Tensor, x: Tensor, weight_kxk: Tensor, *words: Any) -> Tensor:
    size_1x1 = weight_kxk.shape[0] * weight_kxk.shape[1] * (words[-1] - 1)
    return weight_kxk.new_empty(weight_kxk.numel() + size_1x1)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight_kxk, weight_1x1, bias, *ctx.words = inputs
    ctx.save_for_backward(x, weight_kxk, weight_1x1)
    ctx.bias_dtype = None if bias is None else bias.dtype


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weight_kxk, weight_1x1 = ctx.saved_tensors
    of_x, of_kxk, of_1x1, of_bias = ctx.needs_input_grad[:4]
    grad_x = grad_kxk = grad_1x1 = grad_bias = None
    if of_x:
        weights = weight_kxk, weight_1x1
        grad_x = torch.ops.convrepro.hetconv_input_gradient(grad, *weights, list(x.shape[2:]), *ctx.words)
    if of_kxk or of_1x1:
        entries = torch.ops.convrepro.hetconv_weight_gradient(grad, x, weight_kxk, *ctx.words)
        grad_kxk = entries[: weight_kxk.numel()].view(weight_kxk.shape)
        if weight_1x1 is not None:
            grad_1x1 = entries[weight_kxk.numel() :].view(weight_1x1.shape)
    if of_bias:
        grad_bias = grad.sum((0, 2, 3), dtype=ctx.bias_dtype)
    return grad_x, grad_kxk, grad_1x1, grad_bias, None, None, None, None


_hetconv.register_autograd(_backward, setup_context=_save)
