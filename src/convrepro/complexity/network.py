"""The cost of the network that a configuration describes."""

import torch

from convrepro import complexity
from convrepro.config.schema import RunConfig
from convrepro.errors import ConvReproError


def count_network(network: torch.nn.Module, cfg: RunConfig, side: int) -> complexity.Count:
    """Counts `network` on one image of the data set, `side` pixels wide and high.

    Raises ConvReproError if the network cannot process such an image, and as `complexity.count` does.
    """
    size = (cfg.data.channels, side, side)
    try:
        return complexity.count(network, size)
    except ConvReproError:
        raise
    except (RuntimeError, ValueError, AssertionError) as error:
        made_for = getattr(network, "pretrained_cfg", {}).get("input_size")
        hint = f"; it was made for {'x'.join(map(str, made_for))}" if made_for else ""
        raise ConvReproError(
            f"{cfg.model} cannot take an image of {'x'.join(map(str, size))} (data.image_size={cfg.data.image_size}): "
            f"{error}{hint}"
        ) from error
