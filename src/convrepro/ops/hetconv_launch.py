"""Launches the kernels of `hetconv_kernels`: one function for each thing that they compute, tiles chosen by timing."""

import itertools
import os
from collections.abc import Callable
from functools import cache
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

LEAST_BLOCK = 32
"""Channels and filters that a merged block has at least, as far as the layer has them."""


class Layer(NamedTuple):
    """A HetConv layer but for its weights: channels and filters in `blocks` blocks, and `nn.Conv2d`'s words."""

    channels: int
    filters: int
    blocks: int
    kernel_size: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]

    def merged_blocks(self) -> int:
        """The number of blocks after merging neighbours until each has `LEAST_BLOCK` channels and filters."""
        narrow = min(self.channels, self.filters) // self.blocks
        fitting = (q for q in range(1, self.blocks + 1) if self.blocks % q == 0 and q * narrow >= LEAST_BLOCK)
        return self.blocks // min([*fitting, self.blocks])

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        words = zip((height, width), self.kernel_size, self.stride, self.padding, self.dilation, strict=True)
        out_h, out_w = ((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in words)
        return out_h, out_w

    def taps(self) -> dict[str, int]:
        """Where the kernels find the source of an output position (see `gather_gemm`)."""
        (kernel_h, kernel_w), (pad_h, pad_w) = self.kernel_size, self.padding
        words = {"KERNEL_W": kernel_w, "TAPS": kernel_h * kernel_w, "CENTRE": kernel_h * kernel_w // 2}
        words |= {"STRIDE_H": self.stride[0], "STRIDE_W": self.stride[1], "FIRST_H": -pad_h, "FIRST_W": -pad_w}
        return words | {"STEP_H": self.dilation[0], "STEP_W": self.dilation[1]}

    def mirrored_taps(self) -> dict[str, int]:
        """The same for the input gradient, in which an input position is the output."""
        taps = self.taps()
        mirrored = {word: -taps[word] for word in ("FIRST_H", "FIRST_W", "STEP_H", "STEP_W")}
        strides = {"STRIDE_H": 1, "STRIDE_W": 1, "DIVISOR_H": self.stride[0], "DIVISOR_W": self.stride[1]}
        return taps | mirrored | strides


class Tile(NamedTuple):
    """How a kernel divides its work: what one program computes, and how many warps and pipeline stages it has.

    cached: whether reads of the input go through the L1 cache, in pieces of 4 entries; else past it, in pieces of 8.
    shared: tiles of one program that share a tile of the gradient; waves: programs for each multiprocessor.
    """

    rows: int
    columns: int
    depth: int
    warps: int = 4
    stages: int = 4
    cached: bool = False
    shared: int = 1
    waves: int = 4


def interpreted() -> bool:
    """Whether Triton runs its kernels in Python, on CPU tensors."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def forward(x: Tensor, packed: Tensor, bias: Tensor | None, layer: Layer, *, relu: bool = False) -> Tensor:
    """Kernel `gather_gemm`: the output (B, N, H', W') of x (B, M, H, W) with the weights that `pack` packed.

    MACs: `H' * W' * N * (M + (K^2 - 1) * M/G)` for an image, with G merged blocks.
    """
    size = layer.output_size(*x.shape[2:])
    stored = layer.taps() | {"DIVISOR_H": 1, "DIVISOR_W": 1}
    return _gather_gemm(x, packed, bias, size, layer.filters, layer.merged_blocks(), stored, relu)


def input_gradient(grad: Tensor, packed: Tensor, layer: Layer, size: tuple[int, int]) -> Tensor:
    """Kernel `gather_gemm`: the gradient (B, M, H, W) for an input of `size` (H, W) from grad (B, N, H', W').

    `packed` is what `pack` packs with `transposed`. MACs: `H * W * M * (N + (K^2 - 1) * N/G)`, with G merged blocks.
    """
    return _gather_gemm(grad, packed, None, size, layer.channels, layer.merged_blocks(), layer.mirrored_taps(), False)


def weight_gradient(grad: Tensor, x: Tensor, layer: Layer, dtype: torch.dtype) -> Tensor:
    """Kernels `weight_gradient` and `sum_splits`: the entries of weight_kxk's gradient, then those of weight_1x1's.

    grad (B, N, H', W'), x (B, M, H, W). MACs: as `forward`.
    """
    kernels = _kernels()
    x, grad = _rows(x), _rows(grad)
    blocks = layer.merged_blocks()
    block_in, block_out = layer.channels // blocks, layer.filters // blocks
    rows = layer.channels + (len_others := layer.kernel_size[0] * layer.kernel_size[1] - 1) * block_in
    pixels = grad.shape[:3].numel()
    index = _index(*layer[:4], blocks, x.device).entries
    out = torch.zeros(len(index), dtype=dtype, device=x.device)
    if not pixels:
        return out

    def run(tile: Tile) -> None:
        steps = -(-layer.channels // tile.rows) + len_others * -(-block_in // tile.rows)
        tiles = -(-steps // tile.shared) * blocks * -(-block_out // tile.columns)
        splits = max(1, min(tile.waves * _multiprocessors(x.device) // tiles, pixels // (4 * tile.depth)))
        per_split = -(-pixels // (splits * tile.depth)) * tile.depth
        splits = -(-pixels // per_split)
        partial = torch.empty(splits, blocks, rows, block_out, dtype=torch.float32, device=x.device)
        kernels.weight_gradient[tiles, splits](
            x,
            grad,
            partial,
            pixels,
            per_split,
            *x.shape[1:],
            layer.filters,
            block_in,
            block_out,
            *grad.shape[1:3],
            **layer.taps(),
            VECTOR=_vector(tile, tile.rows, layer.channels, block_in),
            PRECISION=_precision(x.dtype),
            ROWS=tile.rows,
            COLUMNS=tile.columns,
            DEPTH=tile.depth,
            SHARED=tile.shared,
            num_warps=tile.warps,
            num_stages=tile.stages,
        )
        words = partial, index, out, len(index), partial[0].numel(), splits
        kernels.sum_splits[(-(-len(index) // 256),)](*words, SIZE=256, num_warps=4)

    _fastest(run, _gradient_tiles(block_in, block_out, x.element_size()), ("weights", layer, blocks, *x.shape, x.dtype))
    return out


def pack(
    weight_kxk: Tensor, weight_1x1: Tensor | None, layer: Layer, dtype: torch.dtype, *, transposed: bool = False
) -> Tensor:
    """Kernel `gather_weights`: both weights as (G, M + (K^2 - 1) * M/G, N/G) in `dtype`, for `forward`.

    First the rows of the M channels at the centre, then for each other tap those of the block's own channels; G is the
    number of merged blocks. With `transposed`, M and N change places, for `input_gradient`.
    """
    blocks = layer.merged_blocks()
    tables = _index(*layer[:4], blocks, weight_kxk.device)
    index = tables.transposed if transposed else tables.packed
    packed = torch.empty(index.shape, dtype=dtype, device=index.device)
    weights = weight_kxk.contiguous(), None if weight_1x1 is None else weight_1x1.contiguous()
    words = index, packed, weight_kxk.numel(), index.numel()
    _kernels().gather_weights[(-(-index.numel() // 512),)](*weights, *words, SIZE=512, num_warps=4)
    return packed


class _Index(NamedTuple):
    """The place of each packed entry among those of weight_kxk, then of weight_1x1 (-1: a zero); and the reverse."""

    packed: Tensor
    transposed: Tensor
    entries: Tensor


@cache
def _index(
    channels: int, filters: int, blocks: int, kernel_size: tuple[int, int], merged: int, device: torch.device
) -> _Index:
    """The tables of `pack` and of the weight gradient, made from the dense weight with numbers for its entries."""
    taps, block_in = kernel_size[0] * kernel_size[1], channels // blocks
    centre, size_kxk = taps // 2, filters * block_in * taps
    dense = torch.full((filters, channels, taps), -1)
    own = torch.arange(blocks)
    by_block = dense.view(blocks, filters // blocks, blocks, block_in, taps)
    by_block[own, :, own] = torch.arange(size_kxk).view(blocks, filters // blocks, block_in, taps)
    others = dense[..., centre] < 0
    dense[..., centre][others] = torch.arange(size_kxk, size_kxk + int(others.sum()))

    def packed(dense: Tensor) -> Tensor:
        own = torch.arange(merged)
        centres = dense[..., centre].unflatten(0, (merged, -1)).transpose(1, 2)
        kernels = dense.unflatten(1, (merged, -1)).unflatten(0, (merged, -1))[own, :, own]
        around = torch.cat((kernels[..., :centre], kernels[..., centre + 1 :]), dim=-1)
        return torch.cat((centres, around.permute(0, 3, 2, 1).flatten(1, 2)), dim=1).int().contiguous()

    forward, backward = packed(dense), packed(dense.transpose(0, 1))
    places = forward.flatten()
    entries = torch.empty(int(places.max()) + 1, dtype=torch.int32)
    entries[places[places >= 0].long()] = torch.nonzero(places >= 0)[:, 0].int()
    return _Index(forward.to(device), backward.to(device), entries.to(device))


def _gather_gemm(
    x: Tensor,
    packed: Tensor,
    bias: Tensor | None,
    size: tuple[int, int],
    filters: int,
    blocks: int,
    taps: dict[str, int],
    relu: bool,
) -> Tensor:
    kernels = _kernels()
    x = _rows(x)
    y = x.new_empty(len(x), *size, filters)
    block_in, block_out = x.shape[3] // blocks, filters // blocks
    pixels = y.shape[:3].numel()

    def run(tile: Tile) -> None:
        kernels.gather_gemm[(-(-pixels // tile.rows) * blocks * -(-block_out // tile.columns),)](
            x,
            packed,
            bias,
            y,
            pixels,
            *x.shape[1:3],
            *size,
            x.shape[3],
            filters,
            block_in,
            block_out,
            **taps,
            VECTOR=_vector(tile, tile.depth, x.shape[3], block_in),
            RELU=relu,
            PRECISION=_precision(x.dtype),
            ROWS=tile.rows,
            COLUMNS=tile.columns,
            DEPTH=tile.depth,
            num_warps=tile.warps,
            num_stages=tile.stages,
        )

    if pixels:
        kind = "positions", *x.shape, *y.shape, blocks, tuple(taps.values()), x.dtype
        _fastest(run, _gemm_tiles(block_in, block_out, x.element_size()), kind)
    return y.movedim(-1, 1)


def _rows(x: Tensor) -> Tensor:
    """(B, C, H, W) as a contiguous (B, H, W, C): a view in channels_last."""
    return x.movedim(1, -1).contiguous()


@cache
def _kernels() -> ModuleType:
    from convrepro.ops import hetconv_kernels

    return hetconv_kernels


@cache
def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


def _precision(dtype: torch.dtype) -> str:
    return "ieee" if dtype == torch.float32 and not torch.backends.cudnn.allow_tf32 else "tf32"


def _vector(tile: Tile, step: int, channels: int, block: int) -> int:
    if channels % step == block % step == 0:
        return 4 if tile.cached else 0
    return next(vector for vector in (8, 4, 2, 1) if channels % vector == block % vector == 0)


def _width(size: int, most: int) -> int:
    """The least power of two from 16 on that holds `size`, at most `most`."""
    return min(max(16, 1 << (size - 1).bit_length()), most)


def _gemm_tiles(block_in: int, block_out: int, entry_bytes: int) -> list[Tile]:
    """Tiles for `gather_gemm`, the most likely first."""
    columns, depth = _width(block_out, 128), _width(block_in, 128 // entry_bytes)
    if interpreted():
        return [Tile(128, columns, depth)]
    warps = 8 if columns == 128 else 4
    shapes = [(128, warps, 4), (64, 4, 4), (256, 8, 3)]
    return [Tile(rows, columns, depth, *words, cached) for rows, *words in shapes for cached in (False, True)]


def _gradient_tiles(block_in: int, block_out: int, entry_bytes: int) -> list[Tile]:
    """Tiles for `weight_gradient`, the most likely first."""
    rows, columns, depth = _width(block_in, 64), _width(block_out, 128), 128 // entry_bytes
    if interpreted():
        return [Tile(rows, columns, 128, shared=4)]
    warps = 8 if columns == 128 else 4
    shapes = itertools.product((4, 2, 1), (4, 2))
    tiles = [Tile(rows, columns, depth, warps, 3, shared=shared, waves=waves) for shared, waves in shapes]
    return [*tiles, Tile(_width(block_in, 128), columns, depth, 8, 3)]


timed: dict[tuple, dict[Tile, float]] = {}
"""Milliseconds by tile, the fastest first, for each kind of launch that was timed."""


def _fastest(run: Callable[[Tile], None], tiles: list[Tile], kind: tuple) -> None:
    """Run with the tile that is the fastest for this kind of launch.

    They are timed the first time, where cuDNN would time, too, and no graph is being captured; else it is the first.
    """
    timing = torch.backends.cudnn.benchmark and not interpreted() and not torch.cuda.is_current_stream_capturing()
    if kind not in timed and timing:
        times = {tile: time for tile in tiles if (time := _time(run, tile)) is not None}
        timed[kind] = {tile: times[tile] for tile in sorted(times, key=times.get)}
    run(next(iter(timed.get(kind, tiles))))


def _time(run: Callable[[Tile], None], tile: Tile) -> float | None:
    """Milliseconds; None for a tile that is beyond the device's shared memory."""
    from triton.runtime.errors import OutOfResources
    from triton.testing import do_bench

    try:
        return do_bench(lambda: run(tile), warmup=2, rep=10, return_mode="median")
    except OutOfResources:
        return None
