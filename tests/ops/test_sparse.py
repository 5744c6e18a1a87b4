"""Sparse layers: which weights are left, what training does to them, and cost, against their definitions."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import prune

from convrepro.ops import SparseConv2d, sparse

pytestmark = pytest.mark.unit

GRID = [
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": (3, 2), "padding": (0, 2), "dilation": (2, 1), "groups": 2, "bias": False},
    {"kernel_size": 3, "padding": (2, 1), "stride": (2, 1), "groups": 4},
    {"kernel_size": 3, "padding": 1, "padding_mode": "reflect", "groups": 2},
]


class TestUnstructured:
    @pytest.mark.parametrize("density", [0.01, 0.3, 0.5, 0.999, 1])
    @pytest.mark.parametrize("words", GRID, ids=str)
    def test_keeps_what_torch_prune_keeps(self, density: float, words: dict[str, object]) -> None:
        conv = nn.Conv2d(8, 12, **words)
        operator = SparseConv2d.from_conv(conv, density=density)
        left = round(density * conv.weight.numel())
        prune.l1_unstructured(conv, "weight", amount=conv.weight.numel() - left)
        assert torch.equal(operator.dense_weight(), conv.weight)
        x = torch.randn(2, 8, 6, 7)
        torch.testing.assert_close(operator(x), conv(x))

    def test_a_weight_is_left_at_any_density(self) -> None:
        conv = nn.Conv2d(2, 3, 3)
        dense = SparseConv2d.from_conv(conv, density=1e-9).dense_weight()
        assert dense.flatten().nonzero().flatten().tolist() == [int(conv.weight.abs().argmax())]

    def test_fresh_weights_are_the_largest_of_dense_ones(self) -> None:
        """U(-b, b) with b = 1/sqrt(8*9): at a quarter of the density all are above 3/4 b, or nearly."""
        operator = SparseConv2d(8, 200, 3)
        bound = 72**-0.5
        assert operator.values.abs().max().item() == pytest.approx(bound, rel=1e-2)
        assert operator.values.abs().min().item() == pytest.approx(0.75 * bound, rel=2e-2)

    @pytest.mark.parametrize("words", GRID, ids=str)
    def test_the_counted_form_gives_the_same_however_it_is_cut(
        self, words: dict[str, object], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        operator = SparseConv2d(8, 12, density=0.3, dtype=torch.float64, **words)
        x = torch.randn(2, 8, 6, 7, dtype=torch.float64)
        for gathered in (1, 1000, 10**9):
            monkeypatch.setattr(sparse, "GATHERED", gathered)
            torch.testing.assert_close(operator.forward_exact(x), operator(x))

    def test_filters_without_a_weight(self) -> None:
        conv = nn.Conv2d(3, 4, 3, dtype=torch.float64)
        with torch.no_grad():
            conv.weight[[0, 2]] *= 1e-9
        operator = SparseConv2d.from_conv(conv, density=0.25)
        assert not operator.dense_weight()[[0, 2]].any()
        x = torch.randn(1, 3, 5, 5, dtype=torch.float64)
        torch.testing.assert_close(operator.forward_exact(x), operator(x))


class TestBlock:
    @pytest.mark.parametrize("words", GRID, ids=str)
    def test_is_the_group_convolution(self, words: dict[str, object]) -> None:
        operator = SparseConv2d(8, 16, density=0.5, structure="block", **words)
        conv = nn.Conv2d(8, 16, **{**words, "groups": 2 * words.get("groups", 1)})
        conv.load_state_dict(operator.state_dict())
        x = torch.randn(2, 8, 6, 7)
        assert torch.equal(operator(x), conv(x))
        plain = nn.Conv2d(8, 16, **words)
        plain.load_state_dict({**plain.state_dict(), "weight": operator.dense_weight()})
        if plain.bias is not None:
            plain.bias.data = operator.bias.detach()
        torch.testing.assert_close(operator(x), plain(x))

    @pytest.mark.parametrize("groups", [1, 2])
    def test_conversion_keeps_the_weights_inside_blocks(self, groups: int) -> None:
        conv = nn.Conv2d(8, 12, 3, groups=groups)
        dense = SparseConv2d.from_conv(conv, density=0.5, structure="block").dense_weight()
        for n in range(12):
            for m in range(8 // groups):
                filters, channels = 12 // groups, 8 // groups
                same = (n % filters) // (filters // 2) == m // (channels // 2)
                expected = conv.weight[n, m] if same else torch.zeros(3, 3)
                assert torch.equal(dense[n, m], expected)

    @pytest.mark.parametrize(("density", "blocks"), [(1, 1), (0.5, 2), (0.333, 3), (1 / 3, 3), (1 / 12, 12)])
    def test_number_of_blocks(self, density: float, blocks: int) -> None:
        assert SparseConv2d(12, 24, 3, density=density, structure="block").weight.shape == (24, 12 // blocks, 3, 3)


class TestTraining:
    OPTIMIZERS = (
        lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=0.1),
        lambda parameters: torch.optim.Adam(parameters, lr=0.1, weight_decay=0.1),
        lambda parameters: torch.optim.AdamW(parameters, lr=0.1, weight_decay=0.1),
    )

    @pytest.mark.parametrize("make", OPTIMIZERS)
    @pytest.mark.parametrize(("structure", "density"), [("unstructured", 0.3), ("block", 0.25)])
    def test_zeros_stay_zero_and_the_others_move(self, make: object, structure: str, density: float) -> None:
        operator = SparseConv2d(8, 12, 3, density=density, structure=structure)
        before = operator.dense_weight()
        optimizer = make(operator.parameters())
        for _ in range(5):
            optimizer.zero_grad()
            operator(torch.randn(2, 8, 6, 6)).square().mean().backward()
            optimizer.step()
        after = operator.dense_weight()
        assert torch.equal(after != 0, before != 0)
        assert (after != before)[before != 0].all()

    def test_trajectory_is_that_of_a_masked_dense_weight(self) -> None:
        """SGD with momentum and weight decay on W, used as W * mask: what is under the mask moves alike."""
        conv = nn.Conv2d(4, 6, 3, dtype=torch.float64)
        operator = SparseConv2d.from_conv(conv, density=0.3)
        mask = (operator.dense_weight() != 0).double()
        masked = copy.deepcopy(conv)
        words = {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.01}
        optimizers = [torch.optim.SGD(module.parameters(), **words) for module in (operator, masked)]

        def dense(x: Tensor) -> Tensor:
            return F.conv2d(x, masked.weight * mask, masked.bias)

        for _ in range(10):
            x = torch.randn(2, 4, 6, 6, dtype=torch.float64)
            for forward, optimizer in zip((operator, dense), optimizers, strict=True):
                optimizer.zero_grad()
                (forward(x) - 1).square().mean().backward()
                optimizer.step()
        torch.testing.assert_close(operator.dense_weight(), (masked.weight * mask).detach())

    def test_the_places_travel_with_the_state(self) -> None:
        operator, other = (SparseConv2d(4, 6, 3, density=0.3) for _ in range(2))
        other.load_state_dict(operator.state_dict())
        assert torch.equal(other.dense_weight(), operator.dense_weight())
        assert {name for name, _ in operator.named_parameters()} == {"values", "bias"}


class TestCost:
    def test_unstructured(self) -> None:
        """216 places, 65 weights; a map of places has 216 bits, the numbers of 10 places have 80."""
        operator = SparseConv2d(4, 6, 3, density=0.3)
        assert operator.macs(5, 7) == operator.multiplications(5, 7) == 35 * 65
        assert operator.weight_bits() == 65 * 32 + 216
        assert SparseConv2d(4, 6, 3, density=10 / 216).weight_bits() == 10 * 32 + 10 * 8

    def test_block(self) -> None:
        operator = SparseConv2d(4, 6, 3, density=0.5, structure="block")
        assert operator.macs(5, 7) == operator.multiplications(5, 7) == 35 * 6 * 2 * 9
        assert operator.weight_bits() == 6 * 2 * 9 * 32
