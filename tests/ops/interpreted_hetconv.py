"""HetConv's Triton kernels, run by Triton's interpreter on the CPU, against the paper's definition in float64.

`test_hetconv_triton.py` runs this file in a process of its own, for Triton reads TRITON_INTERPRET when it is imported.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from triton.runtime import interpreter

from convrepro.ops import HetConv2d, hetconv_launch, hetconv_tiles, hetconv_triton
from convrepro.ops.hetconv_launch import Layer
from convrepro.ops.hetconv_tiles import Tile

WORDS = [
    {"padding": 1},
    {"padding": 1, "stride": 2},
    {"padding": 2, "dilation": 2, "bias": False},
    {"kernel_size": (3, 5), "padding": (0, 2), "stride": (1, 3)},
]
BLOCKS = [(8, 16, 4, 2), (32, 64, 4, 16), (64, 32, 4, 32), (6, 9, 3, 2), (64, 64, 2, 32)]
"""(in_channels, out_channels, p, least): narrow blocks, merged ones, of an odd number of filters, and wide ones."""


def oracle(operator: HetConv2d, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """The output by the paper's definition, and the float64 parameters that it depends on.

    Filter i has KxK kernels on the channels of its block, and 1x1 kernels, at the centre of the window, on the others.
    """
    parameters = {name: p.detach().double().requires_grad_() for name, p in operator.named_parameters()}
    shifted, part, filters = operator.arrangement == "shifted", operator.p, operator.out_channels
    channels = range(operator.in_channels)
    block_of = (lambda c: c % part) if shifted else (lambda c: c // (operator.in_channels // part))
    order = sorted(range(filters), key=lambda i: (i % part if shifted else i, i))
    weight = torch.zeros(filters, operator.in_channels, *operator.kernel_size, dtype=torch.float64)
    for row, i in enumerate(order):
        own = [c for c in channels if block_of(c) == row // (filters // part)]
        others = sorted((c for c in channels if c not in own), key=lambda c: (block_of(c), c))
        weight[i, own] = parameters["weight_kxk"][row]
        weight[i, others, operator.kernel_size[0] // 2, operator.kernel_size[1] // 2] = parameters["weight_1x1"][row]
    words = operator.stride, operator.padding, operator.dilation
    return F.conv2d(x, weight, parameters.get("bias"), *words), parameters


def check(operator: HetConv2d, height: int = 5, width: int = 6, tolerance: float = 2e-6) -> None:
    """Output and all gradients are those of the oracle, as far from them as `tolerance` times the largest entry."""
    x = torch.randn(2, operator.in_channels, height, width, requires_grad=True)
    exact = x.detach().double().requires_grad_()
    expected, parameters = oracle(operator, exact)
    y = operator(x)
    assert y.is_contiguous(memory_format=torch.channels_last)
    upstream = torch.randn_like(expected)
    wanted = torch.autograd.grad(expected, [exact, *parameters.values()], upstream)
    got = torch.autograd.grad(y, [x, *operator.parameters()], upstream.to(y.dtype))
    for name, a, b in zip(("y", "x", *parameters), (y, *got), (expected, *wanted), strict=True):
        difference = (a.double() - b).abs().max() / b.abs().max()
        assert difference < tolerance, (name, difference.item())


@pytest.mark.parametrize(("words", "arrangement"), zip(WORDS, ["shifted", "contiguous"] * 2, strict=True), ids=str)
def test_equals_the_definition(words: dict, arrangement: str) -> None:
    check(HetConv2d(16, 16, **{"kernel_size": 3, **words}, p=4, arrangement=arrangement, form="triton"), 4, 5)


@pytest.mark.parametrize(("channels", "filters", "p", "least"), BLOCKS)
def test_narrow_blocks_are_padded_or_merged(
    channels: int, filters: int, p: int, least: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hetconv_launch, "LEAST_BLOCK", least)
    check(HetConv2d(channels, filters, 3, padding=1, p=p, form="triton"), height=2, width=3)


@pytest.mark.parametrize(
    "tile",
    [
        Tile(joined=2, shared=3, least=8),
        Tile(joined=1, shared=4, least=16, library="centre"),
        Tile(joined=4, library="dense"),
    ],
    ids=str,
)
def test_every_kind_of_tile_gives_the_same(tile: Tile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hetconv_launch, "LEAST_BLOCK", 8)
    monkeypatch.setattr(hetconv_launch, "fastest", lambda run, tiles, kind: run(tile))
    check(HetConv2d(40, 48, (1, 3), padding=(0, 1), p=4, form="triton"), height=2, width=3)
    check(HetConv2d(32, 32, 1, p=4, form="triton"), height=1, width=3)


def test_the_weight_gradient_adds_up_its_splits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hetconv_launch, "_multiprocessors", lambda _: 8)
    monkeypatch.setattr(hetconv_launch, "fastest", lambda run, tiles, kind: run(Tile()))
    check(HetConv2d(8, 8, (1, 3), padding=(0, 1), p=2, form="triton"), height=9, width=8)


class Bounded:
    """Stands for the module of kernels; each address that a launch reads or writes must lie in one of its tensors."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.spans: list[tuple[int, int]] = []
        self.accesses = 0
        self.kernels = hetconv_launch._kernels()
        for name, mask in (("create_masked_load", 0), ("create_masked_store", 1)):
            monkeypatch.setattr(interpreter.InterpreterBuilder, name, self.checked(name, mask))
        monkeypatch.setattr(hetconv_launch, "_kernels", lambda: self)

    def checked(self, name: str, mask: int) -> Callable[..., Any]:
        original = getattr(interpreter.InterpreterBuilder, name)

        def access(builder: object, pointers: Any, *words: Any) -> Any:
            addresses = pointers.data[words[mask].data.astype(bool)]
            within = [(addresses >= first) & (addresses < last) for first, last in self.spans]
            assert np.logical_or.reduce(within).all(), name
            self.accesses += addresses.size
            return original(builder, pointers, *words)

        return access

    def __getattr__(self, kernel: str) -> Any:
        def launch(grid: tuple[int, ...]) -> Callable[..., None]:
            def run(*words: Any, **named: Any) -> None:
                tensors = [word for word in words if isinstance(word, Tensor)]
                self.spans = [(t.data_ptr(), t.data_ptr() + t.numel() * t.element_size()) for t in tensors]
                getattr(self.kernels, kernel)[grid](*words, **named)

            return run

        return type("Grid", (), {"__getitem__": lambda _, grid: launch(grid)})()


