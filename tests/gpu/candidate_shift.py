"""A candidate: DeepShift's product (arXiv 1905.13298) from weights packed in a few bits, unpacked in registers.

A weight +-2^p is a sign and a shift of together 4 to 6 bits, so that reading it costs a sixth of a float32. With few
inputs a product takes the time of reading its weights. `product` is for a few rows, `product_of_many` for more.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from convrepro.ops import ShiftConv2d, ShiftLinear
from convrepro.ops.power_of_two import sign_and_exponent

MOST_BITS = 8


class Packed(NamedTuple):
    """Weights (N, M) in int32 words (N, W) of 32 // bits codes each; code i of word j is that of channel i * W + j.

    A code is a sign bit and, below it, the field p - `lowest`; with `zero`, a field of 0 stands for the weight 0.
    """

    words: Tensor
    channels: int
    bits: int
    lowest: int
    zero: bool


def pack(layer: ShiftConv2d | ShiftLinear) -> Packed:
    """Packs the weights of a linear layer or of a 1x1 convolution of one group.

    Raises ValueError for other convolutions, for codes of more than 8 bits, and for a weight of 0 without a code.
    """
    weight = layer.quantized_weight().detach()
    code = layer.quantizer.code(weight)
    if weight[0, 0].numel() > 1 or getattr(layer, "groups", 1) > 1:
        raise ValueError(f"a weight of shape {tuple(weight.shape)} is none of a 1x1 convolution of one group")
    if code.bits > MOST_BITS:
        raise ValueError(f"codes of {code.bits} bits; valid: at most {MOST_BITS}")
    sign, exponent = (part.flatten(1) for part in sign_and_exponent(weight))
    if not code.zero and (sign == 0).any():
        raise ValueError("a weight is 0, which has no code here")
    lowest = code.highest - (1 << (code.bits - 1)) + 1
    field = torch.where(sign == 0, 0, exponent - lowest).long() | ((sign < 0).long() << (code.bits - 1))
    channels, codes = field.shape[1], 32 // code.bits
    field = torch.nn.functional.pad(field, (0, -channels % codes)).unflatten(1, (codes, -1))
    places = torch.arange(codes, device=field.device)[:, None] * code.bits
    words = (field << places).sum(1)
    words = torch.where(words >= 1 << 31, words - (1 << 32), words)
    return Packed(words.to(torch.int32).contiguous(), channels, code.bits, lowest, code.zero)


@triton.jit
def unpacked(words, i, BITS: tl.constexpr, LOWEST: tl.constexpr, ZERO: tl.constexpr):
    """Code i of each word as a float32, put together from its bits."""
    code = words >> (i * BITS)
    field = code & ((1 << (BITS - 1)) - 1)
    value = (((field + (LOWEST + 127)) << 23) | (((code >> (BITS - 1)) & 1) << 31)).to(tl.float32, bitcast=True)
    if ZERO:
        value = tl.where(field == 0, 0.0, value)
    return value


@triton.jit
def shift_rows(
    x,
    words,
    bias,
    y,
    channels,
    filters,
    width,
    BITS: tl.constexpr,
    LOWEST: tl.constexpr,
    ZERO: tl.constexpr,
    FILTERS: tl.constexpr,
    WORDS: tl.constexpr,
):
    """FILTERS entries of a row of y (rows, filters), in float32 sums. x: (rows, channels); words: (filters, width)."""
    row = tl.program_id(1)
    n = tl.program_id(0) * FILTERS + tl.arange(0, FILTERS)
    sums = tl.zeros((FILTERS, WORDS), tl.float32)
    for first in range(0, width, WORDS):
        j = first + tl.arange(0, WORDS)
        inside = (n < filters)[:, None] & (j < width)[None, :]
        packed = tl.load(words + n[:, None] * width + j[None, :], inside, 0)
        for i in tl.static_range(32 // BITS):
            channel = i * width + j
            entry = tl.load(x + row * channels + channel, (j < width) & (channel < channels), 0.0)
            sums += unpacked(packed, i, BITS, LOWEST, ZERO) * entry.to(tl.float32)[None, :]
    total = tl.sum(sums, 1)
    if bias is not None:
        total += tl.load(bias + n, n < filters, 0.0).to(tl.float32)
    tl.store(y + row * filters + n, total.to(y.dtype.element_ty), n < filters)


@triton.jit
def shift_tiles(
    x,
    words,
    bias,
    y,
    rows,
    channels,
    filters,
    width,
    BITS: tl.constexpr,
    LOWEST: tl.constexpr,
    ZERO: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    FILTERS: tl.constexpr,
    WORDS: tl.constexpr,
):
    """ROWS times FILTERS entries of y (rows, filters) by matrix products in the dtype of x."""
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    n = tl.program_id(0) * FILTERS + tl.arange(0, FILTERS)
    sums = tl.zeros((ROWS, FILTERS), tl.float32)
    for first in range(0, width, WORDS):
        j = first + tl.arange(0, WORDS)
        inside = (j < width)[:, None] & (n < filters)[None, :]
        packed = tl.load(words + n[None, :] * width + j[:, None], inside, 0)
        for i in tl.static_range(32 // BITS):
            channel = i * width + j
            inside_x = (row < rows)[:, None] & ((j < width) & (channel < channels))[None, :]
            entries = tl.load(x + row[:, None] * channels + channel[None, :], inside_x, 0.0)
            weights = unpacked(packed, i, BITS, LOWEST, ZERO).to(entries.dtype)
            sums = tl.dot(entries, weights, sums, input_precision=PRECISION)
    if bias is not None:
        sums += tl.load(bias + n, n < filters, 0.0).to(tl.float32)[None, :]
    to = y + row[:, None] * filters + n[None, :]
    tl.store(to, sums.to(y.dtype.element_ty), (row < rows)[:, None] & (n < filters)[None, :])


def product(x: Tensor, packed: Packed, bias: Tensor | None, filters: int = 8, words: int = 128) -> Tensor:
    """x (B, M) times the weights: (B, N) in the dtype of x. A program has `filters` filters and reads `words` at once.

    Powers of two are exact in every dtype; sums are in float32. MACs: B * N * M.
    """
    y = x.new_empty(len(x), len(packed.words))
    grid = triton.cdiv(y.shape[1], filters), len(x)
    sizes = packed.channels, y.shape[1], packed.words.shape[1]
    shift_rows[grid](x, packed.words, bias, y, *sizes, *packed[2:], FILTERS=filters, WORDS=words)
    return y


def product_of_many(
    x: Tensor, packed: Packed, bias: Tensor | None, rows: int = 64, filters: int = 64, words: int = 32
) -> Tensor:
    """The same in tiles of `rows` by `filters`, for x of many rows, such as the pixels of an image."""
    y = x.new_empty(len(x), len(packed.words))
    grid = triton.cdiv(y.shape[1], filters), triton.cdiv(len(x), rows)
    sizes = len(x), packed.channels, y.shape[1], packed.words.shape[1]
    tile = {"PRECISION": "ieee", "ROWS": rows, "FILTERS": filters, "WORDS": words}
    shift_tiles[grid](x, packed.words, bias, y, *sizes, *packed[2:], **tile)
    return y
