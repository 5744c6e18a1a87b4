"""Rounding with gradients of one's own: the form for eager execution is that of recorded graphs, to the bit."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from convrepro.ops.fixed_point import FixedPoint
from convrepro.ops.power_of_two import PS, V1, Q
from convrepro.ops.straight_through import straight_through

pytestmark = pytest.mark.unit

ROUNDINGS: dict[str, tuple[Callable[..., Tensor], int]] = {
    "q": (Q(5).weight, 1),
    "ps": (PS(5).weight, 2),
    "v1": (V1().weight, 2),
    "16.16": (FixedPoint(16, 16).quantize, 1),
    "8.8": (FixedPoint(8, 8, nearest=True).quantize, 1),
}
every_rounding = pytest.mark.parametrize("name", ROUNDINGS)


def latents(number: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Numbers on both sides of every threshold, halves and zeros among them."""
    torch.manual_seed(0)
    special = torch.tensor([0.0, -0.0, 0.5, -0.5, 1.5, -1.5, 1e-30, -200.0, 100.0, 0.49999997])
    return [torch.cat((special, 3 * torch.randn(500))).roll(i).to(dtype).requires_grad_() for i in range(number)]


@every_rounding
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_eager_and_compiled_give_the_same_values_and_gradients(name: str, dtype: torch.dtype) -> None:
    torch._dynamo.reset()
    rounding, number = ROUNDINGS[name]
    tensors = latents(number, dtype)
    results = []
    for form in (rounding, torch.compile(rounding, backend="eager", fullgraph=True)):
        value = form(*tensors)
        upstream = torch.linspace(-2, 2, value.numel(), dtype=dtype)
        results.append((value.detach(), *torch.autograd.grad(value, tensors, upstream)))
    for eager, compiled in zip(*results, strict=True):
        torch.testing.assert_close(eager, compiled, rtol=torch.finfo(dtype).eps, atol=0)
    assert torch.equal(results[0][0], results[1][0])


@every_rounding
def test_latents_are_left_alone_and_values_are_new(name: str) -> None:
    rounding, number = ROUNDINGS[name]
    tensors = latents(number)
    before = [t.detach().clone() for t in tensors]
    with torch.no_grad():
        first, second = rounding(*tensors), rounding(*tensors)
        first.zero_()
        assert torch.equal(second, rounding(*tensors))
    assert all(torch.equal(t, b) for t, b in zip(tensors, before, strict=True))


@every_rounding
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("recorded", [True, False])
def test_what_is_not_finite_becomes_nan_there_alone(name: str, value: float, recorded: bool) -> None:
    rounding, number = ROUNDINGS[name]
    for bad in range(number):
        tensors = [t.detach() for t in latents(number)]
        tensors[bad][7] = value
        if recorded:
            result = torch.jit.trace(rounding, tuple(torch.ones(3) for _ in tensors))(*tensors)
        else:
            result = rounding(*tensors)
        assert result.isnan().nonzero().tolist() == [[7]]


@pytest.mark.parametrize("name", ["ps", "v1"])
def test_second_derivatives_take_the_value_as_a_constant(name: str) -> None:
    rounding, _ = ROUNDINGS[name]
    shift, sign = latents(2, torch.float64)
    upstream = torch.ones_like(shift).requires_grad_()
    (grad,) = torch.autograd.grad(rounding(shift, sign), shift, upstream, create_graph=True)
    (second,) = torch.autograd.grad(grad.sum(), upstream)
    torch.testing.assert_close(second, rounding(shift, sign).detach() * math.log(2))


def test_only_latents_that_train_get_a_gradient() -> None:
    shift, sign = latents(2)
    PS(5).weight(shift, sign.detach()).sum().backward()
    assert shift.grad is not None
    x = torch.ones(3, requires_grad=True)
    assert not straight_through(torch.zeros(3), x.detach()).requires_grad
