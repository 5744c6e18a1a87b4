"""Low-precision layers: weights, inputs, gradients and cost against their definitions, in plain loops."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convrepro.ops.low_precision import PRECISIONS, LowPrecisionConv2d, LowPrecisionLinear
from convrepro.ops.quantizers import binary, fixed_point, kmeans, sign, ternary

pytestmark = pytest.mark.unit

WEIGHT = torch.tensor([[-0.5, 1.5, 0.0, -0.25, 0.75], [0.1, -3.0, 0.2, 0.0, -0.7]], dtype=torch.float64)


class TestBinary:
    def test_by_hand(self) -> None:
        expected = torch.tensor([[-0.6, 0.6, 0.6, -0.6, 0.6], [0.8, -0.8, 0.8, 0.8, -0.8]], dtype=torch.float64)
        torch.testing.assert_close(binary(WEIGHT), expected, rtol=1e-15, atol=0)

    def test_no_signs_and_scale_are_nearer(self) -> None:
        """Over all sign patterns, each with the scale that fits it best in least squares."""
        weight = torch.randn(1, 6, dtype=torch.float64)
        errors = []
        for pattern in itertools.product((-1.0, 1.0), repeat=6):
            signs = torch.tensor([pattern], dtype=torch.float64)
            errors.append(float((weight - (weight * signs).mean() * signs).square().sum()))
        assert float((weight - binary(weight)).square().sum()) == pytest.approx(min(errors), rel=1e-12)

    def test_gradient(self) -> None:
        weight, g = WEIGHT.clone().requires_grad_(), torch.randn_like(WEIGHT)
        binary(weight).backward(g)
        for n, i in itertools.product(range(2), range(5)):
            a = WEIGHT[n].abs().mean()
            expected = g[n, i] * (1 / 5 + (a if abs(WEIGHT[n, i]) <= 1 else 0))
            assert weight.grad[n, i].item() == pytest.approx(expected.item(), rel=1e-12)


class TestTernary:
    def test_by_hand(self) -> None:
        """Mean magnitude 0.7, so the threshold is 0.49; above it are 0.5, 1.5, 0.75, 3 and 0.7, their mean 1.29."""
        signs = torch.tensor([[-1.0, 1, 0, 0, 1], [0, -1, 0, 0, -1]], dtype=torch.float64)
        torch.testing.assert_close(ternary(WEIGHT), 1.29 * signs, rtol=1e-15, atol=0)

    def test_lies_between_the_best_ternary_and_the_best_binary_form(self) -> None:
        """The best threshold by search over all of them; the paper's is an approximation of it."""
        weight = torch.randn(1, 2000, dtype=torch.float64)
        kept = torch.arange(1, 2001)
        sums = weight.abs().flatten().sort(descending=True).values.cumsum(0)
        best = float(weight.square().sum() - (sums.square() / kept).max())
        ours, two = (float((weight - form(weight)).square().sum()) for form in (ternary, binary))
        assert best <= ours < two

    def test_gradient_is_the_identity(self) -> None:
        weight, g = WEIGHT.clone().requires_grad_(), torch.randn_like(WEIGHT)
        ternary(weight).backward(g)
        assert torch.equal(weight.grad, g)

    def test_more_half_weights_than_a_half_can_count(self) -> None:
        weight = torch.randn(300, 300).sign().half() / 2
        assert torch.equal(ternary(weight), weight)

    def test_zeros_stay_zeros(self) -> None:
        assert torch.equal(ternary(torch.zeros(2, 3)), torch.zeros(2, 3))


class TestFixedPoint:
    @pytest.mark.parametrize("bits", [2, 3, 8, 16])
    def test_is_what_torch_makes_of_the_least_power_of_two_that_holds_all(self, bits: int) -> None:
        x = torch.randn(6, 4, 3, 3) * torch.logspace(-3, 3, 6)[:, None, None, None]
        limit = 2 ** (bits - 1) - 1
        steps = []
        for row in x:
            largest = max(abs(v) for v in row.flatten().tolist())
            steps.append(next(2.0**p for p in range(-40, 40) if limit * 2.0**p >= largest))
        zero = torch.zeros(6, dtype=torch.int32)
        expected = torch.fake_quantize_per_channel_affine(x, torch.tensor(steps), zero, 0, -limit, limit)
        assert torch.equal(fixed_point(x, bits), expected)

    @pytest.mark.parametrize("bits", [2, 5, 16])
    def test_keeps_numbers_of_the_format(self, bits: int) -> None:
        limit = 2 ** (bits - 1) - 1
        codes = torch.randint(-limit, limit + 1, (4, 50)).double()
        codes[:, 0] = limit
        x = torch.cat((codes * torch.tensor([[2.0**-9], [1.0], [2.0**5], [0.0]]), torch.zeros(1, 50)))
        assert torch.equal(fixed_point(x, bits), x)

    def test_gradient_is_the_identity_for_the_largest_too(self) -> None:
        x, g = torch.randn(3, 5, requires_grad=True), torch.randn(3, 5)
        fixed_point(x, 3).backward(g)
        assert torch.equal(x.grad, g)


