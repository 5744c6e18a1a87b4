"""The cost of the network that a configuration describes."""

import torch

from convrepro import complexity
from convrepro.config.schema import RunConfig
from convrepro.errors import ConvReproError


def count_network(network: torch.nn.Module, cfg: RunConfig, side: int) -> complexity.Count:
    """The network's cost on one image of the data, `side` pixels wide and high.

    Raises ConvReproError where the network cannot take such an image, and as `complexity.count` does.
    """
    size = (cfg.data.channels, side, side)
    try:
        return complexity.count(network, size)
    except ConvReproError:
        raise
    except (RuntimeError, ValueError, AssertionError) as error:
        own = "x".join(map(str, network.pretrained_cfg["input_size"]))
        raise ConvReproError(
            f"{cfg.model} cannot take an image of {'x'.join(map(str, size))} (data.image_size={cfg.data.image_size}): "
            f"{error}; it was made for {own}"
        ) from error
