"""The cost of the network that a configuration describes."""

import torch

from convrepro import complexity
from convrepro.complexity.tracing import UnfitImageError
from convrepro.config.schema import RunConfig
from convrepro.errors import ConvReproError


def count_network(network: torch.nn.Module, cfg: RunConfig, side: int) -> complexity.Count:
    """Counts `network` on one image of the data set, `side` pixels wide and high.

    Raises ConvReproError if the network cannot process such an image, and as `complexity.count` does.
    """
    try:
        return complexity.count(network, (cfg.data.channels, side, side))
    except UnfitImageError as error:
        raise ConvReproError(f"{cfg.model} with data.image_size={cfg.data.image_size}: {error}") from error
