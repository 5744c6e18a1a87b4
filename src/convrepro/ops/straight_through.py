"""The straight-through estimator: the value of a step function with the gradient of the identity."""

from typing import Any

import torch
from torch import Tensor


def straight_through(value: Tensor, latent: Tensor) -> Tensor:
    """Returns `value`, bit for bit, and passes the gradient of the result to `latent` unchanged.

    Both have the same shape and dtype. `value` must not require a gradient and is overwritten, so that the caller must
    not use it again. Where `latent` is NaN or infinite the result is NaN; otherwise the step function could turn a
    diverged number into an ordinary one.
    """
    if plain_only():
        return (latent - latent.detach()).add_(value)
    return _StraightThrough.apply(value, latent)


def scaled_through(value: Tensor, latent: Tensor, direct: Tensor, scale: float) -> Tensor:
    """Returns `straight_through(value, direct)`; `latent` gets the gradient multiplied by `value` and by `scale`."""
    if plain_only():
        return torch.addcmul(straight_through(value, direct), latent - latent.detach(), value, value=scale)
    return _ScaledThrough.apply(value, latent, direct, scale)


def plain_only() -> bool:
    """Returns whether a graph is being compiled or traced, which cannot contain a custom autograd function."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


def _spoil_(value: Tensor, latent: Tensor) -> Tensor:
    """Sets `value` to NaN where `latent` is not finite, by adding zero times `latent` in one pass over the memory."""
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