class TestKmeans:
    @staticmethod
    def cost(x: Tensor, centroids: Tensor, cluster: Tensor) -> float:
        return float((x - centroids[cluster.long()]).square().sum())

    @staticmethod
    def best_cost(x: Tensor, clusters: int) -> float:
        """Over all ways to cut the sorted numbers into runs: clusters of numbers on a line are such runs."""
        ordered = x.sort().values
        costs = []
        for cuts in itertools.combinations(range(1, len(x)), clusters - 1):
            runs = ordered.tensor_split(cuts)
            costs.append(sum(float((run - run.mean()).square().sum()) for run in runs))
        return min(costs)

    @pytest.mark.parametrize("clusters", [2, 3, 4])
    def test_separated_numbers_have_the_best_clusters(self, clusters: int) -> None:
        x = torch.randn(12, dtype=torch.float64) + 20 * torch.arange(12).remainder(clusters)
        centroids, cluster = kmeans(x, clusters)
        assert self.cost(x, centroids, cluster) == pytest.approx(self.best_cost(x, clusters), rel=1e-12)

    @pytest.mark.parametrize("clusters", [2, 3, 5])
    def test_no_single_step_makes_it_better(self, clusters: int) -> None:
        """And it is never below the best, nor above what it starts from: centroids spread evenly."""
        for _ in range(20):
            x = torch.randn(9, dtype=torch.float64)
            centroids, cluster = kmeans(x, clusters)
            assert torch.equal(cluster.long(), (x[:, None] - centroids).abs().argmin(1))
            for k in range(clusters):
                if (cluster == k).any():
                    torch.testing.assert_close(centroids[k], x[cluster == k].mean())
            even = torch.linspace(float(x.min()), float(x.max()), clusters).double()
            start = self.cost(x, even, (x[:, None] - even).abs().argmin(1))
            assert self.best_cost(x, clusters) <= self.cost(x, centroids, cluster) * (1 + 1e-12) <= start * (1 + 1e-12)

    def test_more_clusters_are_nearer(self) -> None:
        x = torch.randn(5000)
        costs = [self.cost(x, *kmeans(x, clusters)) for clusters in (2, 3, 4, 6, 8, 16, 32, 64, 128, 256)]
        assert costs == sorted(costs, reverse=True)

    def test_fewer_numbers_than_clusters_are_kept(self) -> None:
        x = torch.tensor([[3.0, -1.0], [3.0, 0.5]])
        centroids, cluster = kmeans(x, 16)
        assert torch.equal(centroids[cluster.long()], x)
        assert (cluster.shape, cluster.dtype) == (x.shape, torch.uint8)

    def test_equal_numbers(self) -> None:
        centroids, cluster = kmeans(torch.full((4,), 2.5), 4)
        assert torch.equal(centroids[cluster.long()], torch.full((4,), 2.5))


GRID = [
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": (3, 2), "padding": (0, 2), "dilation": (2, 1), "groups": 2, "bias": False},
    {"kernel_size": 3, "padding": (2, 1), "stride": (2, 1), "groups": 4},
    {"kernel_size": 3, "padding": 1, "padding_mode": "reflect", "groups": 2},
]


