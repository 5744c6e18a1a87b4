"""Which form and which tile HetConv takes on a GPU, told without one."""

import json
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from convrepro.config.paths import REPRODUCTIONS
from convrepro.ops import HetConv2d, hetconv_triton
from convrepro.ops.hetconv_launch import Layer
from convrepro.ops.hetconv_tiles import (
    Tile,
    fitting,
    gemm_memory,
    gemm_tiles,
    gradient_memory,
    gradient_tiles,
    shared_memory,
    width,
)

pytestmark = pytest.mark.unit

H100_MEMORY = 232448
"""Bytes of shared memory that a program may have on an H100."""
RECORD = REPRODUCTIONS / "gpu" / "h100-1-speed.json"


@pytest.fixture
def _autocast() -> Iterator[None]:
    """`torch.autocast` turns itself off where there is no GPU; this does not."""
    torch.set_autocast_enabled("cuda", True)
    yield
    torch.set_autocast_enabled("cuda", False)
    torch.set_autocast_dtype("cuda", torch.float16)


@pytest.fixture
def _gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(hetconv_triton, "INSTALLED", True)


def images(dtype: torch.dtype = torch.bfloat16, layout: torch.memory_format = torch.channels_last, device="cuda:0"):
    with FakeTensorMode():
        return torch.empty(2, 8, 5, 6, dtype=dtype, device=device).to(memory_format=layout)


def image() -> Tensor:
    with FakeTensorMode():
        return torch.empty(8, 5, 6, dtype=torch.bfloat16, device="cuda:0")


@pytest.mark.usefixtures("_gpu")
def test_auto_takes_the_kernel_only_for_what_was_measured(monkeypatch):
    bf16, single = torch.bfloat16, torch.float32
    assert hetconv_triton.wins(images(), bf16)
    assert not hetconv_triton.wins(images(), single), "torch refuses to mix these dtypes"
    assert not hetconv_triton.wins(images(single), single)
    assert not hetconv_triton.wins(images(torch.float16), torch.float16)
    assert not hetconv_triton.wins(images(layout=torch.contiguous_format), bf16)
    assert not hetconv_triton.wins(images(device="cpu"), bf16)
    assert not hetconv_triton.wins(images(device="cuda:1"), bf16), "Triton launches on the current device"
    assert not hetconv_triton.wins(image(), bf16)
    with monkeypatch.context() as patch:
        patch.setattr(torch.compiler, "is_compiling", lambda: True)
        assert not hetconv_triton.wins(images(), bf16)
    monkeypatch.setattr(hetconv_triton, "INSTALLED", False)
    assert not hetconv_triton.wins(images(), bf16)


@pytest.mark.usefixtures("_gpu", "_autocast")
@pytest.mark.parametrize(("autocast", "taken"), [(torch.bfloat16, True), (torch.float16, False)])
def test_autocast_decides_the_dtype(autocast, taken):
    torch.set_autocast_dtype("cuda", autocast)
    for dtype in (torch.float32, torch.bfloat16):
        assert hetconv_triton.wins(images(dtype), torch.float32) is taken


@pytest.mark.usefixtures("_gpu")
@pytest.mark.parametrize(
    ("form", "p", "filters", "taken"),
    [("auto", 4, 8, True), ("plain", 4, 8, False), ("triton", 4, 8, True), ("auto", "out", 16, False)],
)
def test_other_forms_are_what_was_asked_for(form, p, filters, taken):
    """With p above the channels, filters without a KxK kernel are not the kernel's."""
    operator = HetConv2d(8, filters, 3, padding=1, p=p, form=form, dtype=torch.bfloat16)
    assert operator._triton(images()) is taken


def test_the_first_tile_fits_where_it_did_not():
    """From 256 to 128 channels in 4 blocks, the input gradient of the layer (128, 256): 245760 bytes were required."""
    tiles = gemm_tiles(4, 64, 32, 2)
    assert gemm_memory(tiles[0], 64, 2) == 245760
    first = fitting(tiles, lambda tile: gemm_memory(tile, 64, 2), H100_MEMORY)[0]
    assert gemm_memory(first, 64, 2) <= H100_MEMORY


def test_the_least_tile_is_left_where_none_fits():
    tiles = [Tile(128, 128), Tile(64, 64), Tile(64, 128)]
    assert fitting(tiles, lambda tile: tile.rows * tile.columns, 100) == [Tile(64, 64)]
    assert fitting(tiles, lambda tile: tile.rows, 64) == [Tile(64, 64), Tile(64, 128)]
    assert fitting(tiles, lambda tile: tile.rows, shared_memory(torch.device("cpu"))) == tiles


def test_the_limit_is_the_device_s(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(**properties))
    properties = {"shared_memory_per_block_optin": H100_MEMORY}
    assert shared_memory.__wrapped__(torch.device("cuda:0")) == H100_MEMORY
    properties = {}
    assert shared_memory.__wrapped__(torch.device("cuda:0")) is None


def test_the_memory_is_as_an_h100_found_it():
    """The tiles that the record lacks, for they did not fit, are those that need more than there is."""
    lacking = 0
    for name, case in json.loads(RECORD.read_text())["cases"].items():
        for kind, times in case["kernels"].items() if name.startswith("layer") else ():
            # A launch: the least size of a merged block, then the arguments of `fastest`.
            launch = eval(kind.split(" ", 1)[1], {"torch": torch, "Layer": Layer})
            if launch[0] == "positions":
                channels, filters, blocks = launch[4], launch[8], launch[9]
                tiles = gemm_tiles(blocks, channels // blocks, filters // blocks, 2)
                needs = {tile: gemm_memory(tile, width(channels, 64), 2) for tile in tiles}
            else:
                tiles = gradient_tiles(launch[1].block, launch[1].stays(), 2)
                needs = {tile: gradient_memory(tile, 2) for tile in tiles}
            for tile, need in needs.items():
                assert (str(tuple(tile)) in times) == (need <= H100_MEMORY), (kind, tile, need)
                lacking += need > H100_MEMORY
    assert lacking > 0
