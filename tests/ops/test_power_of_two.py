"""Weights that are powers of two: codes, thresholds and conversion against their definitions."""

import math
from fractions import Fraction

import pytest
import torch
from torch import nn

from convrepro.ops.power_of_two import nearest_power
from convrepro.ops.shift import ShiftConv2d, ShiftLinear

pytestmark = pytest.mark.unit

VARIANTS = ("q", "ps", "v1")


def shift_by_definition(x: float) -> int:
    """round(log2|x|) in exact arithmetic: the p with 2^(p - 1/2) < |x| < 2^(p + 1/2)."""
    square = Fraction(x) ** 2
    p = math.frexp(x)[1]
    return p if square > Fraction(2) ** (2 * p - 1) else p - 1


def latent_conv(variant: str, dtype: torch.dtype = torch.float64, **words: object) -> ShiftConv2d:
    """A layer whose latents lie inside and outside of all limits, and on both sides of all thresholds."""
    layer = ShiftConv2d(4, 6, 3, padding=1, variant=variant, dtype=dtype, **words)
    with torch.no_grad():
        for latent, spread in zip(layer.latents, {"q": (1,), "ps": (9, 1), "v1": (3, 2)}[variant], strict=True):
            latent.copy_(spread * torch.randn_like(latent))
    return layer


class TestNearestPower:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_threshold_is_the_geometric_mean_exactly(self, dtype: torch.dtype) -> None:
        means = torch.exp2(torch.arange(-40, 40, dtype=torch.float64) + 0.5).to(dtype)
        above, below = (torch.nextafter(means, torch.tensor(limit, dtype=dtype)) for limit in (math.inf, 0.0))
        x = torch.cat((below, means, above, -above, torch.exp2(torch.arange(-40, 40)).to(dtype)))
        expected = [2.0 ** shift_by_definition(v) for v in x.tolist()]
        assert nearest_power(x).tolist() == expected

    def test_the_form_for_tracing_is_equal(self) -> None:
        means = torch.exp2(torch.arange(-40, 40, dtype=torch.float64) + 0.5).float()
        x = torch.cat([means] + [torch.nextafter(means, torch.tensor(limit)) for limit in (math.inf, 0.0)])
        traced = torch.jit.trace(nearest_power, torch.ones(3))
        assert torch.equal(traced(x), nearest_power(x))
        assert torch.equal(traced(torch.zeros(1)), nearest_power(torch.zeros(1)))


