"""Group and depthwise separable convolutions against loops, against two `nn.Conv2d`, and the truncated SVD."""

import itertools

import pytest
import torch
from torch import nn

from convrepro.ops import DepthwisePointwise, GroupPointwise

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("num_groups", [1, 2, 4])
def test_equals_loops_over_the_definition(num_groups: int) -> None:
    channels, filters, per_group = 4, 3, 4 // num_groups
    operator = GroupPointwise(channels, filters, 3, (2, 1), (1, 0), (1, 2), dtype=torch.float64, num_groups=num_groups)
    x = torch.randn(2, channels, 4, 6, dtype=torch.float64)
    kxk, mixing, bias = operator.weight_kxk.tolist(), operator.weight_1x1.tolist(), operator.bias.tolist()
    y = operator(x)
    assert y.shape == (2, filters, 2, 2)
    for b, row, column in itertools.product(range(2), range(2), range(2)):
        middle = [0.0] * channels
        for j, c, u, v in itertools.product(range(channels), range(per_group), range(3), range(3)):
            r, s = row * 2 - 1 + u, column + v * 2
            if 0 <= r < 4 and 0 <= s < 6:
                middle[j] += kxk[j][c][u][v] * x[b, j // per_group * per_group + c, r, s].item()
        for i in range(filters):
            expected = bias[i] + sum(mixing[i][j][0][0] * middle[j] for j in range(channels))
            assert y[b, i, row, column].item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("num_groups", [1, 4, 8])
@pytest.mark.parametrize("padding_mode", ["zeros", "circular"])
def test_equals_two_convolutions_in_turn(num_groups: int, padding_mode: str) -> None:
    operator = GroupPointwise(8, 12, 3, 2, 2, 2, padding_mode=padding_mode, num_groups=num_groups)
    grouped = nn.Conv2d(8, 8, 3, 2, 2, 2, groups=num_groups, bias=False, padding_mode=padding_mode)
    pointwise = nn.Conv2d(8, 12, 1)
    grouped.weight, pointwise.weight, pointwise.bias = operator.weight_kxk, operator.weight_1x1, operator.bias
    x = torch.randn(2, 8, 9, 7)
    torch.testing.assert_close(operator(x), pointwise(grouped(x)))


def test_depthwise_is_one_group_for_each_channel() -> None:
    depthwise = DepthwisePointwise(6, 4, 3, padding=1)
    grouped = GroupPointwise(6, 4, 3, padding=1, num_groups=6)
    grouped.load_state_dict(depthwise.state_dict())
    x = torch.randn(2, 6, 5, 5)
    assert torch.equal(depthwise(x), grouped(x))
    assert depthwise.macs(5, 5) == grouped.macs(5, 5) == 25 * (6 * 9 + 6 * 4)


def test_from_conv_reaches_the_smallest_error_that_rank_one_allows() -> None:
    """Eckart and Young: channel by channel, the squares of the singular values left out."""
    conv = nn.Conv2d(5, 7, 3, dtype=torch.float64)
    operator = DepthwisePointwise.from_conv(conv)
    error = (operator.dense_weight() - conv.weight).square().sum((0, 2, 3))
    for c in range(5):
        values = torch.linalg.eigvalsh(conv.weight[:, c].flatten(1).T @ conv.weight[:, c].flatten(1))
        torch.testing.assert_close(error[c], values[:-1].sum())


def test_from_conv_is_exact_for_a_separable_convolution() -> None:
    source = DepthwisePointwise(5, 7, 3, dtype=torch.float64)
    conv = nn.Conv2d(5, 7, 3, padding=1, dtype=torch.float64)
    conv.load_state_dict({"weight": source.dense_weight(), "bias": source.bias})
    x = torch.randn(2, 5, 6, 6, dtype=torch.float64)
    torch.testing.assert_close(DepthwisePointwise.from_conv(conv)(x), conv(x))


def test_from_conv_refuses_a_grouped_convolution() -> None:
    with pytest.raises(
        ValueError, match=r"groups=2: DepthwisePointwise can only replace an ungrouped convolution; valid: 1"
    ):
        DepthwisePointwise.from_conv(nn.Conv2d(4, 4, 3, groups=2))


@pytest.mark.parametrize("init", ["torch", "fan_in", "fan_out"])
def test_each_part_is_drawn_as_a_convolution_of_its_own(init: str) -> None:
    operator = GroupPointwise(64, 128, 3, num_groups=4)
    operator.reset_parameters(init)
    fans = {"torch": (6 * 16 * 9, 6 * 64), "fan_in": (16 * 9, 64), "fan_out": (16 * 9, 128)}[init]
    variances = [operator.weight_kxk.var().item(), operator.weight_1x1.var().item()]
    assert variances == pytest.approx([2 / fan for fan in fans], rel=0.1)
