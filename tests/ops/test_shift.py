"""DeepShift layers: gradients, stored latents, knobs and cost against their definitions."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convrepro.ops.shift import ShiftConv2d, ShiftLinear

pytestmark = pytest.mark.unit

VARIANTS = ("q", "ps", "v1")
LN2 = math.log(2)


def latent_conv(variant: str, dtype: torch.dtype = torch.float64, **words: object) -> ShiftConv2d:
    """A layer whose latents lie inside and outside of all limits, and on both sides of all thresholds."""
    layer = ShiftConv2d(4, 6, 3, padding=1, variant=variant, dtype=dtype, **words)
    with torch.no_grad():
        for latent, spread in zip(layer.latents, {"q": (1,), "ps": (9, 1), "v1": (3, 2)}[variant], strict=True):
            latent.copy_(spread * torch.randn_like(latent))
    return layer


class TestGradients:
    """The formulae of the three variants, with the gradient of the weight written out by hand."""

    @staticmethod
    def weight_gradient(x: Tensor, gy: Tensor) -> Tensor:
        """sum over images and positions of output gradient times the input under the kernel, 3x3, padding 1."""
        padded, grad = F.pad(x, (1, 1, 1, 1)), torch.zeros(gy.shape[1], x.shape[1], 3, 3, dtype=x.dtype)
        for i in range(3):
            for j in range(3):
                window = padded[:, :, i : i + gy.shape[2], j : j + gy.shape[3]]
                grad[:, :, i, j] = torch.einsum("bnhw,bmhw->nm", gy, window)
        return grad

    @pytest.mark.parametrize("variant", VARIANTS)
    def test_conv(self, variant: str) -> None:
        layer = latent_conv(variant)
        x = torch.randn(2, 4, 5, 5, dtype=torch.float64, requires_grad=True)
        gy = torch.randn(2, 6, 5, 5, dtype=torch.float64)
        layer(x).backward(gy)
        g = self.weight_gradient(layer.activation_format.quantize(x).detach(), gy)
        v = layer.quantized_weight().detach()
        expected = {
            "q": {"weight": g},
            "ps": {"shift": g * v * LN2, "sign": g},
            "v1": {"shift": g * v * LN2, "negation": g},
        }[variant]
        expected["bias"] = gy.sum(dim=(0, 2, 3))
        assert {name for name, _ in layer.named_parameters()} == set(expected)
        for name, value in expected.items():
            torch.testing.assert_close(getattr(layer, name).grad, value, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(x.grad, F.conv_transpose2d(gy, v, padding=1), rtol=1e-12, atol=1e-12)

    @pytest.mark.parametrize("variant", VARIANTS)
    def test_linear(self, variant: str) -> None:
        layer = ShiftLinear(7, 5, variant=variant, dtype=torch.float64)
        x = (1e6 * torch.randn(3, 7, dtype=torch.float64)).requires_grad_()
        gy = torch.randn(3, 5, dtype=torch.float64)
        layer(x).backward(gy)
        assert (layer.activation_format.quantize(x) != x).any()
        g = gy.T @ layer.activation_format.quantize(x).detach()
        v = layer.quantized_weight().detach()
        shift_gradient = g * v * LN2
        for latent, value in zip(layer.latents, (g,) if variant == "q" else (shift_gradient, g), strict=True):
            torch.testing.assert_close(latent.grad, value, rtol=1e-12, atol=0)
        torch.testing.assert_close(x.grad, gy @ v, rtol=1e-12, atol=0)
        torch.testing.assert_close(layer.bias.grad, gy.sum(dim=0), rtol=1e-12, atol=0)

    @pytest.mark.parametrize("variant", VARIANTS)
    def test_training_does_not_disturb_the_powers(self, variant: str) -> None:
        """w + (wq - w) would differ from wq by rounding; the value in training must be the one in evaluation."""
        layer = latent_conv(variant, torch.float32)
        with torch.no_grad():
            evaluated = layer.quantized_weight()
        trained = layer.quantized_weight()
        assert trained.requires_grad
        assert torch.equal(trained, evaluated)
        mantissa = torch.frexp(trained.detach()).mantissa.abs()
        assert set(mantissa.unique().tolist()) <= {0.0, 0.5}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(
    "words",
    [
        {"kernel_size": 1, "bias": False},
        {"kernel_size": 3, "padding": 1, "stride": 2},
        {"kernel_size": (3, 2), "padding": (0, 2), "dilation": (2, 1), "groups": 2},
        {"kernel_size": 3, "padding": "same", "groups": 4, "padding_mode": "circular"},
        {"kernel_size": 3, "padding": (2, 1), "padding_mode": "reflect"},
        {"kernel_size": 5, "padding": 2, "padding_mode": "replicate", "stride": (1, 2)},
    ],
)
def test_is_the_convolution_with_the_quantized_weight(variant: str, words: dict[str, object]) -> None:
    layer = ShiftConv2d(4, 8, variant=variant, dtype=torch.float64, **words)
    conv = nn.Conv2d(4, 8, dtype=torch.float64, **words)
    form = layer.activation_format
    with torch.no_grad():
        conv.weight.copy_(layer.quantized_weight())
        if conv.bias is not None:
            conv.bias.copy_(layer.bias if variant == "v1" else form.quantize(layer.bias))
    x = torch.randn(2, 4, 9, 8, dtype=torch.float64)
    torch.testing.assert_close(layer(x), conv(form.quantize(x)), rtol=1e-13, atol=1e-13)


class TestStoredLatents:
    @pytest.mark.parametrize("variant", VARIANTS)
    def test_forward_and_backward_change_no_state(self, variant: str) -> None:
        layer = latent_conv(variant, torch.float32)
        before = copy.deepcopy(layer.state_dict())
        layer(torch.randn(2, 4, 5, 5)).sum().backward()
        assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())

    @pytest.mark.parametrize("variant", ["q", "ps"])
    def test_clamping_after_each_step_is_the_public_trajectory(self, variant: str) -> None:
        """The public code clamps the stored latents first thing in each forward pass, then rounds, steps, and so on."""
        layer = ShiftLinear(6, 5, variant=variant, bits=3, dtype=torch.float64)
        lowest = {"q": -3, "ps": -2}[variant]
        latents = [latent.detach().clone() for latent in layer.latents]
        batches = [torch.randn(4, 6, dtype=torch.float64) for _ in range(30)]
        optimizer = torch.optim.SGD([*layer.latents], lr=0.3)
        layer.after_optimizer_step()
        for x in batches:
            optimizer.zero_grad()
            layer(x).square().sum().backward()
            optimizer.step()
            layer.after_optimizer_step()
        outside = False
        for x in batches:
            if variant == "q":
                w = latents[0]
                latents[0] = w = w.sign() * w.abs().clamp(2.0**lowest, 1)
                v = w.sign() * w.abs().log2().round().exp2()
            else:
                latents[0] = latents[0].clamp(lowest, 0)
                v = latents[1].round().sign() * latents[0].round().exp2()
            x = (x * 2**16).floor() / 2**16
            y = x @ v.T + layer.activation_format.quantize(layer.bias.detach())
            g = (2 * y).T @ x
            gradients = [g] if variant == "q" else [g * v * LN2, g]
            latents = [latent - 0.3 * gradient for latent, gradient in zip(latents, gradients, strict=True)]
            outside |= bool((latents[0].abs() > 1).any() if variant == "q" else (latents[0] < lowest).any())
        assert outside
        latents[0] = latents[0].clamp(lowest, 0) if variant == "ps" else latents[0]
        if variant == "q":
            latents[0] = latents[0].sign() * latents[0].abs().clamp(2.0**lowest, 1)
        for ours, public in zip(layer.latents, latents, strict=True):
            torch.testing.assert_close(ours.detach(), public, rtol=1e-9, atol=1e-9)

    @pytest.mark.parametrize("variant", ["q", "ps"])
    def test_clamping_keeps_the_weight(self, variant: str) -> None:
        layer = latent_conv(variant, torch.float32)
        weight, latents = layer.quantized_weight(), copy.deepcopy(layer.latents)
        layer.after_optimizer_step()
        assert torch.equal(layer.quantized_weight(), weight)
        assert not torch.equal(layer.latents[0], latents[0])

    def test_clamping_keeps_a_converted_weight_of_v1(self) -> None:
        layer = ShiftConv2d.from_conv(nn.Conv2d(4, 6, 3), variant="v1")
        weight = layer.quantized_weight()
        layer.after_optimizer_step()
        assert torch.equal(layer.quantized_weight(), weight)

    def test_v1_is_kept_where_its_gradient_points_the_right_way(self) -> None:
        layer = latent_conv("v1")
        shift = layer.shift.detach().clone()
        layer.after_optimizer_step()
        assert (layer.negation.min(), layer.negation.max()) == (-1, 0)
        assert torch.equal(layer.shift, shift)

    @pytest.mark.parametrize("variant", VARIANTS)
    def test_can_be_switched_off(self, variant: str) -> None:
        layer = latent_conv(variant, clamp_latent=False)
        before = copy.deepcopy(layer.state_dict())
        layer.after_optimizer_step()
        assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())

    def test_frozen_v1_trains_the_bias_only(self) -> None:
        layer = ShiftConv2d(3, 4, 3, variant="v1", frozen=True)
        assert [name for name, _ in layer.named_parameters()] == ["bias"]
        assert set(layer.state_dict()) == {"shift", "negation", "bias"}
        before = copy.deepcopy(layer.state_dict())
        layer.requires_grad_(True)
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
        for _ in range(3):
            layer(torch.randn(2, 3, 5, 5)).square().sum().backward()
            optimizer.step()
            layer.after_optimizer_step()
        changed = {name for name, value in layer.state_dict().items() if not torch.equal(value, before[name])}
        assert changed == {"bias"}


class TestStochasticRounding:
    def test_rounds_up_with_the_probability_of_the_fraction(self) -> None:
        layer = ShiftLinear(20000, 1, variant="q", rounding="stochastic", bias=False, activation="float")
        layer.set_weight_(torch.full((1, 20000), -(2.0**-3.7)))
        mean = layer(torch.ones(1, 20000)) / 20000
        assert set(layer.quantizer.weight(*layer.latents, stochastic=True).unique().tolist()) == {
            -(2.0**-3),
            -(2.0**-4),
        }
        assert -mean.item() == pytest.approx(0.3 * 2.0**-3 + 0.7 * 2.0**-4, rel=0.02)

    def test_sign_of_ps_is_right_on_average(self) -> None:
        layer = ShiftLinear(20000, 3, variant="ps", rounding="stochastic", activation="float", bias=False)
        with torch.no_grad():
            layer.shift.zero_()
            layer.sign.copy_(torch.tensor([[-0.3], [0.6], [1.5]]).expand_as(layer.sign))
        means = layer(torch.ones(1, 20000)) / 20000
        assert means.tolist() == [pytest.approx([-0.3, 0.6, 1.0], abs=0.02)]

    @pytest.mark.parametrize("variant", VARIANTS)
    def test_only_in_training(self, variant: str) -> None:
        layer = latent_conv(variant, rounding="stochastic")
        x = torch.randn(1, 4, 5, 5, dtype=torch.float64)
        assert not torch.equal(layer(x), layer(x))
        layer.eval()
        plain = latent_conv(variant)
        plain.load_state_dict(layer.state_dict())
        assert torch.equal(layer(x), plain(x))


class TestFreshWeights:
    @pytest.mark.parametrize("init", ["torch", "fan_in", "fan_out"])
    def test_ps_is_drawn_as_q_and_converted(self, init: str) -> None:
        layers = [ShiftConv2d(8, 8, 3, groups=2, variant=variant) for variant in ("q", "ps")]
        for layer in layers:
            torch.manual_seed(1)
            layer.reset_parameters(init)
        q, ps = (layer.quantized_weight() for layer in layers)
        assert torch.equal(q.clamp(min=2.0**-14, max=1).sign(), ps.abs().sign())
        assert torch.equal(q.sign(), ps.sign())
        assert torch.equal(q.abs().clamp(min=2.0**-14), ps.abs())

    def test_q_has_the_spread_of_the_scheme(self) -> None:
        layer = ShiftConv2d(64, 64, 3, groups=2)
        assert layer.weight.abs().max().item() == pytest.approx((32 * 9) ** -0.5, rel=1e-3)
        layer.reset_parameters("fan_in")
        assert layer.weight.std().item() == pytest.approx(math.sqrt(2 / (32 * 9)), rel=0.02)
        assert layer.bias.abs().max() == 0

    @pytest.mark.parametrize("init", ["torch", "fan_in"])
    def test_v1_has_a_rule_of_its_own(self, init: str) -> None:
        linear = ShiftLinear(400, 400, variant="v1")
        linear.reset_parameters(init)
        conv = ShiftConv2d(4, 4000, 3, variant="v1")
        for value, low, high in (
            (linear.shift, -10, -1),
            (linear.negation, -1, 0),
            (linear.bias, -0.1, 0.1),
            (conv.bias, -1 / 6, 1 / 6),
        ):
            assert low <= value.min() < low + 0.02 * (high - low)
            assert high >= value.max() > high - 0.02 * (high - low)

    def test_unknown_scheme(self) -> None:
        with pytest.raises(ValueError, match=r"init='xavier'.*torch, fan_in, fan_out"):
            ShiftConv2d(3, 4, 3).reset_parameters("xavier")


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"variant": "PS"}, "variant='PS'.*valid: q, ps, v1"),
        ({"bits": 5.0}, "bits=5.0 of variant='q'"),
        ({"bits": 7}, "bits=7 of variant='q'.*'paper', 2, 3, 4, 5, 6"),
        ({"variant": "ps", "bits": None}, "bits=None of variant='ps'.*'paper', 2"),
        ({"variant": "v1", "bits": 5}, "bits=5.*no limits.*'paper', None"),
        ({"activation": "int8"}, "activation='int8'.*'paper', 'float', .integer_bits"),
        ({"activation": None}, "activation=None.*'paper'"),
        ({"activation": [8]}, r"activation=\[8\].*integer_bits"),
        ({"activation": [0, 8]}, "integer_bits=0, fraction_bits=8.*at least 2"),
        ({"rounding": "determinstic"}, "rounding='determinstic'.*deterministic, stochastic"),
        ({"frozen": True}, "frozen=True.*variant='v1', not of variant='q'.*valid: False"),
    ],
)
def test_bad_knobs(knobs: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ShiftConv2d(3, 4, 3, **knobs)
    with pytest.raises(ValueError, match=message):
        ShiftLinear(3, 4, **knobs)


def test_paper_formats() -> None:
    formats = {
        variant: (layer.bits, layer.activation) for variant in VARIANTS if (layer := ShiftLinear(2, 2, variant=variant))
    }
    assert formats == {"q": (5, (16, 16)), "ps": (5, (16, 16)), "v1": (None, (8, 8))}


class TestCost:
    @pytest.mark.parametrize("variant", VARIANTS)
    def test_all_products_are_shifts(self, variant: str) -> None:
        conv = ShiftConv2d(6, 8, (3, 2), groups=2, variant=variant)
        assert conv.macs(5, 7) == conv.shifts(5, 7) == 5 * 7 * 8 * 3 * 6
        linear = ShiftLinear(6, 8, variant=variant)
        assert linear.macs(1, 4) == linear.shifts(1, 4) == 4 * 48
        assert conv.multiplications(5, 7) == linear.multiplications(1, 4) == 0

    @pytest.mark.parametrize("variant", ["q", "ps"])
    @pytest.mark.parametrize("bits", range(2, 7))
    def test_weight_bits(self, variant: str, bits: int) -> None:
        assert ShiftConv2d(6, 8, 3, variant=variant, bits=bits).weight_bits() == bits * 6 * 8 * 9

    @pytest.mark.parametrize(
        ("shifts", "bits"),
        [([3, 3, 3], 1), ([0, -1, 0], 2), ([2, -1, 0], 3), ([2, -2, 0], 4), ([-2048, 3, 3], 2), ([-2048, 3, 1], 3)],
    )
    def test_weight_bits_of_v1_cover_the_range_in_use(self, shifts: list[int], bits: int) -> None:
        """A sign, and as many bits as tell the powers from the least to the greatest, and 0 (shift -2048), apart."""
        layer = ShiftLinear(3, 1, variant="v1")
        with torch.no_grad():
            layer.shift.copy_(torch.tensor([shifts]))
        assert layer.weight_bits() == 3 * bits
