"""Low-rank layers: nearness of the two factors, rank by energy, and cost, against their definitions."""

import copy

import pytest
import torch
from torch import Tensor, nn

from convrepro.errors import ConvReproError
from convrepro.models.surgery import replace_convs
from convrepro.ops import LowRankConv2d

pytestmark = pytest.mark.unit

SCHEMES = ("channel", "spatial")


@pytest.fixture
def conv() -> nn.Conv2d:
    return nn.Conv2d(4, 6, (3, 5), padding=1, dtype=torch.float64)


def matrix(weight: Tensor, scheme: str) -> Tensor:
    """The matrix that a scheme factors: an entry for each entry of a second filter and each of a first one."""
    n, m, kh, kw = weight.shape
    if scheme == "channel":
        return weight.reshape(n, m * kh * kw)
    entries = [weight[i, c, u, v] for i in range(n) for v in range(kw) for c in range(m) for u in range(kh)]
    return torch.stack(entries).reshape(n * kw, m * kh)


@pytest.mark.parametrize("scheme", SCHEMES)
class TestFromConv:
    def test_no_pair_of_this_rank_is_nearer(self, conv: nn.Conv2d, scheme: str) -> None:
        """Eckart and Young: the least squared distance at rank R is the sum of the squared singular values beyond R."""
        values = torch.linalg.svdvals(matrix(conv.weight.detach(), scheme)).square()
        distances = []
        for rank in range(1, len(values) + 1):
            operator = LowRankConv2d.from_conv(conv, rank=rank, scheme=scheme)
            distances.append(float((operator.dense_weight() - conv.weight.detach()).square().sum()))
            assert distances[-1] == pytest.approx(float(values[rank:].sum()), rel=1e-9, abs=1e-20)
        assert distances == sorted(distances, reverse=True)
        assert distances[-1] < 1e-25 < distances[-2]

    def test_the_two_share_the_singular_values_alike(self, conv: nn.Conv2d, scheme: str) -> None:
        operator = LowRankConv2d.from_conv(conv, rank=3, scheme=scheme)
        values = torch.linalg.svdvals(matrix(conv.weight.detach(), scheme))[:3]
        torch.testing.assert_close(operator.weight_first.detach().square().sum((1, 2, 3)), values)
        torch.testing.assert_close(operator.weight_second.detach().square().sum((0, 2, 3)), values)

    @pytest.mark.parametrize("energy", [0.01, 0.3, 0.5, 0.9, 0.99, 1.0, 1])
    def test_energy_takes_the_least_rank_that_keeps_it(self, conv: nn.Conv2d, scheme: str, energy: float) -> None:
        values = torch.linalg.svdvals(matrix(conv.weight.detach(), scheme)).square().tolist()
        enough = [rank for rank in range(1, len(values) + 1) if sum(values[:rank]) >= energy * sum(values) - 1e-12]
        operator = LowRankConv2d.from_conv(conv, rank=None, energy=energy, scheme=scheme)
        assert operator.inner_channels == enough[0]
        assert (operator.rank, operator.energy) == (None, energy)
        assert f"rank=None, energy={energy}, scheme={scheme!r}, inner_channels={enough[0]}" in repr(operator)

    @pytest.mark.parametrize(("rank", "inner"), [(1, 1), (1.0, None), (0.5, 0.5), (0.001, 1), (3, 3)])
    def test_rank_is_a_number_or_a_share(self, conv: nn.Conv2d, scheme: str, rank: float, inner: float | None) -> None:
        full = {"channel": 6, "spatial": 12}[scheme]
        expected = {None: full, 0.5: full // 2}.get(inner, inner)
        operator = LowRankConv2d.from_conv(conv, rank=rank, scheme=scheme)
        assert operator.inner_channels == expected == len(operator.weight_first)

    def test_a_weight_of_low_rank_is_kept(self, conv: nn.Conv2d, scheme: str) -> None:
        source = LowRankConv2d(4, 6, (3, 5), rank=2, scheme=scheme, dtype=torch.float64)
        with torch.no_grad():
            conv.weight.copy_(source.dense_weight())
        assert LowRankConv2d.from_conv(conv, rank=None, energy=1 - 1e-12, scheme=scheme).inner_channels == 2
        torch.testing.assert_close(
            LowRankConv2d.from_conv(conv, rank=2, scheme=scheme).dense_weight(), conv.weight.detach()
        )


def test_energy_chooses_a_rank_for_each_layer() -> None:
    flat, steep = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
    with torch.no_grad():
        steep.weight.copy_(LowRankConv2d(8, 8, 3, rank=1).dense_weight() + 1e-4 * torch.randn(8, 8, 3, 3))
    network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), flat, steep)
    replace_convs(network, "low_rank", "dense_kxk", {"rank": None, "energy": 0.9}, convert=True)
    assert network[2].inner_channels == 1 < network[1].inner_channels