class TestXnor:
    @staticmethod
    def brute_force(layer: LowPrecisionConv2d, x: Tensor) -> Tensor:
        """sum of sign(x) sign(W), times mean abs W, times mean abs x under the window, for each output element."""
        weight, (kh, kw) = layer.weight.detach(), layer.kernel_size
        ph, pw = layer.padding
        mode = {"zeros": "constant"}.get(layer.padding_mode, layer.padding_mode)
        padded = F.pad(x, (pw, pw, ph, ph), mode)
        positions = nn.Conv2d(1, 1, (kh, kw), layer.stride, layer.padding, layer.dilation)(
            torch.zeros(1, 1, *x.shape[2:])
        )
        y = x.new_zeros(len(x), layer.out_channels, *positions.shape[2:])
        per_group = layer.in_channels // layer.groups
        for b, n, i, j in itertools.product(*map(range, y.shape)):
            total, magnitude = 0.0, 0.0
            for m, u, v in itertools.product(range(per_group), range(kh), range(kw)):
                c = n // (layer.out_channels // layer.groups) * per_group + m
                h, w = i * layer.stride[0] + u * layer.dilation[0], j * layer.stride[1] + v * layer.dilation[1]
                value = float(padded[b, c, h, w])
                magnitude += abs(value)
                if value != 0:
                    total += math.copysign(1, value) * (1 if weight[n, m, u, v] >= 0 else -1)
            a = sum(abs(float(w)) for w in weight[n].flatten()) / weight[n].numel()
            y[b, n, i, j] = total * a * magnitude / (per_group * kh * kw)
            if layer.bias is not None:
                y[b, n, i, j] += layer.bias[n].detach()
        return y

    @pytest.mark.parametrize("words", GRID, ids=str)
    def test_conv(self, words: dict[str, object]) -> None:
        layer = LowPrecisionConv2d(4, 8, dtype=torch.float64, precision="xnor", **words)
        x = torch.randn(2, 4, 5, 6, dtype=torch.float64)
        for inputs in (x, x.relu()):
            torch.testing.assert_close(layer(inputs), self.brute_force(layer, inputs), rtol=1e-12, atol=1e-12)

    def test_sign_and_its_gradient(self) -> None:
        x = torch.tensor([-2.0, -1.0, -0.3, -0.0, 0.0, 0.3, 1.0, 2.0], requires_grad=True)
        sign(x).backward(g := torch.randn(8))
        assert sign(x).tolist() == [-1, -1, -1, 0, 0, 1, 1, 1]
        assert torch.equal(x.grad, g * torch.tensor([0, 1, 1, 1, 1, 1, 1, 0]))

    def test_gradient_of_the_input(self) -> None:
        """For a linear layer y = K s W, s = sign(x), K = mean abs x: dy/dx_i = K [abs x_i <= 1] W_i + s_i (s W) / F."""
        layer = LowPrecisionLinear(5, 3, bias=False, dtype=torch.float64, precision="xnor")
        x = torch.tensor([[-0.5, 1.5, 0.2, -2.0, 0.7]], dtype=torch.float64, requires_grad=True)
        g = torch.randn(1, 3, dtype=torch.float64)
        layer(x).backward(g)
        w, s = binary(layer.weight).detach(), x.detach().sign()
        steps = (x.detach().abs() <= 1) * (g @ w) * x.detach().abs().mean()
        torch.testing.assert_close(x.grad, steps + s * (g * (s @ w.T)).sum() / 5, rtol=1e-12, atol=0)


class TestShared:
    def test_the_codebook_gets_the_sum_of_its_weights_gradients(self) -> None:
        layer = LowPrecisionConv2d(4, 6, 3, precision="shared", clusters=5, dtype=torch.float64)
        conv = nn.Conv2d(4, 6, 3, dtype=torch.float64)
        conv.load_state_dict({"weight": layer.quantized_weight().detach(), "bias": layer.bias.detach()})
        x = torch.randn(2, 4, 6, 6, dtype=torch.float64)
        for module in (layer, conv):
            module(x).square().sum().backward()
        sums = [float(conv.weight.grad[layer.assignment == k].sum()) for k in range(5)]
        assert layer.codebook.grad[0].tolist() == pytest.approx(sums, rel=1e-9)

    def test_training_moves_the_codebook_alone(self) -> None:
        layer = LowPrecisionConv2d(4, 6, 3, precision="shared", clusters=5)
        before, codebook = layer.assignment.clone(), layer.codebook.detach().clone()
        optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            layer(torch.randn(2, 4, 6, 6)).square().sum().backward()
            optimizer.step()
        assert torch.equal(layer.assignment, before)
        assert (layer.codebook != codebook).all()
        assert len(layer.quantized_weight().unique()) == 5