class TestWeights:
    @pytest.mark.parametrize("bits", range(2, 7))
    def test_q_takes_each_of_its_codes_and_no_other(self, bits: int) -> None:
        layer = ShiftLinear(400, 2, variant="q", bits=bits)
        sweep = torch.exp2(torch.linspace(-40, 3, 400))
        layer.set_weight_(torch.stack((sweep, -sweep)))
        lowest = -(2 ** (bits - 1) - 1)
        assert set(layer.quantized_weight().flatten().tolist()) == {
            sign * 2.0**p for p in range(lowest, 1) for sign in (1, -1)
        }
        clamped = sweep.clamp(2.0**lowest, 1)
        expected = [2.0 ** shift_by_definition(v) for v in clamped.tolist()]
        assert layer.quantized_weight()[0].tolist() == expected

    @pytest.mark.parametrize("bits", range(2, 7))
    def test_ps_takes_each_of_its_codes_and_no_other(self, bits: int) -> None:
        layer = ShiftLinear(400, 3, variant="ps", bits=bits)
        with torch.no_grad():
            layer.shift.copy_(torch.linspace(-40, 3, 400).expand(3, -1))
            layer.sign.copy_(torch.tensor([[0.7], [-3.0], [0.2]]).expand(-1, 400))
        powers = {2.0**p for p in range(-(2 ** (bits - 1) - 2), 1)}
        codes = set(layer.quantized_weight().flatten().tolist())
        assert codes == powers | {-p for p in powers} | {0.0}
        assert len(codes) == 2**bits - 1

    def test_ps_sign_thresholds(self) -> None:
        layer = ShiftLinear(7, 1, variant="ps", dtype=torch.float64)
        just = math.nextafter(0.5, 0)
        with torch.no_grad():
            layer.sign.copy_(torch.tensor([[-2.0, -0.5, -just, 0.0, just, 0.5, 9.0]], dtype=torch.float64))
            layer.shift.zero_()
        assert layer.quantized_weight().tolist() == [[-1, -1, 0, 0, 0, 1, 1]]

    def test_v1_is_the_printed_formula_for_any_latent(self) -> None:
        layer = latent_conv("v1")
        expected = [
            (-1) ** (round(n) % 2) * 2.0 ** round(s)
            for s, n in zip(layer.shift.flatten().tolist(), layer.negation.flatten().tolist(), strict=True)
        ]
        assert layer.quantized_weight().flatten().tolist() == expected
        assert layer.quantized_weight().abs().max() > 1

    def test_v1_in_its_own_interval_is_a_sign(self) -> None:
        layer = ShiftConv2d(8, 8, 3, variant="v1")
        assert torch.equal(layer.quantized_weight().sign(), torch.where(layer.negation < -0.5, -1.0, 1.0))

    @pytest.mark.parametrize("variant", VARIANTS)
    def test_zero_stays_zero(self, variant: str) -> None:
        conv = nn.Conv2d(3, 4, 3)
        with torch.no_grad():
            conv.weight[:, 1] = 0
        weight = ShiftConv2d.from_conv(conv, variant=variant).quantized_weight()
        assert torch.equal(weight == 0, conv.weight == 0)

    @pytest.mark.parametrize("variant", VARIANTS)
    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    def test_what_diverged_is_not_hidden(self, variant: str, value: float) -> None:
        conv = nn.Conv2d(3, 4, 1, bias=False)
        with torch.no_grad():
            conv.weight[2, 1] = value
        converted = ShiftConv2d.from_conv(conv, variant=variant)
        for layer in (converted, ShiftConv2d(3, 4, 1, variant=variant)):
            for latent in layer.latents:
                with torch.no_grad():
                    latent[2, 1] = value
                layer.after_optimizer_step()
                bad = ~layer.quantized_weight().isfinite()
                assert bad.nonzero().tolist() == [[2, 1, 0, 0]]

    @pytest.mark.parametrize("variant", VARIANTS)
    def test_conversion_rounds_log2(self, variant: str) -> None:
        conv = nn.Conv2d(5, 6, 3, groups=1).double()
        with torch.no_grad():
            conv.weight.mul_(40)
        layer = ShiftConv2d.from_conv(conv, variant=variant)
        lowest, highest = {"q": (-15, 0), "ps": (-14, 0), "v1": (-math.inf, math.inf)}[variant]
        expected = [
            math.copysign(2.0 ** min(max(shift_by_definition(w), lowest), highest), w)
            for w in conv.weight.flatten().tolist()
        ]
        assert layer.quantized_weight().flatten().tolist() == expected
        assert torch.equal(layer.bias, conv.bias)
        assert layer.quantized_weight().dtype == torch.float64
        assert (conv.weight.abs() > 1.5).any()

    def test_the_latent_of_q_is_the_float_weight(self) -> None:
        conv, linear = nn.Conv2d(3, 4, 3), nn.Linear(5, 6)
        assert torch.equal(ShiftConv2d.from_conv(conv).weight, conv.weight)
        layer = ShiftLinear(5, 6)
        layer.load_state_dict(linear.state_dict())
        assert torch.equal(layer.quantized_weight(), ShiftLinear.from_linear(linear).quantized_weight())

    @pytest.mark.parametrize("variant", VARIANTS)
    def test_conversion_of_a_quantized_weight_changes_nothing(self, variant: str) -> None:
        layer = latent_conv(variant, torch.float32)
        again = ShiftConv2d(4, 6, 3, variant=variant)
        again.set_weight_(layer.quantized_weight())
        assert torch.equal(again.quantized_weight(), layer.quantized_weight())