def test_no_tile_reads_or_writes_outside_of_its_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each tile that the timing on a GPU may choose, for merged blocks and more rows than positions."""
    channels, p = 64, 16
    bounded = Bounded(monkeypatch)
    tried: set[Tile] = set()

    def every(run: Callable[[Tile], None], tiles: list[Tile], kind: tuple[Any, ...]) -> None:
        layer = Layer(channels, 64, p, (3, 3), (1, 1), (1, 1), (1, 1))
        with monkeypatch.context() as context:
            context.setattr(hetconv_tiles, "interpreted", lambda: False)
            block = layer.block(hetconv_launch.LEAST_BLOCK)
            if kind[0] == "weights":
                chosen = hetconv_tiles.gradient_tiles(layer.block, True, 2)
            else:
                chosen = hetconv_tiles.gemm_tiles(layer.merged_blocks(), *block, 2)
        for tile in {tile._replace(warps=0, stages=0, waves=0): tile for tile in chosen}.values():
            run(tile)
            tried.add(tile)

    monkeypatch.setattr(hetconv_launch, "fastest", every)
    x = torch.randn(1, channels, 2, 3, requires_grad=True)
    HetConv2d(channels, 64, 3, padding=1, p=p, form="triton")(x).sum().backward()
    assert len(tried) > 8
    assert bounded.accesses > 1e5


def test_half_precision_accumulates_in_float32() -> None:
    """In float16, for the interpreter cannot multiply bfloat16."""
    operator = HetConv2d(32, 32, 3, padding=1, p=4, form="triton")
    x = torch.randn(1, 32, 4, 4)
    with torch.autocast("cpu", torch.float16):
        y = operator(x)
    y.float().square().sum().backward()
    assert y.dtype == torch.float16
    torch.testing.assert_close(y.double(), oracle(operator, x.double())[0], rtol=0, atol=4e-3)
    assert {p.grad.dtype for p in operator.parameters()} == {torch.float32}


def test_the_deployed_form_folds_norms_and_rectifies() -> None:
    operator = HetConv2d(16, 32, 3, padding=1, p=2, arrangement="shifted", form="triton")
    scale, shift = torch.rand(32) + 0.5, torch.randn(32)
    x = torch.randn(2, 16, 4, 5)
    expected = operator(x) * scale[:, None, None] + shift[:, None, None]
    assert operator.fold_(scale, shift)
    layer = operator.deployed()
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-5)
    packed = next(m for m in layer.modules() if isinstance(m, hetconv_triton.PackedHetConv))
    packed.relu = True
    torch.testing.assert_close(layer(x), expected.relu(), rtol=0, atol=1e-5)


def test_compiles_without_graph_breaks() -> None:
    torch._dynamo.reset()
    operator = HetConv2d(8, 8, 3, padding=1, p=2, form="triton")
    x = torch.randn(1, 8, 3, 3, requires_grad=True)
    compiled = torch.compile(operator, backend="aot_eager", fullgraph=True)
    outputs = compiled(x), operator(x)
    torch.testing.assert_close(*outputs)
    torch.testing.assert_close(*(torch.autograd.grad(y.square().sum(), [x, *operator.parameters()]) for y in outputs))


def test_torch_finds_its_operators_sound() -> None:
    weights = torch.randn(16, 8, 3, 3, requires_grad=True), torch.randn(16, 8, requires_grad=True)
    words = [1, 1], [1, 1], [1, 1], 2
    x, bias = torch.randn(1, 16, 3, 4, requires_grad=True), torch.randn(16, requires_grad=True)
    tests = "test_schema", "test_autograd_registration", "test_faketensor"
    torch.library.opcheck(torch.ops.convrepro.hetconv.default, (x, *weights, bias, *words), test_utils=tests)


@pytest.mark.parametrize("shape", [(0, 16, 4, 4), (1, 16, 1, 1), (16, 3, 5)])
def test_odd_shapes(shape: tuple[int, ...]) -> None:
    operator = HetConv2d(16, 16, 3, padding=1, p=4, form="triton")
    plain = HetConv2d(16, 16, 3, padding=1, p=4, form="plain")
    plain.load_state_dict(operator.state_dict())
    x = torch.randn(shape, requires_grad=True)
    torch.testing.assert_close(operator(x), plain(x))
    operator(x).sum().backward()
    assert all(p.grad is not None for p in operator.parameters())


def test_only_the_gradients_that_are_asked_for_are_computed() -> None:
    operator = HetConv2d(16, 16, 3, p=4, form="triton")
    operator.weight_kxk.requires_grad_(False)
    operator(torch.randn(1, 16, 4, 4)).sum().backward()
    assert operator.weight_kxk.grad is None
    assert operator.weight_1x1.grad.any()


def test_what_cannot_be_computed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    operator = HetConv2d(16, 16, 3, p=4, form="triton")
    with pytest.raises(ValueError, match=r"form='triton' needs .*got torch.float64 on cpu, p=4; valid here: auto"):
        operator.double()(torch.randn(1, 16, 4, 4).double())
    with pytest.raises(ValueError, match=r"p not above in_channels=8; got .* p=16"):
        HetConv2d(8, 16, 3, p=16, form="triton")(torch.randn(1, 8, 4, 4))
    monkeypatch.delenv("TRITON_INTERPRET")
    with pytest.raises(ValueError, match="needs Triton, a GPU"):
        operator.float()(torch.randn(1, 16, 4, 4))
    assert not isinstance(operator.deployed(), hetconv_triton.PackedHetConv)


def test_macs_are_the_paper_s_where_no_blocks_are_merged() -> None:
    layer = Layer(64, 128, 2, (3, 3), (1, 1), (1, 1), (1, 1))
    rows = hetconv_launch.pack(torch.zeros(128, 32, 3, 3), torch.zeros(128, 32), layer, torch.float32).shape[1]
    assert 128 * rows == HetConv2d(64, 128, 3, p=2).macs(1, 1)
    assert nn.Conv2d(64, 128, 3).weight.numel() == 128 * 64 * 9
