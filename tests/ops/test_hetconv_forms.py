"""HetConv's fused form gives what the plain form gives, outputs and gradients, and is taken only where it fits."""

import itertools

import pytest
import torch
from torch import nn

from convrepro.ops import HetConv2d
from convrepro.ops.kxk_plus_1x1 import fits, packed

pytestmark = pytest.mark.unit

SHAPES = [(2, 8, 8), (4, 8, 16), (8, 16, 8), (2, 48, 32), (8, 64, 64), ("out", 8, 8), (16, 16, 32)]
WORDS = [
    {"padding": 1},
    {"padding": 1, "stride": 2},
    {"padding": 2, "dilation": 2, "bias": False},
    {"kernel_size": (3, 5), "stride": (1, 2)},
    {"padding": (2, 0), "padding_mode": "reflect"},
]


def pair_of_forms(p, channels, filters, arrangement="contiguous", **words):
    words = {"kernel_size": 3, "dtype": torch.float64, **words}
    plain, fused = (
        HetConv2d(channels, filters, **words, p=p, arrangement=arrangement, form=form) for form in ("plain", "fused")
    )
    fused.load_state_dict(plain.state_dict())
    return plain, fused


def images(channels, batch=2, dtype=torch.float64):
    return torch.randn(batch, channels, 7, 6, dtype=dtype).to(memory_format=torch.channels_last)


@pytest.mark.parametrize("arrangement", ["contiguous", "shifted"])
@pytest.mark.parametrize("words", WORDS, ids=str)
@pytest.mark.parametrize(("p", "channels", "filters"), SHAPES)
def test_outputs_and_gradients_are_those_of_the_plain_form(p, channels, filters, words, arrangement):
    torch.manual_seed(0)
    plain, fused = pair_of_forms(p, channels, filters, arrangement, **words)
    x = images(channels).requires_grad_()
    expected, y = plain(x), fused(x)
    torch.testing.assert_close(y, expected)
    assert y.is_contiguous(memory_format=torch.channels_last)
    upstream = torch.randn_like(y)
    for name, a, b in zip(
        ("input", *dict(plain.named_parameters())),
        torch.autograd.grad(expected, [x, *plain.parameters()], upstream),
        torch.autograd.grad(y, [x, *fused.parameters()], upstream.contiguous()),
        strict=True,
    ):
        torch.testing.assert_close(b, a, msg=lambda text, name=name: f"{name}: {text}")


def test_only_the_gradients_that_are_asked_for_are_computed():
    plain, fused = pair_of_forms(4, 8, 8, padding=1)
    x, upstream = images(8), torch.randn(2, 8, 7, 6, dtype=torch.float64)
    for chosen in itertools.combinations(dict(fused.named_parameters()), 2):
        for operator in (plain, fused):
            for name, parameter in operator.named_parameters():
                parameter.requires_grad_(name in chosen)
                parameter.grad = None
            operator(x).backward(upstream)
        for (name, a), b in zip(plain.named_parameters(), fused.parameters(), strict=True):
            assert (b.grad is None) == (name not in chosen)
            if b.grad is not None:
                torch.testing.assert_close(b.grad, a.grad)


def test_gradients_are_those_of_finite_differences():
    _, fused = pair_of_forms(4, 8, 8, padding=1)
    assert torch.autograd.gradcheck(fused, (images(8, batch=1).requires_grad_(),))


@pytest.mark.parametrize(("channels_a_group", "groups"), [(2, 8), (4, 4), (3, 6), (1, 16), (8, 4), (2, 3)])
def test_packing_changes_the_groups_and_not_the_function(channels_a_group, groups):
    channels = channels_a_group * groups
    conv = nn.Conv2d(channels, 2 * channels, 3, groups=groups, bias=False)
    weight, merged = packed(conv.weight, groups)
    assert merged == groups if channels_a_group in (1, 8) else weight.shape[1] >= min(8, channels)
    assert weight.shape[1] * merged == channels
    x = images(channels, dtype=torch.float32)
    torch.testing.assert_close(nn.functional.conv2d(x, weight, groups=merged), conv(x), rtol=1e-5, atol=1e-5)


def test_the_choice_is_automatic_and_can_be_forced():
    operator = HetConv2d(8, 8, 3, padding=1, p=4)
    assert "form='auto'" in repr(operator)
    nchw = torch.randn(2, 8, 7, 6)
    assert fits(nchw.to(memory_format=torch.channels_last))
    assert not fits(nchw)
    forced = HetConv2d(8, 8, 3, padding=1, p=4, form="fused")
    with pytest.raises(ValueError, match="needs a CPU, an input in channels_last"):
        forced(nchw)
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(ValueError, match="no autocast"):
        forced(nchw.to(memory_format=torch.channels_last))
    with pytest.raises(ValueError, match="form='fast' is unknown; valid: auto, plain, fused"):
        HetConv2d(8, 8, 3, form="fast")


@pytest.mark.parametrize("how", ["autocast", "nchw", "traced", "beyond", "compiled"])
def test_where_the_fused_form_does_not_fit_the_plain_one_is_taken(how):
    operator = HetConv2d(8, 32, 3, padding=1, p=16 if how == "beyond" else 4)
    plain = HetConv2d(8, 32, 3, padding=1, p=operator.p, form="plain")
    plain.load_state_dict(operator.state_dict())
    x = images(8, dtype=torch.float32)
    if how == "autocast":
        with torch.autocast("cpu", torch.bfloat16):
            y, expected = operator(x), plain(x)
    elif how == "nchw":
        y, expected = operator(x.contiguous()), plain(x.contiguous())
    elif how == "traced":
        y, expected = torch.jit.trace(operator, x)(x), torch.jit.trace(plain, x)(x)
    elif how == "compiled":
        y, expected = (torch.compile(o, backend="eager", fullgraph=True)(x) for o in (operator, plain))
    else:
        y, expected = operator(x), plain(x)
    assert torch.equal(y, expected)


@pytest.mark.parametrize("shape", [(0, 8, 7, 6), (1, 8, 1, 1), (3, 8, 1, 5)])
def test_odd_shapes(shape):
    plain, fused = pair_of_forms(4, 8, 8, padding=1)
    x = torch.randn(shape, dtype=torch.float64).to(memory_format=torch.channels_last)
    torch.testing.assert_close(fused(x), plain(x))
    fused(x).sum().backward()