class TestLayers:
    @pytest.mark.parametrize("precision", PRECISIONS)
    def test_linear_is_the_1x1_convolution_of_each_vector(self, precision: str) -> None:
        knobs = {"precision": precision, **({"bits": 4, "activation_bits": 5} if precision == "fixed" else {})}
        linear = LowPrecisionLinear(7, 5, dtype=torch.float64, **knobs)
        conv = LowPrecisionConv2d(7, 5, 1, dtype=torch.float64, **knobs)
        conv.load_state_dict(
            {k: v[..., None, None] if v.shape == (5, 7) else v for k, v in linear.state_dict().items()}
        )
        x = torch.randn(2, 3, 7, dtype=torch.float64)
        torch.testing.assert_close(linear(x), conv(x.view(6, 7, 1, 1)).view(2, 3, 5), rtol=1e-12, atol=1e-14)

    @pytest.mark.parametrize("precision", PRECISIONS)
    def test_conversion_takes_the_weight_by_the_precisions_rule(self, precision: str) -> None:
        linear = nn.Linear(7, 5, bias=False, dtype=torch.float64).eval()
        layer = LowPrecisionLinear.from_linear(linear, precision=precision)
        weight = linear.weight.detach()
        codebook, assignment = kmeans(weight, 16)
        expected = {
            "binary": binary(weight),
            "xnor": binary(weight),
            "ternary": ternary(weight),
            "fixed": fixed_point(weight, 8),
            "shared": codebook[assignment.long()],
        }[precision]
        assert torch.equal(layer.quantized_weight(), expected)
        assert layer.bias is None
        assert not layer.training

    @pytest.mark.parametrize("precision", ["binary", "ternary", "xnor", "fixed"])
    def test_a_float_state_dict_loads(self, precision: str) -> None:
        conv, layer = nn.Conv2d(3, 4, 3), LowPrecisionConv2d(3, 4, 3, precision=precision)
        layer.load_state_dict(conv.state_dict())
        assert torch.equal(layer.weight, conv.weight)

    @pytest.mark.parametrize("precision", PRECISIONS)
    @pytest.mark.parametrize("value", [math.nan, math.inf])
    def test_a_weight_that_is_not_finite_is_not_hidden(self, precision: str, value: float) -> None:
        conv = nn.Conv2d(2, 1, 1)
        with torch.no_grad():
            conv.weight[0, 0] = value
        layer = LowPrecisionConv2d.from_conv(conv, precision=precision)
        assert not layer(torch.ones(1, 2, 1, 1)).isfinite().any()

    def test_inputs_in_fixed_point_have_a_binary_point_for_each_image(self) -> None:
        layer = LowPrecisionConv2d(3, 4, 3, precision="fixed", bits=16, activation_bits=4, dtype=torch.float64)
        x = torch.randn(2, 3, 5, 5, dtype=torch.float64) * torch.tensor([1.0, 100.0])[:, None, None, None]
        rounded = torch.stack([fixed_point(image.flatten()[None], 4).view(image.shape) for image in x])
        assert (rounded != x).any()
        torch.testing.assert_close(layer(x), F.conv2d(rounded, layer.quantized_weight(), layer.bias))


class TestCost:
    """64 weights in 8 filters of 8 (2 channels, 2x2, of 2 groups); 15 positions."""

    @pytest.mark.parametrize(
        ("knobs", "multiplications", "bits"),
        [
            ({"precision": "binary"}, 15 * 8, 64 + 8 * 32),
            ({"precision": "xnor"}, 15 * 8 * 2, 64 + 8 * 32),
            ({"precision": "ternary"}, 15 * 8, 64 * 2 + 32),
            ({"precision": "fixed"}, 15 * 64, 64 * 8 + 8 * 8),
            ({"precision": "fixed", "bits": 16, "activation_bits": 16}, 15 * 64, 64 * 16 + 8 * 8),
            ({"precision": "shared"}, 15 * 64, 64 * 4 + 16 * 32),
            ({"precision": "shared", "clusters": 5}, 15 * 8 * 5, 64 * 3 + 5 * 32),
            ({"precision": "shared", "clusters": 2}, 15 * 8 * 2, 64 * 1 + 2 * 32),
        ],
        ids=str,
    )
    def test_by_hand(self, knobs: dict[str, object], multiplications: int, bits: int) -> None:
        conv = LowPrecisionConv2d(4, 8, 2, groups=2, **knobs)
        linear = LowPrecisionLinear(8, 8, **knobs)
        assert conv.macs(3, 5) == linear.macs(1, 15) == 15 * 64
        assert conv.multiplications(3, 5) == linear.multiplications(1, 15) == multiplications
        assert conv.weight_bits() == linear.weight_bits() == bits
        assert conv.shifts(3, 5) == 0
