"""Builds a network: any timm model or one of the zoo, its convolutions replaced, its weights loaded."""

import difflib
import inspect
import sys
from collections.abc import Mapping

import timm
from torch import Tensor, nn

import convrepro.models.zoo  # noqa: F401 (registers the zoo's models with timm)
from convrepro.config.schema import RunConfig
from convrepro.errors import ConvReproError
from convrepro.models.surgery import SurgeryReport, replace_convs
from convrepro.models.weights import differences, locate, read_checkpoint, state_of, unwrapped

RESERVED = {
    "num_classes": "the data set gives it",
    "in_chans": "the data set gives it",
    "pretrained": "give a checkpoint by weights",
    "checkpoint_path": "give a checkpoint by weights",
}

READERS = ("checkpoint_filter_fn", "_filter_fn", "_filter_torchvision_pretrained")
"""What timm's modules call the function that renames the keys of other projects' checkpoints, such as torchvision's."""


def list_models(pattern: str = "*") -> list[str]:
    """Names of timm's models and the zoo's that match a shell pattern, sorted."""
    return timm.list_models(pattern)


def build_network(cfg: RunConfig) -> tuple[nn.Module, SurgeryReport]:
    """The network of `cfg` with its convolutions replaced, and what was."""
    return build(
        cfg.model,
        conv=cfg.conv.model_dump(),
        num_classes=cfg.data.num_classes,
        in_chans=cfg.data.channels,
        se_reduction=cfg.se_reduction,
        init=cfg.recipe.init,
        weights=cfg.weights,
        weights_sha256=cfg.weights_sha256,
        model_args=cfg.model_args,
    )


def build(
    name: str,
    *,
    conv: Mapping[str, object],
    num_classes: int,
    in_chans: int = 3,
    se_reduction: int | None = None,
    init: str = "torch",
    weights: str | None = None,
    weights_sha256: str | None = None,
    model_args: Mapping[str, object] | None = None,
) -> tuple[nn.Module, SurgeryReport]:
    """The timm model `name` with its convolutions replaced, and the report of what was.

    `conv` holds the operator's `name`, the rule `where`, and the operator's knobs. `se_reduction` puts
    squeeze-and-excitation behind each replaced convolution; where a network has its own places for it, as those of the
    zoo, they are asked for by `model_args`. `init` is the scheme for fresh layers (see `ops.init`).

    `weights` is a checkpoint, a file or a URL (see `weights.locate`, with `weights_sha256`): of a run of this project,
    a plain state dict, {"state_dict": ...}, or safetensors. If its keys are those of the network as timm builds it, or
    become them by timm's own reader, as those of torchvision do, it is loaded there, and the replaced layers take
    their weights from that. Otherwise they must be those of the network with the operator in place, which takes from
    them what an earlier conversion decided layer by layer, as low rank's energy its ranks.

    Raises ConvReproError for an unknown name, arguments that the model rejects, a checkpoint that is missing, not
    readable, of another digest or of another network, or that a run of this project trained with another model, other
    `model_args` or, but for the operator "standard", another `conv`, and as `surgery.replace_convs` does.
    """
    network = _create(name, num_classes, in_chans, model_args or {})
    knobs = {word: value for word, value in conv.items() if word not in ("name", "where")}

    def swap(**words: object) -> SurgeryReport:
        return replace_convs(network, conv["name"], conv["where"], knobs, se_reduction=se_reduction, init=init, **words)

    if weights is None:
        return network, swap()
    path = locate(weights, weights_sha256)
    content = read_checkpoint(path)
    _check_settings(weights, content.get("settings"), name, conv, model_args or {})
    state = unwrapped(state_of(content, weights), network)
    if broken := next((key for key, value in state.items() if not value.isfinite().all()), None):
        raise ConvReproError(f"weights {weights} hold values that are not finite, in {broken}; a diverged training?")
    renamed = _renamed(name, state, network)
    unfit = differences(network, renamed)
    if not unfit:
        network.load_state_dict(renamed)
        return network, swap(convert=True)
    report = swap(state=state)
    unfit_replaced = differences(network, state)
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


def _renamed(name: str, state: dict[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """`state` in the keys of `network`: as it is where they fit, else by the reader of the module that defines it."""
    if not differences(network, state):
        return state
    module = sys.modules[timm.model_entrypoint(name).__module__]
    reader = next((getattr(module, word) for word in READERS if hasattr(module, word)), None)
    if reader is None:
        return state
    arguments = (dict(state), network)[: len(inspect.signature(reader).parameters)]
    try:
        return reader(*arguments)
    except Exception:  # the readers take their keys for granted, and fail in many ways on those of another network
        return state


def _check_settings(
    weights: str, settings: object, name: str, conv: Mapping[str, object], model_args: Mapping[str, object]
) -> None:
    """Refuse a checkpoint of this project for another model, with other arguments, than it was trained with.

    One of an operator is refused for another operator, or other knobs, too; one of plain convolutions starts any. What
    other projects call settings is none of this project's, and older checkpoints do not tell the arguments.
    """
    match settings:
        case {"model": model, "conv": {"name": operator, **knobs}}:
            trained, given = {"model": model}, {"model": name}
        case _:
            return
    if isinstance(arguments := settings.get("model_args"), Mapping):
        trained |= {f"model_args.{key}": value for key, value in arguments.items()}
        given |= {f"model_args.{key}": value for key, value in model_args.items()}
    if operator != "standard":
        trained |= {"conv.name": operator, **{f"conv.{key}": value for key, value in knobs.items()}}
        given |= {f"conv.{key}": value for key, value in conv.items()}
    for key in {**trained, **given}:
        if given.get(key) != trained.get(key):
            raise ConvReproError(
                f"weights {weights} were trained with {key}={trained.get(key)}, but {key}={given.get(key)} is given"
            )
