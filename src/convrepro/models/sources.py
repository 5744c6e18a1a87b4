"""Networks by name: those of timm and of the zoo, torchvision's classifiers, and factories of a user's own modules.

`resnet18` is timm's or the zoo's, `torchvision:resnet18` is torchvision's, and `my_package.models:factory` calls
`factory(num_classes=..., in_chans=..., **model_args)` of a module in a plugin's package.
"""

import difflib
import importlib
import inspect
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import timm
import torchvision
from torch import Tensor, nn

import convrepro.models.zoo  # noqa: F401 (registers the zoo's models with timm)
from convrepro.config import plugins
from convrepro.errors import ConvReproError
from convrepro.models.state_dict import differences
from convrepro.ops import conv_arguments

RESERVED = {
    "num_classes": "the data set determines it",
    "in_chans": "the data set determines it",
    "pretrained": "give a checkpoint by weights",
    "checkpoint_path": "give a checkpoint by weights",
    "weights": "give a checkpoint by weights",
}

READERS = ("checkpoint_filter_fn", "_filter_fn", "_filter_torchvision_pretrained")
"""Names of the functions in timm's modules that rename the keys of checkpoints of other projects (torchvision's)."""

TORCHVISION = "torchvision"
_FACTORY = re.compile(r"[\w.]+:\w+", re.ASCII)
AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")
"""Prefixes of the keys of auxiliary classifiers, which are trained by a loss of their own and are left out here."""


def list_models(pattern: str = "*") -> list[str]:
    """Returns the names of the models of timm and of the zoo that match a shell pattern, sorted; for a pattern that
    begins with `torchvision:`, those of torchvision.
    """
    source, _, rest = pattern.partition(":")
    if source == TORCHVISION:
        return [f"{TORCHVISION}:{name}" for name in _classifiers(rest)]
    return timm.list_models(pattern)


def check_model(name: str) -> None:
    """Raises ConvReproError for a model that does not exist.

    For a factory this is a module that no plugin provides or that cannot be imported, and a name in it that is missing
    or is no function.
    """
    source, _, rest = name.partition(":")
    if source == TORCHVISION:
        if rest not in _classifiers():
            raise ConvReproError(f"torchvision has no classifier {rest!r}{_near(rest, _classifiers())}")
    elif _FACTORY.fullmatch(name):
        _factory(name)
    elif not timm.is_model(name):
        raise ConvReproError(f"model {name!r} is neither in timm nor in the zoo{_meant(name)}")


def create(name: str, num_classes: int, in_chans: int, model_args: Mapping[str, Any]) -> nn.Module:
    """Builds the model for images (B, in_chans, H, W) and logits (B, num_classes).

    Raises ConvReproError for arguments that the model rejects, and for a factory that returns no module.
    """
    for key in model_args:
        if key in RESERVED:
            raise ConvReproError(f"model_args.{key} cannot be given: {RESERVED[key]}")
    try:
        network = _creator(name)(num_classes=num_classes, in_chans=in_chans, **model_args)
    except (TypeError, ValueError, RuntimeError, AssertionError, KeyError) as error:
        given = {"num_classes": num_classes, "in_chans": in_chans, **model_args}
        arguments = ", ".join(f"{key}={value!r}" for key, value in given.items())
        raise ConvReproError(f"model {name} cannot be built with {arguments}: {error}") from error
    if not isinstance(network, nn.Module):
        raise ConvReproError(f"model {name} must return a torch.nn.Module; it returns a {type(network).__name__}")
    return network


def argument_defaults(name: str, network: nn.Module) -> dict[str, Any]:
    """Returns the arguments that `model_args` can set, as far as signatures tell, with their defaults.

    These are the parameters of the class of `network`, which is the model `name`; for a factory, its own parameters,
    and those of the class where it takes any keyword.
    """
    signature = inspect.signature(type(network).__init__)
    found = {parameter.name: parameter.default for parameter in signature.parameters.values()}
    if _FACTORY.fullmatch(name) and name.partition(":")[0] != TORCHVISION:
        own = inspect.signature(_factory(name)).parameters.values()
        open_ended = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in own)
        found = (found if open_ended else {}) | {parameter.name: parameter.default for parameter in own}
    return found


def renamed(name: str, state: dict[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """Returns `state` with the keys of `network`.

    If its keys do not fit, they are renamed by the reader of timm's module that defines the network, if it has one.
    From checkpoints of torchvision auxiliary classifiers are left out.
    """
    if not differences(network, state):
        return state
    source, colon, _ = name.partition(":")
    if colon:
        own = source != TORCHVISION
        return state if own else {key: t for key, t in state.items() if not key.startswith(AUXILIARY)}
    module = sys.modules[timm.model_entrypoint(name).__module__]
    reader = next((getattr(module, function) for function in READERS if hasattr(module, function)), None)
    if reader is None:
        return state
    arguments = (dict(state), network)[: len(inspect.signature(reader).parameters)]
    try:
        return reader(*arguments)
    except Exception:  # The readers do not check their keys and fail in many ways on those of another network.
        return state


def _creator(name: str) -> Callable[..., Any]:
    source, colon, rest = name.partition(":")
    if colon and source != TORCHVISION:
        return _factory(name)
    return lambda **arguments: _of_torchvision(rest, **arguments) if colon else timm.create_model(name, **arguments)


def _classifiers(pattern: str | None = None) -> list[str]:
    return torchvision.models.list_models(module=torchvision.models, include=pattern)


def _of_torchvision(name: str, num_classes: int, in_chans: int, **arguments: Any) -> nn.Module:
    """Builds torchvision's network without auxiliary classifiers.

    A first convolution for another number of channels than three has PyTorch's default initialisation.
    """
    if name in ("googlenet", "inception_v3"):
        arguments = {"init_weights": True, **arguments, "aux_logits": False}
    network = torchvision.models.get_model(name, weights=None, num_classes=num_classes, **arguments)
    if in_chans != 3:
        first, conv = next((n, m) for n, m in network.named_modules() if isinstance(m, nn.Conv2d))
        network.set_submodule(first, nn.Conv2d(**conv_arguments(conv) | {"in_channels": in_chans}))
    return network


def _factory(name: str) -> Callable[..., Any]:
    module, _, attribute = name.partition(":")
    if not plugins.provides(module):
        raise ConvReproError(
            f"model {name!r} is a function of the module {module}, which belongs to no plugin; "
            f"give --plugin {module} if you trust it, or torchvision:NAME for a network of torchvision"
        )
    try:
        factory = getattr(importlib.import_module(module), attribute, None)
    except Exception as error:  # the module is a user's, and can raise anything
        reason = " ".join(str(error).split())
        raise ConvReproError(f"model {name}: {module} cannot be imported: {type(error).__name__}: {reason}") from error
    if not callable(factory):
        what = "is not a function" if factory is not None else "does not exist"
        raise ConvReproError(f"model {name}: {attribute} {what} in {module}; write module:function")
    return factory


def _meant(name: str) -> str:
    """What `name` may have been meant for; that may be a factory of a plugin, with a dot for the colon."""
    module, _, function = name.rpartition(".")
    if module and plugins.provides(module):
        return f"; did you mean {module}:{function}?"
    return _near(name, timm.list_models())


def _near(name: str, names: Sequence[str]) -> str:
    near = [n for n in names if n.startswith(name)][:3] or difflib.get_close_matches(name, names, n=3)
    return f"; did you mean {', '.join(near)}?" if near else ""
