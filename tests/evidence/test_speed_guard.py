"""Gross regressions of speed: ratios with wide margins, of one layer. The goals themselves are in `bench/`."""

import pytest
import torch
from torch import nn

from bench.formulations import IndexedIgc, MaskedHetConv
from convrepro.evidence.speed import in_turns
from convrepro.ops import ConvOperator, HetConv2d, IGCV1Conv2d


def learning(layer: nn.Module, channels: int, side: int):
    """Forward and backward of 32 images in channels_last."""
    layer = layer.to(memory_format=torch.channels_last)
    x = torch.randn(32, channels, side, side).to(memory_format=torch.channels_last).requires_grad_()
    return lambda: layer(x).sum().backward()


@pytest.mark.parametrize(
    ("operator", "side"),
    [
        (HetConv2d(128, 128, 3, padding=1, p=16), 16),
        (IGCV1Conv2d(192, 192, 3, padding=1, bias=False, primary_partitions=24), 8),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_layer_takes_clearly_less_time_than_the_dense_one(operator: ConvOperator, side: int) -> None:
    channels = operator.in_channels
    dense = nn.Conv2d(channels, channels, 3, padding=1, bias=operator.bias is not None)
    assert in_turns(learning(operator, channels, side), learning(dense, channels, side), rounds=5).median < 0.9


def test_what_hetconv_is_timed_against_is_hetconv() -> None:
    operator = HetConv2d(8, 16, 3, stride=2, padding=1, p=4)
    masked = MaskedHetConv(operator)
    with torch.no_grad():
        masked.kxk.weight.copy_(operator.weight_kxk)
        masked.kxk.bias.copy_(operator.bias)
        masked.pointwise.weight.copy_(operator.dense_weight()[:, :, 1:2, 1:2])
    x = torch.randn(2, 8, 9, 7)
    torch.testing.assert_close(masked(x), operator(x))


def test_what_igc_is_timed_against_is_igc() -> None:
    operator = IGCV1Conv2d(8, 16, 3, padding=1, bias=False, primary_partitions=4)
    indexed = IndexedIgc(operator)
    indexed.primary.weight = operator.weight_primary
    indexed.secondary.weight = operator.weight_secondary
    x = torch.randn(2, 8, 9, 7)
    torch.testing.assert_close(indexed(x), operator(x))
