"""Launches the kernels of `hetconv_kernels`: one function for each thing that they compute."""

from functools import cache
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from convrepro.ops.hetconv_tiles import (
    Tile,
    fastest,
    fitting,
    gemm_memory,
    gemm_tiles,
    gradient_memory,
    gradient_tiles,
    shared_memory,
    width,
)

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

    def merged_blocks(self, least: int | None = None) -> int:
        """The number of blocks after merging neighbours until each has `least` channels and filters (`LEAST_BLOCK`)."""
        least = LEAST_BLOCK if least is None else least
        narrow = min(self.channels, self.filters) // self.blocks
        fitting = (q for q in range(1, self.blocks + 1) if self.blocks % q == 0 and q * narrow >= least)
        return self.blocks // min([*fitting, self.blocks])

    def block(self, least: int) -> tuple[int, int]:
        """Channels and filters of a merged block."""
        return self.channels // self.merged_blocks(least), self.filters // self.merged_blocks(least)

    def stays(self) -> bool:
        """Whether the centres of the windows are the input as it is."""
        words = zip(self.kernel_size, self.padding, self.dilation, strict=True)
        return self.stride == (1, 1) and all(p == d * (k // 2) for k, p, d in words)

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

    grad (B, N, H', W'), x (B, M, H, W). MACs: as `forward`; a tile may leave a part to a library's kernel.
    """
    x, grad = _rows(x), _rows(grad)
    size = layer.filters * layer.channels // layer.blocks
    size = size * layer.kernel_size[0] * layer.kernel_size[1] + size * (layer.blocks - 1)
    out = torch.zeros(size, dtype=dtype, device=x.device)

    def run(tile: Tile) -> None:
        if tile.library == "dense":
            _dense_weight_gradient(grad, x, layer, out)
        else:
            _weight_gradient(grad, x, layer, out, tile)

    if grad.numel():
        entry_bytes = x.element_size()
        tiles = gradient_tiles(layer.block, layer.stays(), entry_bytes)
        tiles = fitting(tiles, lambda tile: gradient_memory(tile, entry_bytes), shared_memory(x.device))
        fastest(run, tiles, ("weights", layer, *x.shape, x.dtype))
    return out


def _weight_gradient(grad: Tensor, x: Tensor, layer: Layer, out: Tensor, tile: Tile) -> None:
    kernels = _kernels()
    blocks, (block_in, block_out) = layer.merged_blocks(tile.least), layer.block(tile.least)
    others, pixels = layer.kernel_size[0] * layer.kernel_size[1] - 1, grad.shape[:3].numel()
    rows = layer.channels + others * block_in
    centre = None
    if tile.library == "centre":
        centre = torch.mm(x.view(pixels, -1).T, grad.view(pixels, -1))
    steps = (0 if tile.library == "centre" else -(-layer.channels // tile.rows)) + others * -(-block_in // tile.rows)
    tiles = -(-steps // tile.shared) * blocks * -(-block_out // tile.columns)
    splits = max(1, min(tile.waves * _multiprocessors(x.device) // max(1, tiles), pixels // (4 * tile.depth)))
    per_split = -(-pixels // (splits * tile.depth)) * tile.depth
    splits = -(-pixels // per_split)
    partial = torch.empty(splits, blocks, rows, block_out, dtype=torch.float32, device=x.device)
    if tiles:
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
            WITH_CENTRE=centre is None,
            VECTOR=_vector((tile.rows, layer.channels), (tile.rows, block_in)),
            PRECISION=_precision(x.dtype),
            ROWS=tile.rows,
            COLUMNS=tile.columns,
            DEPTH=tile.depth,
            SHARED=tile.shared,
            num_warps=tile.warps,
            num_stages=tile.stages,
        )
    index = _index(*layer[:4], blocks, x.device).entries
    words = len(out), splits, layer.channels, layer.filters, rows, block_out
    kernels.sum_splits[(-(-len(out) // 256),)](partial, centre, index, out, *words, SIZE=256, num_warps=4)


def _dense_weight_gradient(grad: Tensor, x: Tensor, layer: Layer, out: Tensor) -> None:
    """By the library's dense convolution: 9 instead of 1 + 8/G MACs for a 3x3 window, in one well tuned kernel."""
    weight = x.new_empty(layer.filters, *layer.kernel_size, layer.channels).movedim(-1, 1)
    words = None, layer.stride, layer.padding, layer.dilation, False, (0, 0), 1, (False, True, False)
    images = grad.movedim(-1, 1), x.movedim(-1, 1)
    dense = torch.ops.aten.convolution_backward(*images, weight, *words)[1].movedim(1, -1).contiguous()
    index = _index(*layer[:4], layer.blocks, x.device).dense
    _kernels().gather_weights[(-(-len(out) // 512),)](
        dense, None, index, out, dense.numel(), len(out), SIZE=512, num_warps=4
    )


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
    """The place of each packed entry among those of weight_kxk, then of weight_1x1 (-1: a zero); the reverse; and the
    place of each of those among the dense weight's in channels_last.
    """

    packed: Tensor
    transposed: Tensor
    entries: Tensor
    dense: Tensor


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

    def reverse(places: Tensor) -> Tensor:
        entries = torch.empty(int(places.max()) + 1, dtype=torch.int32)
        entries[places[places >= 0].long()] = torch.nonzero(places >= 0)[:, 0].int()
        return entries

    forward, backward = packed(dense), packed(dense.transpose(0, 1))
    tables = forward, backward, reverse(forward.flatten()), reverse(dense.transpose(1, 2).flatten())
    return _Index(*(table.to(device) for table in tables))


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
    pixels, entry_bytes = y.shape[:3].numel(), x.element_size()
    centre_depth = width(x.shape[3], 128 // entry_bytes)

    def run(tile: Tile) -> None:
        kernels.gather_gemm[(-(-pixels // tile.rows) * (blocks // tile.joined) * -(-block_out // tile.columns),)](
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
            VECTOR=_vector((centre_depth, x.shape[3]), (tile.depth, block_in)),
            RELU=relu,
            PRECISION=_precision(x.dtype),
            ROWS=tile.rows,
            COLUMNS=tile.columns,
            DEPTH=tile.depth,
            CENTRE_DEPTH=centre_depth,
            JOINED=tile.joined,
            num_warps=tile.warps,
            num_stages=tile.stages,
            maxnreg=tile.registers(),
        )

    if pixels:
        kind = "positions", *x.shape, *y.shape, blocks, tuple(taps.values()), x.dtype
        tiles = gemm_tiles(blocks, block_in, block_out, entry_bytes)
        tiles = fitting(tiles, lambda tile: gemm_memory(tile, centre_depth, entry_bytes), shared_memory(x.device))
        fastest(run, tiles, kind)
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


def _vector(*steps: tuple[int, int]) -> int:
    """0 where each step divides its size; else the largest number of entries, at most 8, that divides all sizes."""
    if all(size % step == 0 for step, size in steps):
        return 0
    return next(vector for vector in (8, 4, 2, 1) if all(size % vector == 0 for _, size in steps))
