"""IGCV2 and IGCV3 against matrices and loops from the papers' definitions, and what all three have in common."""

import itertools
import math
from functools import reduce

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from convrepro.complexity import cross_check
from convrepro.ops import ConvOperator, IGCV1Conv2d, IGCV2Conv2d, IGCV3Conv2d
from convrepro.ops.igc import FOLDED_GROUPS, FORMS, ChannelShuffle, channel_shuffle, shuffle
from convrepro.testing import count_weights
from support.operator_cases import count_paths

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(("channels", "groups"), [(6, 2), (12, 3), (48, 24), (7, 1), (7, 7)])
def test_shuffle_follows_the_formula_and_has_an_inverse(channels: int, groups: int) -> None:
    expected = [(j % groups) * (channels // groups) + j // groups for j in range(channels)]
    x = torch.arange(channels)
    assert shuffle(x, groups, 0).tolist() == expected
    assert F.channel_shuffle(x.view(1, channels, 1, 1), groups).flatten().tolist() == expected
    assert torch.equal(shuffle(shuffle(x, groups, 0), channels // groups, 0), x)


@pytest.mark.parametrize(("channels", "groups"), [(6, 1), (6, 2), (12, 3), (12, 4), (48, 24), (7, 7)])
@pytest.mark.parametrize("batch", [0, 2])
def test_channel_shuffle_is_torchs_and_keeps_the_memory_format(channels: int, groups: int, batch: int) -> None:
    for layout in (torch.contiguous_format, torch.channels_last):
        x = torch.randn(batch, channels, 3, 5).to(memory_format=layout).requires_grad_()
        y, expected = ChannelShuffle(groups)(x), F.channel_shuffle(x, groups)
        assert torch.equal(y, expected)
        assert y.is_contiguous(memory_format=layout)
        upstream = torch.randn_like(y)
        assert torch.equal(*(torch.autograd.grad(z, x, upstream)[0] for z in (y, expected)))


def test_channel_shuffle_keeps_the_memory_format_where_torch_does_not() -> None:
    """The meta device stands for a GPU here: neither has torch's kernel that keeps it."""
    x = torch.empty(2, 12, 3, 5, device="meta").to(memory_format=torch.channels_last)
    assert not F.channel_shuffle(x, 4).is_contiguous(memory_format=torch.channels_last)
    assert channel_shuffle(x, 4).is_contiguous(memory_format=torch.channels_last)


def test_channel_shuffle_of_a_single_image() -> None:
    x = torch.randn(2, 12, 8, 5)
    assert torch.equal(channel_shuffle(x[0], 4), channel_shuffle(x, 4)[0])


BOTH_FORMS = [
    IGCV1Conv2d(16, 32, 3, padding=1, primary_partitions=8),
    IGCV1Conv2d(16, 32, 3, padding=1, stride=2, primary_partitions=2),
    IGCV2Conv2d(16, 32, 3, padding=1),
    IGCV2Conv2d(16, 32, 3, padding=1, branch_channels=(8, 2), channel_multiplier=True),
    IGCV3Conv2d(16, 32, 3, padding=1, stride=2),
    IGCV3Conv2d(16, 32, 3, padding=1, groups_out=8),
]


@pytest.mark.parametrize("operator", BOTH_FORMS, ids=repr)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_folded_permutations_have_the_same_gradients(operator: ConvOperator, layout: torch.memory_format) -> None:
    operator = operator.double().to(memory_format=layout)
    x = torch.randn(2, 16, 8, 7, dtype=torch.float64).to(memory_format=layout)
    results = []
    for form in (operator.forward, operator.forward_exact):
        operator.zero_grad()
        source = x.clone(memory_format=torch.preserve_format).requires_grad_()
        y = form(source)
        y.square().sum().backward()
        results.append([y, source.grad, *(p.grad for p in operator.parameters())])
        assert y.is_contiguous(memory_format=layout)
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("operator", "knobs"),
    [
        (IGCV1Conv2d, {"primary_partitions": 8}),
        (IGCV1Conv2d, {"primary_partitions": 2, "secondary_partitions": 2}),
        (IGCV1Conv2d, {"primary_partitions": 16}),
        (IGCV1Conv2d, {"primary_partitions": 8, "secondary": "sum"}),
        (IGCV2Conv2d, {"branch_channels": (8, 2), "channel_multiplier": True}),
        (IGCV2Conv2d, {"layers": 3}),
        (IGCV3Conv2d, {}),
        (IGCV3Conv2d, {"groups_in": 4, "groups_out": 8}),
    ],
    ids=str,
)
@pytest.mark.parametrize(
    "words", [{"stride": 2, "padding": 1}, {"dilation": (1, 2), "bias": False}, {"kernel_size": (5, 3)}], ids=str
)
def test_every_form_is_the_dense_convolution_with_its_gradients(
    form: str, operator: type[ConvOperator], knobs: dict, words: dict
) -> None:
    op = operator(16, 32, **{"kernel_size": 3, "dtype": torch.float64, **words}, **knobs, form=form)
    dense = nn.Conv2d(16, 32, **{"kernel_size": 3, "dtype": torch.float64, **words})
    dense.load_state_dict({"weight": op.dense_weight(), **({"bias": op.bias} if dense.bias is not None else {})})
    for layout in (torch.contiguous_format, torch.channels_last):
        op, dense = op.to(memory_format=layout), dense.to(memory_format=layout)
        x = torch.randn(2, 16, 7, 9, dtype=torch.float64).to(memory_format=layout).requires_grad_()
        y, expected = op(x), dense(x)
        torch.testing.assert_close(y, expected)
        assert y.is_contiguous(memory_format=layout)
        upstream = torch.randn_like(y)
        torch.testing.assert_close(*(torch.autograd.grad(z, x, upstream, retain_graph=True)[0] for z in (y, expected)))
        exact = op.forward_exact(x)
        parameters = list(op.parameters())
        torch.testing.assert_close(*(torch.autograd.grad(z, parameters, upstream) for z in (y, exact)))


def test_both_ways_of_permuting_are_tested() -> None:
    last = {type(o).__name__ + str(o._convolutions()[-1][1] <= FOLDED_GROUPS) for o in BOTH_FORMS}
    assert last == {f"IGCV{n}Conv2d{folds}" for n in (1, 2, 3) for folds in (True, False)}


@pytest.mark.parametrize("operator", BOTH_FORMS, ids=repr)
def test_counters_agree_on_the_macs_in_a_network(operator: ConvOperator) -> None:
    counted = cross_check(nn.Sequential(operator.float(), nn.ReLU()), (16, 8, 8))
    assert counted.total("conv_only") == operator.macs(8 // operator.stride[0], 8 // operator.stride[1])


@pytest.mark.parametrize(
    ("operator", "convolutions"),
    [
        (IGCV1Conv2d(64, 64, 3, bias=False, primary_partitions=4), 2),
        (IGCV1Conv2d(64, 64, 3, bias=False, primary_partitions=4, secondary="sum"), 1),
        (IGCV2Conv2d(64, 64, 3, bias=False), 3),
        (IGCV3Conv2d(64, 64, 3, bias=False), 3),
    ],
    ids=repr,
)
def test_fans_are_true(operator: ConvOperator, convolutions: int) -> None:
    """He's initialisation doubles the variance with each convolution: no ReLU halves it in between."""
    samples = []
    for _ in range(20):
        operator.reset_parameters("fan_in")
        samples.append(operator(torch.randn(4, 64, 8, 8)).square().mean())
    assert torch.stack(samples).mean().item() == pytest.approx(2**convolutions, rel=0.15)


# IGCV2


@pytest.mark.parametrize(
    ("in_channels", "out_channels", "knobs"),
    [
        (64, 64, {"branch_channels": [8, 8]}),
        (64, 64, {"branch_channels": [4, 4, 4]}),
        (24, 24, {"branch_channels": [2, 3, 4]}),
        (24, 40, {"branch_channels": [4, 2, 3]}),
        (64, 16, {"branch_channels": [2, 32]}),
        (24, 72, {"branch_channels": [2, 3, 4], "channel_multiplier": True}),
        (64, 128, {"channel_multiplier": True}),
        (128, 32, {}),
        (416, 832, {"layers": 4}),
        (7, 5, {"layers": 2}),
    ],
    ids=str,
)
def test_igcv2_has_one_path_for_each_channel_and_filter(in_channels: int, out_channels: int, knobs: dict) -> None:
    operator = IGCV2Conv2d(in_channels, out_channels, 1, **knobs)
    assert count_paths(operator).unique().tolist() == [1]


def test_igcv2_without_the_complementary_condition_is_not_dense() -> None:
    """416 channels and 8 * 8 paths from each, as the size of IGCV2*-C416 suggests."""
    operator = IGCV2Conv2d(416, 416, 1, branch_channels=[8, 8], complementary=False)
    counts = count_paths(operator)
    assert counts.sum(0).unique().tolist() == counts.sum(1).unique().tolist() == [64]
    assert (counts == 0).any()


@pytest.mark.parametrize(("radices", "filters"), [((3, 4), 12), ((2, 3, 2), 12), ((4, 2, 3), 40), ((12,), 5)])
def test_igcv2_changes_one_digit_with_each_convolution(radices: tuple[int, ...], filters: int) -> None:
    """A product of matrices: the l-th is zero but where all digits other than the l-th agree."""
    channels = math.prod(radices)
    operator = IGCV2Conv2d(channels, filters, 1, bias=False, branch_channels=radices, dtype=torch.float64)
    with torch.no_grad():
        operator.weight_channelwise.fill_(1)
    sizes, product = list(radices), torch.eye(channels, dtype=torch.float64)
    for place, weight in enumerate(operator.weights_1x1):
        after = [*sizes]
        after[place] = sizes[place] * len(weight) // channels
        # Branches are ordered by the digits changed before, the last of them first, then by the digits to come.
        order = [*range(place - 1, -1, -1), *range(len(sizes) - 1, place, -1)]
        others = list(itertools.product(*(range(sizes[k]) for k in order)))
        matrix = torch.zeros(math.prod(after), math.prod(sizes), dtype=torch.float64)
        for branch, digits in enumerate(others):
            known = dict(zip(order, digits, strict=True))
            for new, old in itertools.product(range(after[place]), range(sizes[place])):
                row, column = number(known | {place: new}, after), number(known | {place: old}, sizes)
                matrix[row, column] = weight[branch * after[place] + new, old]
        sizes, product = after, matrix @ product
    torch.testing.assert_close(operator.dense_weight()[..., 0, 0], product)
    x = torch.randn(2, channels, 3, 3, dtype=torch.float64)
    torch.testing.assert_close(operator(x), torch.einsum("nc,bchw->bnhw", product, x))


def number(digits: dict[int, int], sizes: list[int]) -> int:
    """The channel with these digits, the first of which counts fastest."""
    return reduce(lambda value, place: value * sizes[place] + digits[place], reversed(range(len(sizes))), 0)


@pytest.mark.parametrize(
    ("channels", "layers", "branch"), [(64, 3, 8), (64, 4, 4), (512, 4, 8), (256, 3, 16), (256, 5, 4), (9, 2, 9)]
)
def test_igcv2_is_balanced_where_the_root_is_whole(channels: int, layers: int, branch: int) -> None:
    operator = IGCV2Conv2d(channels, channels, 3, layers=layers, device="meta")
    assert {weight.shape[1] for weight in operator.weights_1x1} == {branch}
    assert count_weights(operator) == channels * (9 + (layers - 1) * branch)


@pytest.mark.parametrize("channels", [24, 64, 128, 416])
@pytest.mark.parametrize("growth", [1, 2])
def test_igcv2_takes_the_factors_with_the_fewest_weights(channels: int, growth: int) -> None:
    divisors = [d for d in range(2, channels) if channels % d == 0]
    all_factors = [k for k in itertools.product(divisors, repeat=2) if math.prod(k) == channels]
    sizes = [
        count_weights(IGCV2Conv2d(channels, growth * channels, 3, branch_channels=k, device="meta"))
        for k in all_factors
    ]
    assert count_weights(IGCV2Conv2d(channels, growth * channels, 3, device="meta")) == min(sizes)
    assert min(sizes) >= channels * (9 + 2 * channels**0.5)


# IGCV3


@pytest.mark.parametrize(
    ("in_channels", "out_channels", "expansion", "groups"),
    [(16, 16, 6, (2, 2)), (24, 32, 6, (2, 2)), (160, 160, 6, (2, 2)), (12, 20, 2, (3, 4)), (8, 12, 1, (1, 2))],
)
def test_paths_of_igcv3(in_channels: int, out_channels: int, expansion: int, groups: tuple[int, int]) -> None:
    groups_in, groups_out = groups
    operator = IGCV3Conv2d(
        in_channels, out_channels, 1, expansion=expansion, groups_in=groups_in, groups_out=groups_out
    )
    assert count_paths(operator).unique().tolist() == [expansion * in_channels / (groups_in * groups_out)]


def test_igcv3_equals_loops_over_the_definition() -> None:
    channels, filters, expanded = 4, 6, 12
    operator = IGCV3Conv2d(
        channels, filters, 3, (2, 1), (1, 0), expansion=3, groups_in=2, groups_out=3, dtype=torch.float64
    )
    x = torch.randn(2, channels, 4, 6, dtype=torch.float64)
    y = operator.bias[None, :, None, None].repeat(2, 1, 2, 4)
    for e in range(expanded):
        source = (e % 2) * (expanded // 2) + e // 2
        first = source // (expanded // 2) * 2
        middle = sum(operator.weight_expand[source, c] * x[:, first + c] for c in range(2))
        seen = F.conv2d(middle[:, None], operator.weight_depthwise[e, None], None, (2, 1), (1, 0))[:, 0]
        group = e // (expanded // 3)
        for n in range(group * 2, group * 2 + 2):
            y[:, n] += operator.weight_project[n, e % (expanded // 3)] * seen
    torch.testing.assert_close(operator(x), y)


@pytest.mark.parametrize(("channels", "filters", "groups"), [(16, 24, (2, 2)), (24, 32, (2, 4)), (8, 8, (1, 1))])
def test_weights_of_igcv3_by_the_formula(channels: int, filters: int, groups: tuple[int, int]) -> None:
    operator = IGCV3Conv2d(channels, filters, 3, groups_in=groups[0], groups_out=groups[1], device="meta")
    assert count_weights(operator) == 6 * channels * (channels / groups[0] + 9 + filters / groups[1])


@pytest.mark.parametrize(("size", "counted"), [(8, 8), (7, 8)])
def test_macs_of_a_strided_igcv3_have_the_input_of_its_first_convolution(size: int, counted: int) -> None:
    """An odd size counts as the even one above, which has the same output."""
    model = nn.Sequential(IGCV3Conv2d(4, 6, 3, stride=2, padding=1, expansion=2))
    macs = cross_check(model, (4, size, size)).total("conv_only")
    assert macs == counted**2 * 8 * 2 + 16 * (8 * 9 + 6 * 4)
