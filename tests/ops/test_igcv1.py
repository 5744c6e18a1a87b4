"""IGCV1 against matrices and loops from the paper's definition, and the paper's claims about its width."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convrepro.ops import DepthwisePointwise, GroupPointwise, IGCV1Conv2d
from convrepro.testing import count_weights
from support.operator_cases import count_paths

pytestmark = pytest.mark.unit


def fill_identity(weight: Tensor) -> None:
    """Make a group convolution that keeps the number of channels pass them through."""
    with torch.no_grad():
        weight.copy_(torch.eye(weight.shape[1]).repeat(len(weight) // weight.shape[1], 1)[..., None, None])


@pytest.mark.parametrize(
    ("in_channels", "out_channels", "partitions"), [(6, 6, 2), (48, 48, 24), (32, 32, 4), (832, 832, 32), (8, 12, 4)]
)
def test_igcv1_has_one_path_for_each_channel_and_filter(in_channels: int, out_channels: int, partitions: int) -> None:
    operator = IGCV1Conv2d(in_channels, out_channels, 1, primary_partitions=partitions)
    assert count_paths(operator).unique().tolist() == [1]


def test_igcv1_connects_what_the_two_convolutions_of_the_definition_connect() -> None:
    """Primary: channels of one partition. Secondary: the m-th channels of all (strict complementary condition)."""
    for partitions, width in ((2, 3), (3, 2), (4, 8)):
        channels = partitions * width
        only_primary, only_secondary = (IGCV1Conv2d(channels, channels, 1, primary_partitions=partitions) for _ in "12")
        fill_identity(only_primary.weight_secondary)
        fill_identity(only_secondary.weight_primary)
        same_primary = only_primary.dense_weight()[..., 0, 0] != 0
        same_secondary = only_secondary.dense_weight()[..., 0, 0] != 0
        for o, i in itertools.product(range(channels), repeat=2):
            assert same_primary[o, i] == (o // width == i // width)
            assert same_secondary[o, i] == (o % width == i % width)


def test_igcv1_equals_loops_over_the_definition() -> None:
    partitions, width, several = 2, 6, 2
    operator = IGCV1Conv2d(4, 12, 3, (2, 1), (1, 0), primary_partitions=2, secondary_partitions=3, dtype=torch.float64)
    x = torch.randn(2, 4, 4, 6, dtype=torch.float64)
    middle = F.conv2d(x, operator.weight_primary, None, (2, 1), (1, 0), 1, partitions)
    expected = torch.empty_like(middle)
    for partition in range(3):
        places = [(n, partition * several + j) for j in range(several) for n in range(partitions)]
        for row, (n, m) in enumerate(places):
            kernel = operator.weight_secondary[partition * len(places) + row].flatten()
            inputs = [middle[:, k * width + q] for k, q in places]
            value = sum(w * v for w, v in zip(kernel, inputs, strict=True))
            expected[:, n * width + m] = value + operator.bias[n * width + m]
    torch.testing.assert_close(operator(x), expected)


def test_igcv1_sums_the_primary_partitions() -> None:
    operator = IGCV1Conv2d(6, 12, 3, padding=1, primary_partitions=3, secondary="sum", dtype=torch.float64)
    x = torch.randn(2, 6, 5, 5, dtype=torch.float64)
    groups = F.conv2d(x, operator.weight_primary, padding=1, groups=3)
    sums = groups[:, :4] + groups[:, 4:8] + groups[:, 8:]
    torch.testing.assert_close(operator(x), sums.repeat(1, 3, 1, 1) + operator.bias[:, None, None])
    assert count_weights(operator) == 12 * 2 * 9


def test_special_cases_of_igcv1() -> None:
    x = torch.randn(2, 6, 7, 7)
    xception = IGCV1Conv2d(6, 6, 3, primary_partitions=6)
    separable = DepthwisePointwise(6, 6, 3)
    separable.load_state_dict(
        {"weight_kxk": xception.weight_primary, "weight_1x1": xception.weight_secondary, "bias": xception.bias}
    )
    torch.testing.assert_close(xception(x), separable(x))

    regular = IGCV1Conv2d(6, 4, 3, primary_partitions=1)
    with torch.no_grad():
        regular.weight_secondary.fill_(1)
    torch.testing.assert_close(regular(x), F.conv2d(x, regular.weight_primary, regular.bias))

    summed = IGCV1Conv2d(6, 4 * 3, 3, bias=False, primary_partitions=3, secondary="sum")
    kernels = summed.weight_primary.chunk(3)
    torch.testing.assert_close(summed(x)[:, :4], F.conv2d(x, torch.cat(kernels, dim=1)))

    dense = IGCV1Conv2d(6, 6, 3, primary_partitions=3, secondary_partitions=1)
    assert count_weights(dense) == count_weights(GroupPointwise(6, 6, 3, num_groups=3))
    assert count_paths(IGCV1Conv2d(6, 6, 1, primary_partitions=3, secondary_partitions=1)).unique().tolist() == [2]


@pytest.mark.parametrize(("partitions", "width"), [(64, 1), (128, 1), (4, 8), (24, 2), (100, 2)])
@pytest.mark.parametrize("size", [1, 3, 5])
def test_weights_of_igcv1_by_the_formula(partitions: int, width: int, size: int) -> None:
    channels = partitions * width
    operator = IGCV1Conv2d(channels, channels, size, primary_partitions=partitions, device="meta")
    assert count_weights(operator) == channels**2 * (size**2 * width + partitions) / (partitions * width)
    assert count_weights(operator) == pytest.approx(channels**2 * (size**2 / partitions + 1 / width))


def test_talk_counts_weights_of_six_channels() -> None:
    assert nn.Conv2d(6, 6, 5).weight.numel() == 900
    assert nn.Conv2d(6, 6, 5, groups=2).weight.numel() == 450
    assert count_weights(IGCV1Conv2d(6, 6, 5, primary_partitions=2)) == 462


@pytest.mark.parametrize("size", [1, 2, 3])
def test_igcv1_is_wider_than_the_regular_convolution_by_the_papers_inequality(size: int) -> None:
    """Fewer weights at equal width is more width at equal weights; L/(L-1) < M*S decides, and both ways occur."""
    found = set()
    for partitions, width in itertools.product(range(1, 9), range(1, 9)):
        channels = partitions * width
        operator = IGCV1Conv2d(channels, channels, size, primary_partitions=partitions, device="meta")
        wider = count_weights(operator) < channels**2 * size**2
        assert wider == (partitions < (partitions - 1) * width * size**2)
        found.add(wider)
    assert found == {True, False}


@pytest.mark.parametrize("width", [1, 2, 4, 6])
def test_igcv1_is_widest_where_the_two_convolutions_have_equal_shares(width: int) -> None:
    """L = M*S, by search over all numbers of partitions that divide the channels."""
    channels = 9 * width * width
    sizes = {
        n: count_weights(IGCV1Conv2d(channels, channels, 3, primary_partitions=n, device="meta"))
        for n in range(1, channels + 1)
        if channels % n == 0
    }
    assert min(sizes, key=sizes.get) == 9 * width


@pytest.mark.parametrize(("regular", "best"), [(64, (28, 3)), (128, (50, 4))])
def test_the_widest_igcv1_of_given_weights_is_near_that_optimum(regular: int, best: tuple[int, int]) -> None:
    """The weights are those of depthwise and 1x1 convolution on `regular` channels."""
    budget = count_weights(IGCV1Conv2d(regular, regular, 3, primary_partitions=regular, device="meta"))
    fits = [
        math.prod(pair)
        for pair in itertools.product(range(1, 130), range(1, 40))
        if math.prod(pair) * (9 * pair[1] + pair[0]) <= budget
    ]
    widest = math.prod(best)
    assert count_weights(IGCV1Conv2d(widest, widest, 3, primary_partitions=best[0], device="meta")) <= budget
    assert widest == max(fits) <= (budget / 6) ** (2 / 3)
    assert widest > regular


VARIANTS = [
    {"primary_partitions": 1},
    {"primary_partitions": 2},
    {"primary_partitions": 4},
    {"primary_partitions": 2, "secondary_partitions": 3},
    {"primary_partitions": 4, "secondary_partitions": 1},
    {"primary_partitions": 4, "secondary": "sum"},
]


@pytest.mark.parametrize("knobs", VARIANTS, ids=str)
@pytest.mark.parametrize("size", [1, 3])
def test_from_conv_is_exact_for_a_convolution_of_that_form(knobs: dict, size: int) -> None:
    source = IGCV1Conv2d(8, 12, size, dtype=torch.float64, **knobs)
    conv = nn.Conv2d(8, 12, size, dtype=torch.float64)
    conv.load_state_dict({"weight": source.dense_weight(), "bias": source.bias})
    x = torch.randn(2, 8, 6, 6, dtype=torch.float64)
    torch.testing.assert_close(IGCV1Conv2d.from_conv(conv, **knobs)(x), conv(x))


@pytest.mark.parametrize(("secondary_partitions", "rank"), [(None, 1), (3, 2), (2, 3), (1, 6)])
def test_from_conv_reaches_the_smallest_error_that_the_rank_allows(secondary_partitions: int | None, rank: int) -> None:
    """Eckart and Young, block by block: the squares of the singular values left out."""
    conv = nn.Conv2d(8, 12, 3, dtype=torch.float64)
    operator = IGCV1Conv2d.from_conv(conv, primary_partitions=2, secondary_partitions=secondary_partitions)
    error = (operator.dense_weight() - conv.weight).square().sum()
    expected = 0
    for partition in range(secondary_partitions or 6):
        filters = [n * 6 + partition * rank + j for n in range(2) for j in range(rank)]
        for channels in (slice(0, 4), slice(4, 8)):
            block = conv.weight[filters, channels].flatten(1)
            expected += torch.linalg.eigvalsh(block @ block.T)[:-rank].sum()
    torch.testing.assert_close(error, expected)


def test_from_conv_loses_less_with_fewer_secondary_partitions() -> None:
    conv = nn.Conv2d(8, 24, 3)
    knobs = [{"primary_partitions": 2, "secondary_partitions": n} for n in (12, 6, 3, 1)]
    operators = [IGCV1Conv2d.from_conv(conv, **k) for k in knobs]
    errors = [(operator.dense_weight() - conv.weight).square().sum().item() for operator in operators]
    assert errors == sorted(errors, reverse=True)
    assert len(set(errors)) == len(errors)


def test_from_conv_to_a_sum_is_the_least_squares_solution() -> None:
    conv = nn.Conv2d(4, 6, 2, dtype=torch.float64)
    operator = IGCV1Conv2d.from_conv(conv, primary_partitions=2, secondary="sum")
    residual = operator.dense_weight() - conv.weight
    for i in range(operator.weight_primary.numel()):
        direction = IGCV1Conv2d(4, 6, 2, primary_partitions=2, secondary="sum", dtype=torch.float64)
        with torch.no_grad():
            direction.weight_primary.zero_().view(-1)[i] = 1
        assert (direction.dense_weight() * residual).sum().abs() < 1e-12
