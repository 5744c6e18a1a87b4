"""How the kernels of `hetconv_kernels` divide their work; the fastest division of a launch is found by timing."""

import os
from collections.abc import Callable, Hashable
from contextlib import suppress
from functools import cache, partial
from typing import NamedTuple

import torch


class Tile(NamedTuple):
    """What one program computes, and how many warps and pipeline stages it has.

    With 1 stage, reads go through the L1 cache and registers; with more, past it into shared memory, ahead of their
    use. joined: neighbouring blocks of one program. For the weight gradient: `shared` tiles of one program that share a
    tile of the gradient, `waves` programs for each multiprocessor, blocks merged to `least` channels and filters, and
    `library`: what a library's kernel computes, "" (nothing), "centre" (a matrix product) or "dense" (all of it, as
    the gradient of the dense convolution, most of which is dropped).
    """

    rows: int = 16
    columns: int = 16
    depth: int = 16
    warps: int = 4
    stages: int = 3
    joined: int = 1
    shared: int = 1
    waves: int = 4
    least: int = 0
    library: str = ""

    def registers(self) -> int | None:
        """Of a thread, at most: 128 where the sums take half of them, so that a multiprocessor holds two programs."""
        return 128 if self.rows * self.columns * self.joined <= 64 * 32 * self.warps else None


def interpreted() -> bool:
    """Whether Triton runs its kernels in Python, on CPU tensors."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def width(size: int, most: int) -> int:
    """The least power of two from 16 on that holds `size`, at most `most`."""
    return min(max(16, 1 << (size - 1).bit_length()), most)


@cache
def shared_memory(device: torch.device) -> int | None:
    """Bytes of shared memory that one program may have on this device; None where no limit is known."""
    if device.type != "cuda":
        return None
    return getattr(torch.cuda.get_device_properties(device), "shared_memory_per_block_optin", None)


def fitting(tiles: list[Tile], needs: Callable[[Tile], int], limit: int | None) -> list[Tile]:
    """Those of `tiles` that need at most `limit` bytes, in their order; if none does, the one that needs least."""
    if limit is None:
        return tiles
    return [tile for tile in tiles if needs(tile) <= limit] or [min(tiles, key=needs)]


def gemm_memory(tile: Tile, centre_depth: int, entry_bytes: int) -> int:
    """Bytes of shared memory that `gather_gemm` needs: each stage holds what one step reads.

    At the window's centre the joined blocks share one tile of the input; at the other taps each has its own.
    """
    centre = centre_depth * (tile.rows + tile.joined * tile.columns)
    others = tile.depth * tile.joined * (tile.rows + tile.columns)
    return tile.stages * entry_bytes * max(centre, others)


def gradient_memory(tile: Tile, entry_bytes: int) -> int:
    """The same for the kernel `weight_gradient`; 0 where a library computes all."""
    if tile.library == "dense":
        return 0
    return tile.stages * entry_bytes * tile.depth * (tile.shared * tile.rows + tile.columns)


def gemm_tiles(blocks: int, block_in: int, block_out: int, entry_bytes: int) -> list[Tile]:
    """Tiles for `gather_gemm`, the most likely first."""
    columns, depth = width(block_out, 128), width(block_in, 128 // entry_bytes)
    fitting = [n for n in (8, 4, 2, 1) if blocks % n == 0 and n * columns <= 128 and (n == 1 or columns >= block_out)]
    if interpreted():
        return [Tile(128, columns, depth, joined=fitting[0])]
    found: list[Tile] = []
    for joined in fitting[:2]:
        warps = 8 if joined * columns == 128 else 4
        shapes = [(128, warps, 3), (64, 4, 3), (128, warps, 1)]
        shapes += [(64, 4, 1), (256, 8, 3)] if joined == fitting[0] else []
        shapes += [(128, warps, 4)] if joined == 1 else []
        found += [Tile(rows, columns, depth, warps, stages, joined) for rows, warps, stages in shapes]
    return found


def gradient_tiles(block: Callable[[int], tuple[int, int]], stays: bool, entry_bytes: int) -> list[Tile]:
    """Tiles for the weight gradient, the most likely first.

    `block` gives a block's channels and filters for each `Tile.least`; `stays`: whether the centres of the windows are
    the input as it is, so that a library can multiply them. Hopper's matrix instructions want 64 rows.
    """
    depth = 128 // entry_bytes
    if interpreted():
        block_in, block_out = block(32)
        return [Tile(width(block_in, 64), width(block_out, 128), 128, shared=4, least=32)]

    def tile(least: int, shared: int, waves: int, stages: int, library: str, most: int = 64) -> Tile:
        rows, columns = width(block(least)[0], most), width(block(least)[1], 128)
        warps = 8 if columns == 128 or columns * shared == 256 else 4
        return Tile(rows, columns, depth, warps, stages, 1, shared, waves, least, library)

    parts = ("centre", "") if stays and entry_bytes == 2 else ("",)
    ways = [(2, 4, 3), (4, 2, 3), (2, 4, 1), (4, 2, 1), (1, 4, 3), (2, 2, 3)]
    found = [tile(64, *way, library) for library in parts for way in (ways if library == parts[0] else ways[:3])]
    if block(32) != block(64):
        found += [tile(32, 1, 8, 3, parts[0]), tile(32, 2, 4, 3, parts[0])]
    if block(64)[0] >= 128:
        found += [tile(64, 1, waves, 3, parts[0], 128) for waves in (2, 4)]
    return [*found, Tile(library="dense")]


timed: dict[Hashable, dict[Tile, float]] = {}
"""Milliseconds by tile, the fastest first, for each kind of launch that was timed."""


def fastest(run: Callable[[Tile], None], tiles: list[Tile], kind: Hashable) -> None:
    """Run with the tile that is the fastest for this kind of launch.

    They are timed the first time, where cuDNN would time, too, and no graph is being captured; else it is the first.
    `tiles` are those that `fitting` leaves; one that needs more memory than was computed is passed over.
    """
    from triton.runtime.errors import OutOfResources
    from triton.testing import do_bench

    timing = torch.backends.cudnn.benchmark and not interpreted() and not torch.cuda.is_current_stream_capturing()
    if kind not in timed and timing:
        times: dict[Tile, float] = {}
        for tile in tiles:
            with suppress(OutOfResources):
                times[tile] = do_bench(partial(run, tile), warmup=2, rep=10, return_mode="median")
        timed[kind] = {tile: times[tile] for tile in sorted(times, key=times.__getitem__)}
    for tile in timed.get(kind, tiles):
        with suppress(OutOfResources):
            return run(tile)
    raise RuntimeError(f"no tile of {tiles} fits the shared memory of this device")
