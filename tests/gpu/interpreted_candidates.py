"""The candidates of stage 5 in Triton's interpreter on the CPU, against their definitions in float64.

`test_candidates.py` runs this file in a process of its own, for Triton reads TRITON_INTERPRET when it is imported.
"""

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from convrepro.ops import ShiftConv2d, ShiftLinear
from convrepro.ops.shift_packing import pack as pack_bytes
from convrepro.ops.shift_packing import unpack

sys.path.append(str(Path(__file__).parent))

from candidate_pointwise import pointwise
from candidate_separable import packed, separable
from candidate_shift import pack, product, product_of_many


def check(got: Tensor, wanted: Tensor, tolerance: float = 2e-6) -> None:
    assert got.shape == wanted.shape
    assert ((got.double() - wanted).abs().max() / wanted.abs().max()).item() < tolerance


@pytest.mark.parametrize("bits", [3, 4, 5, 6])
@pytest.mark.parametrize("variant", ["q", "ps"])
@pytest.mark.parametrize("sizes", [(50, 20), (64, 17), (7, 3)])
def test_packed_shifts(bits: int, variant: str, sizes: tuple[int, int]) -> None:
    layer = ShiftLinear(*sizes, variant=variant, bits=bits)
    x = torch.randn(3, sizes[0])
    wanted = F.linear(x.double(), unpack(pack_bytes(layer)).double(), layer.bias.double())
    words = pack(layer)
    assert words.words.numel() == sizes[1] * -(-sizes[0] // (32 // words.bits))
    check(product(x, words, layer.bias, 8, 16), wanted)
    check(product_of_many(x, words, layer.bias, 16, 16, 16), wanted)


@pytest.mark.parametrize("variant", ["ps", "v1"])
def test_zero_weights_stay_zero(variant: str) -> None:
    layer = ShiftLinear(12, 6, bias=False, variant=variant)
    weight = torch.exp2(torch.randint(-6, 1, (6, 12)).float()) * torch.randint(-1, 2, (6, 12))
    layer.set_weight_(weight)
    assert (layer.quantized_weight() == weight).all()
    x = torch.randn(2, 12)
    check(product(x, pack(layer), None, 4, 16), F.linear(x.double(), weight.double()))


def test_shifts_of_a_convolution_in_half_precision() -> None:
    """In float16, for the interpreter cannot multiply bfloat16."""
    layer = ShiftConv2d(24, 20, 1, variant="q")
    x = torch.randn(1, 24, 5, 3).half().to(memory_format=torch.channels_last)
    wanted = F.conv2d(x.double(), layer.quantized_weight().double(), layer.bias.double())
    got = product_of_many(x.movedim(1, -1).flatten(0, 2), pack(layer), layer.bias, 16, 16, 16)
    check(got.view(1, 5, 3, 20).movedim(-1, 1), wanted, 2e-3)


def test_what_cannot_be_packed_is_refused() -> None:
    with pytest.raises(ValueError, match="1x1 convolution"):
        pack(ShiftConv2d(4, 4, 3))
    with pytest.raises(ValueError, match="one group"):
        pack(ShiftConv2d(4, 4, 1, groups=2))
    layer = ShiftLinear(4, 4, variant="q")
    with torch.no_grad():
        layer.weight[0, 0] = 0
    with pytest.raises(ValueError, match="no code"):
        pack(layer)


@pytest.mark.parametrize(("channels", "filters", "groups", "before", "after"), [
    (24, 24, 3, 3, 3), (16, 32, 4, 1, 8), (40, 20, 5, 4, 1), (64, 64, 1, 2, 2), (12, 18, 6, 2, 3),
])  # fmt: skip
def test_pointwise_through_shuffles(channels: int, filters: int, groups: int, before: int, after: int) -> None:
    """The definition: channel i of a shuffle into g groups goes to place (i mod C/g) g + i div C/g."""
    x = torch.randn(2, channels, 3, 5).to(memory_format=torch.channels_last)
    weight, bias = torch.randn(filters, channels // groups, 1, 1), torch.randn(filters)

    def shuffle(size: int, into: int) -> list[int]:
        order = [0] * size
        for i in range(size):
            order[i % (size // into) * into + i // (size // into)] = i
        return order

    wanted = F.conv2d(x.double()[:, shuffle(channels, before)], weight.double(), groups=groups)
    wanted = wanted[:, shuffle(filters, after)] + bias.double()[:, None, None]
    got = pointwise(x, weight, groups, bias, before, after, 16, 16, 16)
    assert got.is_contiguous(memory_format=torch.channels_last)
    check(got, wanted)


@pytest.mark.parametrize(("kernel", "stride", "relu"), [(3, 1, True), (3, 2, False), (5, 1, True)])
def test_separable_in_one_kernel(kernel: int, stride: int, relu: bool) -> None:
    x = torch.randn(2, 20, 6, 7).to(memory_format=torch.channels_last)
    first, second = torch.randn(20, 1, kernel, kernel), torch.randn(24, 20, 1, 1)
    biases = (torch.randn(20), torch.randn(24)) if relu else (None, None)
    exact = [b if b is None else b.double() for b in biases]
    words = {"stride": stride, "padding": kernel // 2, "groups": 20}
    middle = F.conv2d(x.double(), first.double(), exact[0], **words)
    wanted = F.conv2d(middle.relu() if relu else middle, second.double(), exact[1])
    got = separable(x, *packed(first, second), biases, stride, kernel // 2, relu, 16, 16, 16)
    assert got.is_contiguous(memory_format=torch.channels_last)
    check(got, wanted.relu() if relu else wanted)


def test_the_stage_is_rehearsed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import argparse
    import time

    import candidates
    from records import Records

    words = argparse.Namespace(device="cpu", seconds=600, out=tmp_path, only="", begun=time.time())
    records = Records("candidates", words)
    candidates.all_cases(records)
    assert len(records.cases) == 4
    assert {name: case for name, case in records.cases.items() if "error" in case or case["failed"]} == {}


def test_a_candidate_of_which_no_tile_runs_says_why() -> None:
    from candidates import compare

    def candidate(*tile: int) -> Tensor:
        raise RuntimeError(f"tile {tile} is too large")

    found = compare({"library": lambda: torch.ones(2)}, candidate, [(64, 32)], "cpu")
    assert found["error"] == "no tile runs: RuntimeError: tile (64, 32) is too large"
