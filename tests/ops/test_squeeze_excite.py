"""Squeeze-and-excitation against the equations of arXiv 1709.01507, section 3."""

import copy
import math

import pytest
import torch
from fvcore.nn import FlopCountAnalysis
from torch import nn

from convrepro.ops import DepthwisePointwise, HetConv2d, SqueezeExcite, SqueezeExciteConv

pytestmark = pytest.mark.unit


def test_equals_the_paper_s_equations() -> None:
    channels, hidden, height, width = 6, 2, 3, 4
    se = SqueezeExcite(channels, 3).double()
    x = torch.randn(2, channels, height, width, dtype=torch.float64)
    y = se(x)
    first, first_bias = se.squeeze.weight.tolist(), se.squeeze.bias.tolist()
    second, second_bias = se.excite.weight.tolist(), se.excite.bias.tolist()
    for b in range(2):
        z = [sum(sum(row) for row in x[b, c].tolist()) / (height * width) for c in range(channels)]
        h = [max(0.0, first_bias[j] + sum(first[j][c] * z[c] for c in range(channels))) for j in range(hidden)]
        for c in range(channels):
            gate = 1 / (1 + math.exp(-second_bias[c] - sum(second[c][j] * h[j] for j in range(hidden))))
            torch.testing.assert_close(y[b, c], x[b, c] * gate)


@pytest.mark.parametrize(("channels", "reduction"), [(64, 8), (12, 1), (16, 16)])
def test_macs_are_those_of_its_two_linear_layers(channels: int, reduction: int) -> None:
    se = SqueezeExcite(channels, reduction)
    counted = FlopCountAnalysis(se, torch.randn(1, channels, 5, 5)).unsupported_ops_warnings(False).by_operator()
    assert se.macs() == counted["linear"] == 2 * channels**2 // reduction


@pytest.mark.parametrize("reduction", [5, 0, 24, 4.0])
def test_refuses_a_reduction_that_does_not_divide(reduction: float) -> None:
    message = f"reduction={reduction} must divide channels=12; valid: 1, 2, 3, 4, 6, 12"
    with pytest.raises(ValueError, match=message):
        SqueezeExcite(12, reduction)
    with pytest.raises(ValueError, match=message):
        SqueezeExciteConv(nn.Conv2d(4, 12, 3), reduction)


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(4, 8, 3, padding=1),
        HetConv2d(4, 8, 3, padding=1, p=2, arrangement="shifted"),
        DepthwisePointwise(4, 8, 3, padding=1),
    ],
    ids=lambda conv: type(conv).__name__,
)
def test_scales_what_any_operator_gives(conv: nn.Module) -> None:
    wrapped = SqueezeExciteConv(copy.deepcopy(conv), 4)
    x = torch.randn(2, 4, 6, 5)
    ratio = wrapped(x) / conv(x)
    torch.testing.assert_close(ratio, ratio[..., :1, :1].expand_as(ratio))
    assert ratio.min() > 0
    assert ratio.max() < 1
    wrapped(x).square().sum().backward()
    assert [name for name, p in wrapped.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_keeps_memory_format_dtype_device_and_empty_batches() -> None:
    wrapped = SqueezeExciteConv(nn.Conv2d(4, 8, 3, dtype=torch.float64), 4)
    x = torch.randn(2, 4, 6, 5, dtype=torch.float64)
    assert wrapped(x).is_contiguous()
    last = wrapped.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
    assert last.is_contiguous(memory_format=torch.channels_last)
    assert wrapped(x[:0]).shape == (0, 8, 4, 3)
    assert SqueezeExciteConv(nn.Conv2d(4, 8, 3, device="meta"), 4).se.excite.weight.is_meta


def test_traces_compiles_and_runs_under_autocast() -> None:
    torch._dynamo.reset()
    wrapped = SqueezeExciteConv(nn.Conv2d(4, 8, 3), 4).eval()
    x = torch.randn(2, 4, 6, 5)
    with torch.no_grad():
        y = wrapped(x)
        torch.testing.assert_close(torch.jit.trace(wrapped, x[:1])(x), y)
        torch.testing.assert_close(torch.compile(wrapped, backend="eager", fullgraph=True)(x), y)
        with torch.autocast("cpu", torch.bfloat16):
            half = wrapped(x)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), y, rtol=0, atol=0.05)
