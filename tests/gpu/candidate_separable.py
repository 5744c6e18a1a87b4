"""A candidate: a depthwise convolution and the 1x1 convolution behind it in one kernel, for inference.

MobileNet's pair (arXiv 1704.04861, section 3.1) writes and reads its middle once each; here it stays in registers.
"""

import math
from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from convrepro.ops.hetconv_tiles import width as width_of


@triton.jit
def depthwise_pointwise(
    x,
    depthwise,
    between,
    pointwise,
    bias,
    y,
    pixels,
    height,
    width,
    out_height,
    out_width,
    channels,
    filters,
    KERNEL: tl.constexpr,
    STRIDE: tl.constexpr,
    PADDING: tl.constexpr,
    RELU: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """ROWS output positions times COLUMNS filters. x: (images, height, width, channels); depthwise: (taps, channels);
    pointwise: (channels, filters). The depthwise result gets the bias `between`; with RELU, both results are rectified.
    """
    column_tiles = tl.cdiv(filters, COLUMNS)
    row = tl.program_id(0) // column_tiles * ROWS + tl.arange(0, ROWS)
    n = tl.program_id(0) % column_tiles * COLUMNS + tl.arange(0, COLUMNS)
    image = row // (out_height * out_width)
    first_h = row // out_width % out_height * STRIDE - PADDING
    first_w = row % out_width * STRIDE - PADDING
    sums = tl.zeros((ROWS, COLUMNS), tl.float32)
    for first in range(0, channels, DEPTH):
        c = first + tl.arange(0, DEPTH)
        middle = tl.zeros((ROWS, DEPTH), tl.float32)
        for tap in tl.static_range(KERNEL * KERNEL):
            h, w = first_h + tap // KERNEL, first_w + tap % KERNEL
            inside = (row < pixels) & (h >= 0) & (h < height) & (w >= 0) & (w < width)
            source = x + ((image * height + h) * width + w)[:, None] * channels + c[None, :]
            entries = tl.load(source, inside[:, None] & (c < channels)[None, :], 0.0)
            weights = tl.load(depthwise + tap * channels + c, c < channels, 0.0)
            middle += entries.to(tl.float32) * weights.to(tl.float32)[None, :]
        if between is not None:
            middle += tl.load(between + c, c < channels, 0.0).to(tl.float32)[None, :]
        if RELU:
            middle = tl.maximum(middle, 0.0)
        inside = (c < channels)[:, None] & (n < filters)[None, :]
        weights = tl.load(pointwise + c[:, None] * filters + n[None, :], inside, 0.0)
        sums = tl.dot(middle.to(weights.dtype), weights, sums, input_precision=PRECISION)
    if bias is not None:
        sums += tl.load(bias + n, n < filters, 0.0).to(tl.float32)[None, :]
    if RELU:
        sums = tl.maximum(sums, 0.0)
    inside = (row < pixels)[:, None] & (n < filters)[None, :]
    tl.store(y + row[:, None] * filters + n[None, :], sums.to(y.dtype.element_ty), inside)


def packed(depthwise: Tensor, pointwise: Tensor) -> tuple[Tensor, Tensor]:
    """The weights (M, 1, K, K) and (N, M, 1, 1) of the two convolutions as `separable` takes them: channels last."""
    return depthwise.flatten(1).T.contiguous(), pointwise.flatten(1).T.contiguous()


def separable(
    x: Tensor,
    taps: Tensor,
    mixing: Tensor,
    biases: Sequence[Tensor | None] = (None, None),
    stride: int = 1,
    padding: int = 1,
    relu: bool = False,
    rows: int = 64,
    columns: int = 128,
    depth: int = 32,
) -> Tensor:
    """x (B, M, H, W) in channels_last to (B, N, H', W') in channels_last and x's dtype.

    taps (K*K, M) and mixing (M, N) are what `packed` returns, biases (M,) and (N,) or None. The depthwise part is
    computed anew for each `columns` filters. MACs of the two convolutions: B * H' * W' * (M * K^2 + M * N).
    """
    (images, channels, height, width), filters, kernel = x.shape, mixing.shape[1], math.isqrt(len(taps))
    out_h, out_w = ((size + 2 * padding - kernel) // stride + 1 for size in (height, width))
    y = x.new_empty(images, out_h, out_w, filters)
    columns, depth = width_of(filters, columns), width_of(channels, depth)
    grid = (triton.cdiv(images * out_h * out_w, rows) * triton.cdiv(filters, columns),)
    sizes = images * out_h * out_w, height, width, out_h, out_w, channels, filters
    words = {"KERNEL": kernel, "STRIDE": stride, "PADDING": padding, "RELU": relu, "PRECISION": "ieee"}
    tile = {"ROWS": rows, "COLUMNS": columns, "DEPTH": depth}
    depthwise_pointwise[grid](x, taps, biases[0], mixing, biases[1], y, *sizes, **words, **tile)
    return y.movedim(-1, 1)
