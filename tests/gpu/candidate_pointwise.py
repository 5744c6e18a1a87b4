"""A candidate: a 1x1 group convolution that reads and writes through channel shuffles, as IGC and ShuffleNet need it.

The plain form is `convrepro.ops.igc.pointwise`: each shuffle reads and writes all activations once more.
"""

import triton
import triton.language as tl
from torch import Tensor

from convrepro.ops.hetconv_tiles import width as width_of


@triton.jit(do_not_specialize=("before", "after"))
def group_pointwise(
    x,
    weight,
    bias,
    y,
    pixels,
    channels,
    filters,
    block_in,
    block_out,
    before,
    after,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """ROWS pixels times COLUMNS filters of one group. x: (pixels, channels); weight: (filters, block_in).

    The convolution's channel c is x's channel (c mod before) * channels / before + c div before; its filter n is y's
    (n mod (filters / after)) * after + n div (filters / after). Programs of one pixel follow each other.
    """
    column_tiles = tl.cdiv(block_out, COLUMNS)
    across = channels // block_in * column_tiles
    tile = tl.program_id(0)
    group = tile % across // column_tiles
    row = tile // across * ROWS + tl.arange(0, ROWS)
    column = tile % column_tiles * COLUMNS + tl.arange(0, COLUMNS)
    n = group * block_out + column
    sums = tl.zeros((ROWS, COLUMNS), tl.float32)
    for first in range(0, block_in, DEPTH):
        inner = first + tl.arange(0, DEPTH)
        c = group * block_in + inner
        source = c % before * (channels // before) + c // before
        inside = (row < pixels)[:, None] & (inner < block_in)[None, :]
        entries = tl.load(x + row[:, None] * channels + source[None, :], inside, 0.0)
        inside = (inner < block_in)[:, None] & (column < block_out)[None, :]
        weights = tl.load(weight + n[None, :] * block_in + inner[:, None], inside, 0.0)
        sums = tl.dot(entries, weights, sums, input_precision=PRECISION)
    target = n % (filters // after) * after + n // (filters // after)
    if bias is not None:
        sums += tl.load(bias + target, column < block_out, 0.0).to(tl.float32)[None, :]
    inside = (row < pixels)[:, None] & (column < block_out)[None, :]
    tl.store(y + row[:, None] * filters + target[None, :], sums.to(y.dtype.element_ty), inside)


def pointwise(
    x: Tensor,
    weight: Tensor,
    groups: int,
    bias: Tensor | None = None,
    before: int = 1,
    after: int = 1,
    rows: int = 128,
    columns: int = 64,
    depth: int = 32,
) -> Tensor:
    """`igc.pointwise` of x (B, M, H, W), which is in channels_last, as (B, N, H, W) in channels_last and x's dtype.

    weight (N, M/groups, 1, 1); `bias` (N,) follows the order of the output. MACs: B * H * W * N * M / groups.
    """
    (images, channels, height, width), filters = x.shape, len(weight)
    y = x.new_empty(images, height, width, filters)
    pixels, block_in, block_out = images * height * width, channels // groups, filters // groups
    columns, depth = width_of(block_out, columns), width_of(block_in, depth)
    grid = (triton.cdiv(pixels, rows) * groups * triton.cdiv(block_out, columns),)
    words = {"PRECISION": "ieee", "ROWS": rows, "COLUMNS": columns, "DEPTH": depth}
    group_pointwise[grid](x, weight, bias, y, pixels, channels, filters, block_in, block_out, before, after, **words)
    return y.movedim(-1, 1)