def test_energy_without_weights_is_refused_with_the_layers_name() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3))
    before = copy.deepcopy(network)
    with pytest.raises(ConvReproError, match=r"layer '1': energy=0.9 needs trained weights: start from weights"):
        replace_convs(network, "low_rank", "dense_kxk", {"rank": None, "energy": 0.9})
    assert repr(network) == repr(before)


@pytest.mark.parametrize(("rank", "energy"), [(0.25, 0.9), (None, 0), (None, 1.5), (None, None)])
def test_bad_knobs_of_a_conversion(conv: nn.Conv2d, rank: float | None, energy: float | None) -> None:
    with pytest.raises(ValueError, match=r"rank=.*valid: |energy=.*valid: "):
        LowRankConv2d.from_conv(conv, rank=rank, energy=energy)


class TestCost:
    def test_channel(self) -> None:
        operator = LowRankConv2d(4, 6, (3, 5), rank=2)
        assert operator.macs(7, 9) == 7 * 9 * 2 * (4 * 15 + 6)
        assert operator.weight_bits() == 32 * 2 * (4 * 15 + 6)

    def test_spatial(self) -> None:
        """Stride 1 and padding 2 for 5 columns: as many columns between as in the output."""
        operator = LowRankConv2d(4, 6, (3, 5), padding=(1, 2), rank=2, scheme="spatial")
        assert operator.macs(7, 9) == 7 * 9 * 2 * (4 * 3 + 6 * 5)
        assert operator.weight_bits() == 32 * 2 * (4 * 3 + 6 * 5)

    @pytest.mark.parametrize("kernel", [1, 2, 3, 5])
    @pytest.mark.parametrize("stride", [1, 2, 3])
    @pytest.mark.parametrize("padding", [0, 1, 2, 4])
    @pytest.mark.parametrize("dilation", [1, 2])
    def test_columns_between_are_those_that_windows_of_the_widest_input_reach(
        self, kernel: int, stride: int, padding: int, dilation: int
    ) -> None:
        words = {"stride": (1, stride), "padding": (0, padding), "dilation": (1, dilation)}
        conv = nn.Conv2d(1, 1, (1, kernel), **words)
        operator = LowRankConv2d(1, 1, (1, kernel), rank=1, scheme="spatial", **words)
        width_of = {}  # output width -> widest input
        for width in range(max(1, dilation * (kernel - 1) + 1 - 2 * padding), 30):
            width_of[conv(torch.zeros(1, 1, 1, width)).shape[3]] = width
        for out_w, widest in list(width_of.items())[:-1]:
            reached = (out_w - 1) * stride + dilation * (kernel - 1) - padding + 1
            between = max(1, min(widest, reached))
            assert operator.macs(1, out_w) == between + out_w * kernel
            x = torch.randn(1, 1, 1, widest)
            torch.testing.assert_close(operator.forward_exact(x), operator(x))
