"""HetConv against loops written from its definition, and against the numbers of arXiv 1903.04120."""

import itertools
import math
from fractions import Fraction

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from convrepro.ops import DepthwisePointwise, GroupPointwise, HetConv2d, SqueezeExcite

pytestmark = pytest.mark.unit

VARIANTS = [
    *itertools.product((1, 2, 3, 6), (6,), (12,)),
    *itertools.product((1, 2, 4), (8,), (4,)),
    (8, 4, 16),
    (8, 2, 8),
    (4, 1, 8),
    ("out", 4, 8),
    ("out", 3, 3),
    ("out", 6, 2),
]
"""(p, in_channels, out_channels)"""

every_variant = pytest.mark.parametrize(("p", "channels", "filters"), VARIANTS)
both = pytest.mark.parametrize("arrangement", ["contiguous", "shifted"])


def has_kxk(i: int, c: int, part: int, channels: int, filters: int, arrangement: str) -> bool:
    """Whether filter i has its KxK kernel on channel c."""
    if arrangement == "shifted":  # figure 3
        return c % part == i % part
    blocks = min(part, channels)
    return c // (channels // blocks) == i // (filters // part)


def number_of(p: int | str, filters: int) -> int:
    return filters if p == "out" else p


def loop_convolution(x: Tensor, operator: HetConv2d, has_kxk_at) -> Tensor:
    """Sum over window positions and channels, one product at a time; a 1x1 kernel is the window's middle alone."""
    weight, x = operator.dense_weight().tolist(), x.tolist()
    (kh, kw), (sh, sw), (ph, pw), (dh, dw) = operator.kernel_size, operator.stride, operator.padding, operator.dilation
    height, width = len(x[0][0]), len(x[0][0][0])
    out_h = (height + 2 * ph - dh * (kh - 1) - 1) // sh + 1
    out_w = (width + 2 * pw - dw * (kw - 1) - 1) // sw + 1
    y = torch.zeros(len(x), operator.out_channels, out_h, out_w, dtype=torch.float64)
    for b, i, row, column in itertools.product(*map(range, y.shape)):
        total = operator.bias[i].item()
        for c in range(operator.in_channels):
            for u, v in itertools.product(range(kh), range(kw)):
                if not has_kxk_at(i, c) and (u, v) != (kh // 2, kw // 2):
                    continue
                r, s = row * sh - ph + u * dh, column * sw - pw + v * dw
                if 0 <= r < height and 0 <= s < width:
                    total += weight[i][c][u][v] * x[b][c][r][s]
        y[b, i, row, column] = total
    return y


@both
@every_variant
def test_equals_loops_over_the_definition(p: int | str, channels: int, filters: int, arrangement: str) -> None:
    operator = HetConv2d(
        channels, filters, 3, (2, 1), (1, 0), (1, 2), dtype=torch.float64, p=p, arrangement=arrangement
    )
    part = number_of(p, filters)
    x = torch.randn(1, channels, 4, 6, dtype=torch.float64)
    y = loop_convolution(x, operator, lambda i, c: has_kxk(i, c, part, channels, filters, arrangement))
    torch.testing.assert_close(operator(x), y)
    torch.testing.assert_close(operator.forward_exact(x), y)


@both
@every_variant
def test_kernels_sit_where_defined(p: int | str, channels: int, filters: int, arrangement: str) -> None:
    operator = HetConv2d(channels, filters, (3, 5), p=p, arrangement=arrangement)
    dense, part = operator.dense_weight(), number_of(p, filters)
    for i, c in itertools.product(range(filters), range(channels)):
        taps = 15 if has_kxk(i, c, part, channels, filters, arrangement) else 1
        assert dense[i, c].count_nonzero() == taps, (i, c)
        assert dense[i, c, 1, 2] != 0, (i, c)
    parameters = torch.cat([p.flatten() for name, p in operator.named_parameters() if name != "bias"])
    torch.testing.assert_close(dense[dense != 0].sort().values, parameters.sort().values, rtol=0, atol=0)


def test_layout_of_the_parameters_is_the_documented_one() -> None:
    channels, filters, part = 6, 9, 3
    operator = HetConv2d(channels, filters, 3, p=part)
    dense = operator.dense_weight()
    for i in range(filters):
        own = [c for c in range(channels) if c // 2 == i // 3]
        others = [c for c in range(channels) if c not in own]
        assert torch.equal(dense[i, own], operator.weight_kxk[i])
        assert torch.equal(dense[i, others, 1, 1], operator.weight_1x1[i])
    beyond = HetConv2d(2, 8, 3, p=4)
    assert torch.equal(beyond.dense_weight()[4:, :, 1, 1], beyond.weight_pointwise)


@every_variant
def test_shifted_is_contiguous_with_channels_and_filters_permuted(p: int | str, channels: int, filters: int) -> None:
    part = number_of(p, filters)
    channel_order = sorted(range(channels), key=lambda c: (c % part, c))
    filter_order = sorted(range(filters), key=lambda i: (i % part, i))
    shifted = HetConv2d(channels, filters, 3, padding=1, p=p, arrangement="shifted")
    contiguous = HetConv2d(channels, filters, 3, padding=1, p=p)
    contiguous.load_state_dict(shifted.state_dict())
    contiguous.bias.data = shifted.bias.data[filter_order]
    x = torch.randn(2, channels, 5, 4)
    torch.testing.assert_close(shifted(x)[:, filter_order], contiguous(x[:, channel_order]))
    dense = shifted.dense_weight()[filter_order][:, channel_order]
    assert torch.equal(dense, contiguous.dense_weight())


@both
def test_is_nn_conv2d_to_the_bit_at_p_1(arrangement: str) -> None:
    conv = nn.Conv2d(6, 4, 3, padding=1)
    operator = HetConv2d.from_conv(conv, p=1, arrangement=arrangement)
    x = torch.randn(2, 6, 5, 7)
    assert torch.equal(operator(x), conv(x))
    assert torch.equal(operator.dense_weight(), conv.weight)


@both
@pytest.mark.parametrize(("p", "channels", "filters"), [(2, 4, 4), (4, 2, 8), (2, 1, 2)])
def test_gradcheck(p: int, channels: int, filters: int, arrangement: str) -> None:
    operator = HetConv2d(channels, filters, 3, 2, 1, dtype=torch.float64, p=p, arrangement=arrangement)
    names, parameters = zip(*operator.named_parameters(), strict=True)
    x = torch.randn(2, channels, 3, 4, dtype=torch.float64, requires_grad=True)

    def run(x: Tensor, *values: Tensor) -> Tensor:
        return functional_call(operator, dict(zip(names, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(run, (x, *parameters))


@both
@pytest.mark.parametrize("optimizer", ["SGD", "Adam", "RMSprop"])
def test_structural_zeros_outlive_training(optimizer: str, arrangement: str) -> None:
    operator = HetConv2d(4, 8, 3, padding=1, p=2, arrangement=arrangement)
    before = operator.dense_weight()
    words = {"lr": 0.1, "weight_decay": 0.01} | ({"momentum": 0.9} if optimizer != "Adam" else {})
    steps = getattr(torch.optim, optimizer)(operator.parameters(), **words)
    x, target = torch.randn(2, 4, 5, 5), torch.randn(2, 8, 5, 5)
    for _ in range(4):
        steps.zero_grad()
        (operator(x) - target).square().mean().backward()
        steps.step()
    after = operator.dense_weight()
    assert torch.equal(after != 0, before != 0)
    assert (after != before)[before != 0].all()


@both
@pytest.mark.parametrize(("p", "channels", "filters"), [(2, 4, 4), (4, 4, 8), (4, 2, 4), (6, 2, 6), (2, 1, 4)])
def test_from_conv_is_the_least_squares_solution(p: int, channels: int, filters: int, arrangement: str) -> None:
    conv = nn.Conv2d(channels, filters, 3, dtype=torch.float64)
    operator = HetConv2d.from_conv(conv, p=p, arrangement=arrangement)
    found = nn.utils.parameters_to_vector(operator.parameters())
    probe = HetConv2d(channels, filters, 3, dtype=torch.float64, p=p, arrangement=arrangement)
    columns = []
    for unit in torch.eye(len(found), dtype=torch.float64):
        nn.utils.vector_to_parameters(unit, probe.parameters())
        columns.append(torch.cat([probe.dense_weight().flatten(), probe.bias.detach()]))
    wanted = torch.cat([conv.weight.flatten(), conv.bias]).detach()
    best = torch.linalg.lstsq(torch.stack(columns, dim=1), wanted[:, None]).solution[:, 0]
    torch.testing.assert_close(found, best)


def test_from_conv_refuses_a_grouped_convolution() -> None:
    with pytest.raises(ValueError, match="groups=2: HetConv2d connects every filter to every channel; valid: 1"):
        HetConv2d.from_conv(nn.Conv2d(4, 4, 3, groups=2), p=2)


@pytest.mark.parametrize(("p", "channels", "filters"), [(4, 64, 128), (128, 64, 128), (1, 64, 32)])
@pytest.mark.parametrize("init", ["fan_in", "torch"])
def test_output_variance_follows_the_true_fan_in(init: str, p: int, channels: int, filters: int) -> None:
    """White noise in: the He scheme gives variance 2 in each filter, the torch scheme 1/3; biases left out."""
    operator = HetConv2d(channels, filters, 3, bias=False, p=p)
    operator.reset_parameters(init)
    power = operator.dense_weight().square().sum((1, 2, 3))
    expected = {"fan_in": 2.0, "torch": 1 / 3}[init]
    kinds = power[: filters // 2], power[filters // 2 :]
    assert [kind.mean().item() for kind in kinds] == pytest.approx([expected] * 2, rel=0.05)


def test_input_gradient_variance_follows_the_true_fan_out() -> None:
    operator = HetConv2d(64, 128, 3, bias=False, p=4)
    operator.reset_parameters("fan_out")
    power = operator.dense_weight().square().sum((0, 2, 3))
    assert power.mean().item() == pytest.approx(2.0, rel=0.05)


def test_biases_are_zero_for_the_he_schemes_only() -> None:
    operator = HetConv2d(8, 8, 3, p=4)
    bound = 1 / math.sqrt(2 * 9 + 6)
    assert operator.bias.any()
    assert operator.bias.abs().max() <= bound
    operator.reset_parameters("fan_out")
    assert not operator.bias.any()


@both
def test_takes_a_single_image_without_batch(arrangement: str) -> None:
    operator = HetConv2d(4, 8, 3, padding=1, p=2, arrangement=arrangement)
    x = torch.randn(4, 4, 5)
    torch.testing.assert_close(operator(x), operator(x[None])[0])


@pytest.mark.parametrize("p", [1, 2, 4, 8, 16, 32, 64])
@pytest.mark.parametrize("kernel_size", [3, 5])
def test_cost_ratio_is_the_paper_s(p: int, kernel_size: int) -> None:
    """Section 3.2: 1/P + (1 - 1/P)/K^2 of the standard convolution."""
    operator = HetConv2d(64, 128, kernel_size, device="meta", p=p)
    dense = 7 * 5 * 128 * 64 * kernel_size**2
    assert Fraction(operator.macs(7, 5), dense) == Fraction(1, p) + (1 - Fraction(1, p)) / kernel_size**2


VGG = [(64, 64, 32), (64, 128, 16), (128, 128, 16), (128, 256, 8), (256, 256, 8), (256, 256, 8)]
VGG += [(256, 512, 4), (512, 512, 4), (512, 512, 4), (512, 512, 2), (512, 512, 2), (512, 512, 2)]
"""(in_channels, out_channels, output size) of VGG-16's convolutions on CIFAR-10, but the first."""
FIRST = 32 * 32 * 64 * 3 * 9
HEAD = 512 * 512 + 512 * 10

MOBILENET = [(32, 64, 32), (64, 128, 16), (128, 128, 16), (128, 256, 8), (256, 256, 8), (256, 512, 4)]
MOBILENET += [(512, 512, 4)] * 5 + [(512, 1024, 2), (1024, 1024, 2)]


@pytest.mark.parametrize(
    ("p", "printed", "parameters"),
    [
        (1, "313.74", 14_982_474),
        (2, "175.23", 8_445_258),
        (4, "105.98", 5_176_650),
        (8, "71.35", 3_542_346),
        (16, "54.04", 2_725_194),
        (32, "45.38", 2_316_618),
        (64, "41.05", 2_112_330),
        ("out", "38.18", 1_937_738),
    ],
)
def test_vgg16_costs_what_table_1_prints(p: int | str, printed: str, parameters: int) -> None:
    """The paper's count: one more for each output element (the bias), in HetConv layers scaled like the rest; cut."""
    total = Fraction(FIRST + 32 * 32 * 64 + HEAD)
    count = 3 * 9 * 64 + 64 + HEAD + 512 + 10
    for channels, filters, size in VGG:
        operator = HetConv2d(channels, filters, 3, device="meta", p=p)
        macs = operator.macs(size, size)
        dense = size**2 * filters * channels * 9
        total += macs + Fraction(macs, dense) * size**2 * filters
        count += sum(p.numel() for p in operator.parameters())
    assert f"{math.floor(total / 10_000) / 100:.2f}" == printed
    assert count == parameters


def test_separable_vgg16_costs_what_table_1_prints() -> None:
    """One more for each element of the group convolution's output (its bias); rounded."""
    totals = [Fraction(FIRST + 32 * 32 * 64 + HEAD)] * 2
    for channels, filters, size in VGG:
        pair = (
            GroupPointwise(channels, filters, 3, device="meta", num_groups=4),
            DepthwisePointwise(channels, filters, 3, device="meta"),
        )
        totals = [t + o.macs(size, size) + size**2 * channels for t, o in zip(totals, pair, strict=True)]
    assert totals == [107_666_432, 38_528_000]
    assert [f"{float(t) / 1e6:.2f}" for t in totals] == ["107.67", "38.53"]


@pytest.mark.parametrize(("p", "macs"), [(None, 46_354_432), (32, 55_945_216), (64, 50_440_192)])
def test_mobilenet_costs_what_table_4_prints(p: int | None, macs: int) -> None:
    total = 32 * 32 * 32 * 3 * 9 + 1024 * 10
    for channels, filters, size in MOBILENET:
        operator = (
            HetConv2d(channels, filters, 3, device="meta", p=p)
            if p
            else DepthwisePointwise(channels, filters, 3, device="meta")
        )
        total += operator.macs(size, size)
    assert total == macs


def test_squeeze_and_excitation_of_vgg16_costs_what_the_se_rows_add() -> None:
    assert SqueezeExcite(64, 8).macs() + sum(SqueezeExcite(n, 8).macs() for _, n, _ in VGG) == 452_608
    assert sum(SqueezeExcite(n, 8).macs() for _, n, _ in VGG) == 451_584
