"""Scores of filters: those with the lowest are removed first."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from convrepro.errors import ConvReproError

#: Accumulates the gradients of the loss in the parameters of a network.
Gradients = Callable[[nn.Module], None]


class Group(Protocol):
    """Filters that can only be removed together (see `pruning.Coupled`)."""

    @property
    def root(self) -> str: ...
    @property
    def number(self) -> int: ...
    @property
    def convs(self) -> Mapping[str, Sequence[int]]: ...
    @property
    def norms(self) -> Mapping[str, Sequence[int]]: ...


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Within the block the network is in evaluation mode; afterwards each module has its mode again."""
    modes = {layer: layer.training for layer in network.modules()}
    try:
        network.eval()
        yield
    finally:
        for layer, mode in modes.items():
            layer.training = mode


def scores(
    network: nn.Module, groups: Sequence[Group], by: str, seed: int, gradients: Gradients | None
) -> dict[str, Tensor]:
    """Returns a score (filters,) in float64 for each group, by its first convolution.

    Of convolutions that are coupled, as by a residual addition, the scores are added.

    - `l1`: the sum of absolute weights of the filter (Li et al. 2017, arXiv 1608.08710, section 3.1).
    - `bn_scale`: the absolute scale of the batch norm (Liu et al. 2017, arXiv 1708.06519, section 3).
    - `taylor`: the square of the sum of weight times gradient (Molchanov et al. 2019, arXiv 1906.10771, equation 8).
    - `random`: uniform in [0, 1), by `seed`.

    Raises ConvReproError for `bn_scale` where a group has no batch norm with a scale, and for `taylor` without
    `gradients`.
    """
    if by == "taylor":
        if gradients is None:
            raise ConvReproError(
                "prune.by=taylor needs gradients of training images, which `train` computes; give weights= of the run "
                "that it wrote"
            )
        network.zero_grad(set_to_none=True)
        gradients(network)
    generator = torch.Generator().manual_seed(seed)
    found = {group.root: _score(network, group, by, generator) for group in groups}
    network.zero_grad(set_to_none=True)
    return found


def _score(network: nn.Module, group: Group, by: str, generator: torch.Generator) -> Tensor:
    if by == "random":
        return torch.rand(group.number, generator=generator, dtype=torch.float64)
    layers: Mapping[str, Sequence[int]] = group.norms if by == "bn_scale" else group.convs
    total = torch.zeros(group.number, dtype=torch.float64)
    scaled = 0
    for name, indices in layers.items():
        weight: Any = network.get_submodule(name).weight
        if weight is not None:
            scaled += 1
            total += _of_layer(weight, by)[list(indices)]
    if not scaled:
        raise ConvReproError(
            f"prune.by=bn_scale needs a batch norm after {group.root}; exclude the layer by prune.exclude, or take l1"
        )
    return total


def _of_layer(weight: nn.Parameter, by: str) -> Tensor:
    values = weight.detach().double().flatten(1) if weight.dim() > 1 else weight.detach().double()[:, None]
    if by != "taylor":
        return values.abs().sum(dim=1)
    slopes = torch.zeros_like(values) if weight.grad is None else weight.grad.double().flatten(1)
    return (values * slopes).sum(dim=1).square()
