"""Builds a network: any timm model or one of the zoo, its convolutions replaced, its weights loaded."""

import difflib
import pickle
from collections.abc import Mapping
from pathlib import Path

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

import convrepro.zoo  # noqa: F401 (registers the zoo's models with timm)
from convrepro.errors import ConvReproError
from convrepro.surgery import SurgeryReport, replace_convs

WRAPPERS = ("network.", "module.", "_orig_mod.")
"""What Lightning, DataParallel and `torch.compile` put before a network's own keys."""

RESERVED = {
    "num_classes": "the data set gives it",
    "in_chans": "the data set gives it",
    "pretrained": "give a checkpoint by weights",
    "checkpoint_path": "give a checkpoint by weights",
}


def list_models(pattern: str = "*") -> list[str]:
    """Names of timm's models and the zoo's that match a shell pattern, sorted."""
    return timm.list_models(pattern)


def build(
    name: str,
    *,
    conv: Mapping[str, object],
    num_classes: int,
    in_chans: int = 3,
    se_reduction: int | None = None,
    init: str = "torch",
    weights: str | None = None,
    model_args: Mapping[str, object] | None = None,
) -> tuple[nn.Module, SurgeryReport]:
    """The timm model `name` with its convolutions replaced, and the report of what was.

    `conv` holds the operator's `name`, the rule `where`, and the operator's knobs. `se_reduction` puts
    squeeze-and-excitation behind each replaced convolution; where a network has its own places for it, as those of the
    zoo, they are asked for by `model_args`. `init` is the scheme for fresh layers (see `ops.init`).

    `weights` is a local checkpoint: of a run of this project, a plain state dict, {"state_dict": ...}, or safetensors.
    If its keys are those of the network with the operator in place, it is loaded there; otherwise it is loaded into
    the network as timm builds it, and the replaced layers take their weights from that.

    Raises ConvReproError for an unknown name, arguments that the model rejects, a checkpoint that is missing, not
    readable or of another network, and as `surgery.replace_convs` does.
    """
    network = _create(name, num_classes, in_chans, model_args or {})
    knobs = {word: value for word, value in conv.items() if word not in ("name", "where")}

    def swap(*, convert: bool) -> SurgeryReport:
        return replace_convs(
            network, conv["name"], conv["where"], knobs, se_reduction=se_reduction, init=init, convert=convert
        )

    if weights is None:
        return network, swap(convert=False)
    content = read_checkpoint(weights)
    _check_settings(weights, content.get("settings"), name, conv)
    state = _strip(_tensors(content, weights), network)
    unfit = _differences(network, state)
    if not unfit:
        network.load_state_dict(state)
        return network, swap(convert=True)
    report = swap(convert=False)
    unfit_replaced = _differences(network, state)
    if unfit_replaced:
        fewest = min(unfit, unfit_replaced, key=len)
        more = f" and {len(fewest) - 3} more" if len(fewest) > 3 else ""
        raise ConvReproError(
            f"weights {weights} do not fit {name} with num_classes={num_classes}, in_chans={in_chans}, neither as timm "
            f"builds it nor with {conv['name']}: {', '.join(fewest[:3])}{more}"
        )
    network.load_state_dict(state)
    return network, report


def _create(name: str, num_classes: int, in_chans: int, model_args: Mapping[str, object]) -> nn.Module:
    if not timm.is_model(name):
        names = timm.list_models()
        near = [n for n in names if n.startswith(name)][:3] or difflib.get_close_matches(name, names, n=3)
        hint = f"; did you mean {', '.join(near)}?" if near else ""
        raise ConvReproError(f"model {name!r} is neither in timm nor in the zoo{hint}")
    for word in model_args:
        if word in RESERVED:
            raise ConvReproError(f"model_args.{word} cannot be given: {RESERVED[word]}")
    try:
        return timm.create_model(name, num_classes=num_classes, in_chans=in_chans, **model_args)
    except (TypeError, ValueError, RuntimeError, AssertionError, KeyError) as error:
        given = {"num_classes": num_classes, "in_chans": in_chans, **model_args}
        words = ", ".join(f"{word}={value!r}" for word, value in given.items())
        raise ConvReproError(f"model {name} cannot be built with {words}: {error}") from error


def read_checkpoint(path: str | Path) -> Mapping[str, object]:
    """The content of a checkpoint, on the CPU; nothing in the file is executed.

    Raises ConvReproError where the file is missing or is no checkpoint.
    """
    if not Path(path).is_file():
        raise ConvReproError(f"weights {path} do not exist")
    try:
        if Path(path).suffix == ".safetensors":
            content = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, SafetensorError, RuntimeError, EOFError) as error:
        raise ConvReproError(
            f"weights {path} cannot be read: damaged, not a checkpoint, or holding more than tensors and plain values"
        ) from error
    return content if isinstance(content, Mapping) else {}


def _tensors(content: Mapping[str, object], path: str | Path) -> dict[str, Tensor]:
    content = content.get("state_dict", content)
    state = {k: v for k, v in content.items() if isinstance(v, Tensor)} if isinstance(content, Mapping) else {}
    if not state:
        raise ConvReproError(f"weights {path} hold no state dict")
    return state


def _check_settings(path: str | Path, settings: object, name: str, conv: Mapping[str, object]) -> None:
    """Refuse to run a checkpoint of this project with another operator, or other knobs, than it was trained with."""
    if not isinstance(settings, Mapping) or settings["conv"]["name"] == "standard":
        return
    given = {"model": name, **{f"conv.{key}": value for key, value in conv.items()}}
    trained = {"model": settings["model"], **{f"conv.{key}": value for key, value in settings["conv"].items()}}
    for key in {**trained, **given}:
        if given.get(key) != trained.get(key):
            raise ConvReproError(
                f"weights {path} were trained with {key}={trained.get(key)}, but {key}={given.get(key)} is given"
            )


def _strip(state: dict[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """The network's own keys, without the names of what wrapped it."""
    own = {name for name, _ in network.named_children()}
    wrappers = [w for w in WRAPPERS if w.rstrip(".") not in own]
    while wrapper := next((w for w in wrappers if any(key.startswith(w) for key in state)), None):
        state = {key.removeprefix(wrapper): value for key, value in state.items() if key.startswith(wrapper)}
    return state


def _differences(network: nn.Module, state: Mapping[str, Tensor]) -> list[str]:
    """What keeps `state` from being loaded into the network, one phrase for a key."""
    own = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    missing = [f"it lacks {key}" for key in own if key not in state]
    unknown = [f"{key} is unknown" for key in state if key not in own]
    shapes = {key: tuple(state[key].shape) for key in own if key in state}
    changed = [f"{key} is {shape}, not {own[key]}" for key, shape in shapes.items() if shape != own[key]]
    return missing + unknown + changed
