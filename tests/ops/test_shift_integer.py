"""DeepShift layers on integers, against exact fractions and against the float layers."""

from fractions import Fraction

import pytest
import torch
from torch import nn

from convrepro.ops.shift import ShiftConv2d, ShiftLinear
from convrepro.ops.shift_integer import integer_forward

pytestmark = pytest.mark.unit

VARIANTS = ("q", "ps", "v1")
SHAPES = [
    {"kernel_size": 1, "bias": False},
    {"kernel_size": 3, "padding": 1, "stride": 2},
    {"kernel_size": (3, 2), "padding": (0, 2), "dilation": (2, 1), "groups": 2},
    {"kernel_size": 3, "padding": "same", "groups": 4, "padding_mode": "circular"},
    {"kernel_size": 3, "padding": (2, 1), "padding_mode": "reflect"},
    {"kernel_size": 5, "padding": 2, "padding_mode": "replicate", "stride": (1, 2)},
]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("truncate", [False, True])
def test_linear_is_the_sum_in_exact_arithmetic(variant: str, truncate: bool) -> None:
    layer = ShiftLinear(5, 3, variant=variant, activation=[6, 3]).eval()
    x = 20 * torch.randn(4, 5)
    codes = (layer.activation_format.quantize(x) * 8).int().tolist()
    bias = layer.bias if variant == "v1" else layer.activation_format.quantize(layer.bias)
    expected = [
        [
            sum(
                (product // 1 if truncate else product) / 8
                for code, w in zip(row, weights, strict=True)
                for product in [Fraction(code) * Fraction(w)]
            )
            + Fraction(b)
            for weights, b in zip(layer.quantized_weight().tolist(), bias.tolist(), strict=True)
        ]
        for row in codes
    ]
    result = integer_forward(layer, x, truncate=truncate)
    assert [[Fraction(v) for v in row] for row in result.tolist()] == expected


@pytest.mark.parametrize("words", SHAPES)
@pytest.mark.parametrize("knobs", [{"variant": "q"}, {"variant": "ps", "bits": 3}, {"variant": "v1"}])
def test_conv_equals_the_float64_layer_bit_for_bit(words: dict[str, object], knobs: dict[str, object]) -> None:
    layer = ShiftConv2d(4, 8, **words, **knobs).eval()
    x = 3 * torch.randn(2, 4, 9, 8)
    result = integer_forward(layer, x)
    assert torch.equal(result, layer.double()(x.double()))
    assert result.abs().max() > 0


@pytest.mark.parametrize("bits", range(2, 7))
def test_linear_equals_the_float64_layer_bit_for_bit(bits: int) -> None:
    layer = ShiftLinear(7, 5, bits=bits).eval()
    x = torch.randn(2, 3, 7)
    result = integer_forward(layer, x)
    assert result.shape == (2, 3, 5)
    assert torch.equal(result, layer.double()(x.double()))


def test_conv_equals_the_float32_layer_where_sums_fit_24_bits() -> None:
    """8 bits of input, 7 of shift, 36 terms: at most 8 + 7 + 6 bits."""
    layer = ShiftConv2d(4, 8, 3, padding=1, bits=4, activation=[3, 5]).eval()
    x = torch.randn(2, 4, 9, 8)
    assert torch.equal(integer_forward(layer, x), layer(x).double())


def test_left_shifts_of_v1() -> None:
    linear = nn.Linear(4, 3)
    with torch.no_grad():
        linear.weight.mul_(50)
    layer = ShiftLinear.from_linear(linear, variant="v1").eval()
    assert layer.quantized_weight().abs().max() >= 8
    x = torch.randn(5, 4)
    assert torch.equal(integer_forward(layer, x), layer.double()(x.double()))


@pytest.mark.parametrize("variant", VARIANTS)
def test_zero_weights_add_nothing(variant: str) -> None:
    conv = nn.Conv2d(4, 3, 3, bias=False)
    with torch.no_grad():
        conv.weight[:, :2] = 0
    layer = ShiftConv2d.from_conv(conv, variant=variant).eval()
    x = torch.randn(1, 4, 5, 5)
    other = x.clone()
    other[:, :2] = 9
    for truncate in (False, True):
        assert torch.equal(
            integer_forward(layer, x, truncate=truncate), integer_forward(layer, other, truncate=truncate)
        )


def test_truncation_loses_less_than_one_unit_a_term_and_half_a_unit_on_average() -> None:
    layer = ShiftConv2d(16, 8, 3, activation=[4, 8]).eval()
    x = torch.randn(4, 16, 12, 12)
    loss = (integer_forward(layer, x) - integer_forward(layer, x, truncate=True)) * 2**8
    terms = 16 * 9
    assert loss.min() >= 0
    assert loss.max() < terms
    assert 0.4 * terms < loss.mean() < 0.5 * terms


def test_truncation_of_whole_products_loses_nothing() -> None:
    layer = ShiftConv2d(4, 3, 3, bits=3).eval()
    x = torch.randn(1, 4, 5, 5).mul(2**8).round().div(2**8)
    assert torch.equal(integer_forward(layer, x), integer_forward(layer, x, truncate=True))


def test_uses_the_deterministic_weight() -> None:
    layer = ShiftLinear(30, 30, rounding="stochastic").train()
    x = torch.randn(2, 30)
    assert torch.equal(integer_forward(layer, x), layer.double().eval()(x.double()))


def test_needs_fixed_point_input() -> None:
    layer = ShiftLinear(4, 3, activation="float")
    with pytest.raises(ValueError, match=r"activation='float'.*integer_bits"):
        integer_forward(layer, torch.randn(2, 4))


def test_sums_that_do_not_fit_are_refused() -> None:
    layer = ShiftLinear(4, 3, bits=6)
    layer.set_weight_(torch.tensor([1.0, 1.0, 1.0, 2.0**-31]).expand(3, -1))
    x = torch.full((1, 4), 30000.0)
    with pytest.raises(ValueError, match=r"31 bits, do not fit 63 bits.*truncate=True"):
        integer_forward(layer, x)
    assert integer_forward(layer, x, truncate=True).isfinite().all()


def test_a_diverged_weight_is_refused() -> None:
    layer = ShiftLinear(4, 3)
    with torch.no_grad():
        layer.weight[1, 2] = torch.nan
    with pytest.raises(ValueError, match="NaN or infinite"):
        integer_forward(layer, torch.randn(1, 4))
