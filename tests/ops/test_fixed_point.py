"""Fixed-point rounding against exact arithmetic, and where the DeepShift layers apply it."""

import math
from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F

from convrepro.ops.fixed_point import FixedPoint
from convrepro.ops.shift import ShiftLinear

pytestmark = pytest.mark.unit

VARIANTS = ("q", "ps", "v1")


class TestFixedPoint:
    def test_q_and_ps_cut_and_saturate_one_below_the_bound(self) -> None:
        form = FixedPoint(3, 5)
        x = torch.tensor([0.0, 1 / 32, 0.0624, -0.001, -1 / 32, 2.999, 3.0, 3.5, 1e9, -3.99, -4.0, -5.0])
        codes = [math.floor(Fraction(v) * 32) for v in x.tolist()]
        expected = [min(max(code / 32, -4.0), 3.0) for code in codes]
        assert form.quantize(x).tolist() == expected

    def test_v1_rounds_half_up_and_saturates_at_the_last_code(self) -> None:
        layer = ShiftLinear(3, 3, variant="v1")
        nearly_half = math.nextafter(0.5, 0) / 256
        x = [v / 256 for v in (0.5, -0.5, 1.5, -1.5, 2.5, 0.49, -0.51)] + [nearly_half, 200.0, -200.0, 127.999]
        x = torch.tensor(x, dtype=torch.float64)
        codes = [math.floor(Fraction(v) * 256 + Fraction(1, 2)) for v in x.tolist()]
        expected = [min(max(code, -(2**15)), 2**15 - 1) / 256 for code in codes]
        assert layer.activation_format.quantize(x).tolist() == expected

    @pytest.mark.parametrize("form", [FixedPoint(16, 16), FixedPoint(8, 8, nearest=True), FixedPoint(2, 0)])
    def test_rounding_twice_is_rounding_once(self, form: FixedPoint) -> None:
        once = form.quantize(300 * torch.randn(1000))
        assert torch.equal(form.quantize(once), once)

    def test_gradient_is_the_identity_also_where_it_saturates(self) -> None:
        x = torch.tensor([0.3, 1e6, -1e6], requires_grad=True)
        FixedPoint(4, 4).quantize(x).backward(torch.tensor([1.0, 2.0, 3.0]))
        assert x.grad.tolist() == [1, 2, 3]

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_precision_is_rounded_in_float32(self, dtype: torch.dtype) -> None:
        x = torch.linspace(-40, 40, 999).to(dtype)
        form = FixedPoint(16, 16)
        assert torch.equal(form.quantize(x), form.quantize(x.float()).to(dtype))
        assert form.quantize(x).isfinite().all()

    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    def test_what_diverged_is_not_hidden(self, value: float) -> None:
        result = FixedPoint(8, 8).quantize(torch.tensor([1.0, value]))
        assert result[0] == 1
        assert not result[1].isfinite()

    @pytest.mark.parametrize("bits", [(1, 8), (8, -1), (20, 13), (3.5, 5)])
    def test_bad_formats(self, bits: tuple[int, int]) -> None:
        with pytest.raises(
            ValueError, match=f"integer_bits={bits[0]}, fraction_bits={bits[1]}.*at least 2.*at most 32"
        ):
            FixedPoint(*bits)

    @pytest.mark.parametrize("variant", VARIANTS)
    def test_layer_rounds_input_and_bias(self, variant: str) -> None:
        layer = ShiftLinear(6, 4, variant=variant, activation=[4, 2], dtype=torch.float64)
        x = torch.randn(5, 6, dtype=torch.float64)
        form = layer.activation_format
        bias = layer.bias if variant == "v1" else form.quantize(layer.bias)
        expected = form.quantize(x) @ layer.quantized_weight().T + bias
        torch.testing.assert_close(layer(x), expected, rtol=1e-14, atol=1e-14)
        assert not torch.equal(form.quantize(x), x)

    @pytest.mark.parametrize("variant", VARIANTS)
    def test_float_activations_are_left_alone(self, variant: str) -> None:
        layer = ShiftLinear(6, 4, variant=variant, activation="float", dtype=torch.float64)
        x = torch.randn(5, 6, dtype=torch.float64)
        expected = F.linear(x, layer.quantized_weight(), layer.bias)
        assert torch.equal(layer(x), expected)
