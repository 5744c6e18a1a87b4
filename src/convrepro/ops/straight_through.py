"""The straight-through estimator: a step function's value with the gradient of the identity."""

from torch import Tensor


def straight_through(value: Tensor, latent: Tensor) -> Tensor:
    """`value` in the forward pass, bit for bit; in the backward pass the gradient goes to `latent` unchanged.

    Both have the same shape and dtype; `value` carries no gradient. Where `latent` is NaN or infinite the result is
    NaN, so that a step that would turn a diverged number into an ordinary one cannot hide it.
    """
    return (latent - latent.detach()).add_(value)
