"""The straight-through estimator: a step function's value with the gradient of the identity."""

from typing import Any

import torch
from torch import Tensor


def straight_through(value: Tensor, latent: Tensor) -> Tensor:
    """`value` in the forward pass, bit for bit; in the backward pass the gradient goes to `latent` unchanged.

    Both have the same shape and dtype; `value` carries no gradient, belongs to nobody else and is overwritten. Where
    `latent` is NaN or infinite the result is NaN, so that a step that would turn a diverged number into an ordinary one
    cannot hide it.
    """
    if plain_only():
        return (latent - latent.detach()).add_(value)
    return _StraightThrough.apply(value, latent)


def scaled_through(value: Tensor, latent: Tensor, direct: Tensor, scale: float) -> Tensor:
    """As `straight_through(value, direct)`, and `latent` gets the gradient times `value` times `scale`."""
    if plain_only():
        return torch.addcmul(straight_through(value, direct), latent - latent.detach(), value, value=scale)
    return _ScaledThrough.apply(value, latent, direct, scale)


def plain_only() -> bool:
    """Whether a graph is being recorded, which takes arithmetic and no autograd step of our own."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


def _spoil_(value: Tensor, latent: Tensor) -> Tensor:
    """Zero times `latent` added: nothing, but NaN where it is not finite; one pass over memory."""
    return value.add_(latent, alpha=0)


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, latent: Tensor) -> Tensor:
        ctx.mark_dirty(value)
        return _spoil_(value, latent)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor]:
        return None, grad


class _ScaledThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, latent: Tensor, direct: Tensor, scale: float) -> Tensor:
        ctx.mark_dirty(value)
        ctx.scale = scale
        _spoil_(_spoil_(value, latent), direct)
        ctx.save_for_backward(value)
        return value

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor | None, Tensor | None, None]:
        (value,) = ctx.saved_tensors
        scaled = (grad * value.detach()).mul_(ctx.scale) if ctx.needs_input_grad[1] else None
        return None, scaled, grad, None
