"""Dense networks that are narrower: what an operator competes with at the same cost."""

from collections.abc import Callable
from typing import Any

from convrepro.config.schema import RunConfig
from convrepro.errors import ConvReproError
from convrepro.evidence.counts import count
from convrepro.models.build import build_network
from convrepro.models.sources import argument_defaults

WIDTHS = ("width", "widths", "channels", "dims")
"""Arguments of networks that set their width: a factor, or the channels of the stages."""
STEPS = 9
"""Halvings of the interval in which the factor lies: it is found to within 0.2 %."""


def thinned(cfg: RunConfig, macs: int) -> tuple[str, str]:
    """The override that makes the network of `cfg` so narrow that it has about `macs` MACs, and its title.

    Raises ConvReproError for a network without an argument for its width, and where `macs` is not below its own.
    """
    dense = cfg.model_copy(update={"weights": None})
    name, whole = _width(dense)
    cost = _cost(dense, name, whole)
    if macs >= cost(1.0):
        raise ConvReproError(f"{macs / 1e6:.2f} M MACs are not below the {cost(1.0) / 1e6:.2f} M of the network itself")
    low, high = 0.0, 1.0
    for _ in range(STEPS):
        middle = (low + high) / 2
        low, high = (low, middle) if cost(middle) > macs else (middle, high)
    nearest = min((low, high), key=lambda factor: abs(cost(factor) - macs))
    value = _scaled(whole, nearest)
    text = str(value).replace(" ", "")
    return f"model_args.{name}={text}", f"dense, {name}={text}"


def _width(cfg: RunConfig) -> tuple[str, Any]:
    """The argument for the width of a network, and its value."""
    network, _ = build_network(cfg)
    defaults = argument_defaults(cfg.model, network)
    found = {name: defaults[name] for name in WIDTHS if name in defaults} | dict(cfg.model_args)
    for name in WIDTHS:
        value = found.get(name)
        if isinstance(value, (int, float)) or (isinstance(value, (list, tuple)) and value):
            return name, value
    raise ConvReproError(f"{cfg.model} has no argument for its width, such as {', '.join(WIDTHS)}")


def _scaled(value: Any, factor: float) -> Any:
    if isinstance(value, (list, tuple)):
        return [max(1, round(channels * factor)) for channels in value]
    return max(1, round(value * factor)) if isinstance(value, int) else round(max(value * factor, 0.01), 4)


def _cost(cfg: RunConfig, name: str, whole: Any) -> Callable[[float], int]:
    """The MACs of the network whose width is multiplied by a factor."""

    def macs(factor: float) -> int:
        arguments = {**cfg.model_args, name: _scaled(whole, factor)}
        return int(count(cfg.model_copy(update={"model_args": arguments}))[0].total("macs"))

    return macs
