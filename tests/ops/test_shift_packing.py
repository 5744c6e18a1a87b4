"""Packed weights of DeepShift layers: size, layout and exact round trip."""

import math

import pytest
import timm
import torch
from torch import nn

from convrepro.ops.shift import ShiftConv2d, ShiftLinear
from convrepro.ops.shift_packing import HEADER, pack, unpack

pytestmark = pytest.mark.unit

FORMS = [*(("q", b) for b in range(2, 7)), *(("ps", b) for b in range(2, 7)), ("v1", None)]


@pytest.mark.parametrize(("variant", "bits"), FORMS)
def test_round_trip_is_exact_and_has_the_stated_size(variant: str, bits: int | None) -> None:
    layer = ShiftConv2d(5, 7, 3, variant=variant, bits=bits)
    with torch.no_grad():
        for latent in layer.latents:
            latent.copy_(4 * torch.randn_like(latent))
    data = pack(layer)
    weight = layer.quantized_weight()
    assert torch.equal(unpack(data), weight)
    assert len(data) == HEADER.size + 4 * 4 + math.ceil(layer.weight_bits() / 8)
    again = ShiftConv2d(5, 7, 3, variant=variant, bits=bits)
    again.set_weight_(unpack(data))
    assert torch.equal(again.quantized_weight(), weight)
    assert pack(again) == data
    if variant != "q":
        assert variant == "v1" or (weight == 0).any()


def test_layout() -> None:
    """Sign in bit 2 above -p in bits 0 and 1: 0b000, 0b101, 0b010, 0b111, read from the lowest bit on."""
    layer = ShiftLinear(2, 2, bits=3)
    layer.set_weight_(torch.tensor([[1.0, -0.5], [0.25, -0.125]]))
    stream = [*(0, 0, 0), *(1, 0, 1), *(0, 1, 0), *(1, 1, 1)]
    octets = [sum(bit << i for i, bit in enumerate(stream[start : start + 8])) for start in (0, 8)]
    header = b"2^p1" + bytes([3, 0, 2, 0]) + bytes(2) + bytes(2) + bytes(4) + bytes([2, 0, 0, 0, 2, 0, 0, 0])
    assert pack(layer) == header + bytes(octets)


def test_zero_is_a_code_of_ps() -> None:
    layer = ShiftLinear(4, 1, variant="ps", bits=2)
    layer.set_weight_(torch.tensor([[1.0, 0.0, -1.0, 0.0]]))
    data = pack(layer)
    assert len(data) == HEADER.size + 2 * 4 + 1
    assert data[-1] == 0b01_10_01_00
    assert unpack(data).tolist() == [[1, 0, -1, 0]]


def test_zeros_of_q_are_listed() -> None:
    layer = ShiftLinear(8, 3, bits=2)
    layer.set_weight_(torch.ones(3, 8))
    size = len(pack(layer))
    with torch.no_grad():
        layer.weight[0, 3] = layer.weight[2, 7] = 0
    data = pack(layer)
    assert torch.equal(unpack(data), layer.quantized_weight())
    assert len(data) == size + 2 * 4


@pytest.mark.parametrize("weights", [[4.0, 0.0, -0.25], [0.0, 0.0, 0.0], [2.0, 2.0, -2.0]])
def test_v1_stores_the_range_in_use(weights: list[float]) -> None:
    layer = ShiftLinear(3, 1, variant="v1")
    layer.set_weight_(torch.tensor([weights]))
    data = pack(layer)
    assert unpack(data).tolist() == [weights]
    assert len(data) == HEADER.size + 2 * 4 + math.ceil(layer.weight_bits() / 8)


def test_what_is_no_packed_weight_is_refused() -> None:
    data = pack(ShiftLinear(8, 3))
    with pytest.raises(ValueError, match="is no packed shift weight"):
        unpack(b"PK" + data)
    for broken in (data[:-1], data + b"0", data[: HEADER.size + 2]):
        with pytest.raises(ValueError, match=f"{len(broken)} bytes is cut short or has extra bytes"):
            unpack(broken)


def test_a_diverged_weight_is_refused() -> None:
    layer = ShiftLinear(4, 3, variant="ps")
    with torch.no_grad():
        layer.shift[1, 2] = torch.inf
    with pytest.raises(ValueError, match="NaN or infinite"):
        pack(layer)


def test_resnet18_shrinks_by_a_factor_of_more_than_six() -> None:
    """All convolutions and the classifier at 5 bits, the rest (biases, batch norm with its statistics) in float32."""
    model = timm.create_model("resnet18")
    state = [t for t in model.state_dict().values() if t.is_floating_point()]
    layers = [
        ShiftConv2d.from_conv(m) if isinstance(m, nn.Conv2d) else ShiftLinear.from_linear(m)
        for m in model.modules()
        if isinstance(m, nn.Conv2d | nn.Linear)
    ]
    assert len(layers) == 21
    weights = sum(layer.weight.numel() for layer in layers)
    assert sum(layer.weight_bits() for layer in layers) == 5 * weights
    total = sum(t.numel() for t in state)
    packed = sum(len(pack(layer)) for layer in layers) + 4 * (total - weights)
    assert 4 * total == pytest.approx(46.80e6, rel=1e-3)
    assert packed == pytest.approx(7.38e6, rel=1e-3)
    assert 4 * total / packed == pytest.approx(6.34, rel=1e-3)
