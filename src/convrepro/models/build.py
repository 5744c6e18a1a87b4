"""Building of networks: any model of timm or of the zoo, with replaced convolutions and loaded weights."""

import difflib
import inspect
import sys
from collections.abc import Mapping
from typing import Any

import timm
from torch import Tensor, nn

import convrepro.models.zoo  # noqa: F401 (registers the zoo's models with timm)
from convrepro.config.schema import Conv, RunConfig
from convrepro.config.strict import Record, validated
from convrepro.errors import ConvReproError
from convrepro.models.state_dict import differences, take
from convrepro.models.surgery import Entry, SurgeryReport, check_operator, replace_by_plan
from convrepro.models.weights import locate, read_checkpoint

RESERVED = {
    "num_classes": "the data set determines it",
    "in_chans": "the data set determines it",
    "pretrained": "give a checkpoint by weights",
    "checkpoint_path": "give a checkpoint by weights",
}

READERS = ("checkpoint_filter_fn", "_filter_fn", "_filter_torchvision_pretrained")
"""Names of the functions in timm's modules that rename the keys of checkpoints of other projects (torchvision's)."""


class _Settings(Record):
    """What `build` gets, named as users type it."""

    conv: Conv


def list_models(pattern: str = "*") -> list[str]:
    """Returns the names of the models of timm and of the zoo that match a shell pattern, sorted."""
    return timm.list_models(pattern)


def build_network(cfg: RunConfig) -> tuple[nn.Module, SurgeryReport]:
    """Returns the network of `cfg` with its convolutions replaced, and the report of the replacement."""
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
    conv: Mapping[str, Any],
    num_classes: int,
    in_chans: int = 3,
    se_reduction: int | None = None,
    init: str = "torch",
    weights: str | None = None,
    weights_sha256: str | None = None,
    model_args: Mapping[str, Any] | None = None,
) -> tuple[nn.Module, SurgeryReport]:
    """Builds the model `name` with its convolutions replaced; returns it and the report of the replacement.

    `conv` holds the `name` of the operator, the rule `where`, and the knobs of the operator, or a layer plan (see
    `config.schema.Conv`). `se_reduction` adds
    squeeze-and-excitation after each replaced convolution; networks of the zoo that define their own positions for it
    take the reduction in `model_args` instead. `init` is the scheme for fresh layers (see `ops.init`).

    `weights` is a checkpoint, given as a file or a URL (see `weights.locate`, also for `weights_sha256`). It may be a
    checkpoint of a run of this project, a state dict, a mapping with one (see `state_dict.take`, also for prefixes of
    keys), or a safetensors file. The report says what was taken. If its keys
    are those of the network as timm builds it, or if timm's own reader renames them to those (as it does for
    torchvision's), the checkpoint is loaded first, and the replaced layers are converted from it. Otherwise its keys
    must be those of the network with the operator in place. The operators then have the sizes that an earlier
    conversion selected layer by layer, such as the ranks of `LowRankConv2d` for an energy.

    Raises ConvReproError for an unknown name, for arguments that the model rejects, for a checkpoint that is missing,
    unreadable, has another digest or belongs to another network, and for a checkpoint of this project that was trained
    with another model, other `model_args` or (unless its operator is "standard") another `conv`. It also raises as
    `surgery.replace_convs` does.
    """
    settings = validated(_Settings, {"conv": dict(conv)}).conv
    check_names(name, settings)
    network = _create(name, num_classes, in_chans, model_args or {})

    def swap(**kwargs: Any) -> SurgeryReport:
        plan = [Entry(e.name, e.where, e.knobs, e.include, e.exclude) for e in settings.plan]
        return replace_by_plan(network, plan, unfit=settings.unfit, se_reduction=se_reduction, init=init, **kwargs)

    if weights is None:
        return network, swap()
    path = locate(weights, weights_sha256)
    content = read_checkpoint(path)
    _check_settings(weights, content.get("settings"), name, settings.model_dump(), model_args or {})
    taken = take(content, network, weights)
    state = taken.state
    renamed = _renamed(name, state, network)
    unfit = differences(network, renamed)
    if not unfit:
        network.load_state_dict(renamed)
        report = swap(convert=True)
        how = f"converted to {settings.title}" if report.replaced and settings.name != "standard" else "as they are"
        keys = "" if renamed is state else ", keys renamed as timm does"
        report.weights = f"weights={weights}: {taken}{keys}; loaded {how}"
        return network, report
    report = swap(state=state)
    unfit_replaced = differences(network, state)
    if unfit_replaced:
        fewest = min(unfit, unfit_replaced, key=len)
        more = f" and {len(fewest) - 3} more" if len(fewest) > 3 else ""
        raise ConvReproError(
            f"weights {weights} do not fit {name} with num_classes={num_classes}, in_chans={in_chans}, neither as timm "
            f"builds it nor with {settings.title}: {', '.join(fewest[:3])}{more}"
        )
    network.load_state_dict(state)
    report.weights = f"weights={weights}: {taken}; loaded as they are, with {settings.title} in place"
    return network, report


def check_names(model: str, conv: Conv) -> None:
    """Raises ConvReproError for a model, operator, rule or knob that does not exist, and for a knob of another type."""
    if not timm.is_model(model):
        names = timm.list_models()
        near = [n for n in names if n.startswith(model)][:3] or difflib.get_close_matches(model, names, n=3)
        hint = f"; did you mean {', '.join(near)}?" if near else ""
        raise ConvReproError(f"model {model!r} is neither in timm nor in the zoo{hint}")
    for index, entry in enumerate(conv.plan):
        try:
            check_operator(entry.name, entry.where, entry.knobs)
        except ConvReproError as error:
            raise ConvReproError(f"conv.entries[{index}]: {error}" if conv.entries else str(error)) from None


def _create(name: str, num_classes: int, in_chans: int, model_args: Mapping[str, Any]) -> nn.Module:
    for key in model_args:
        if key in RESERVED:
            raise ConvReproError(f"model_args.{key} cannot be given: {RESERVED[key]}")
    try:
        return timm.create_model(name, num_classes=num_classes, in_chans=in_chans, **model_args)
    except (TypeError, ValueError, RuntimeError, AssertionError, KeyError) as error:
        given = {"num_classes": num_classes, "in_chans": in_chans, **model_args}
        arguments = ", ".join(f"{key}={value!r}" for key, value in given.items())
        raise ConvReproError(f"model {name} cannot be built with {arguments}: {error}") from error


def _renamed(name: str, state: dict[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """Returns `state` with the keys of `network`.

    If its keys do not fit, they are renamed by the reader of the module that defines the network, if it has one.
    """
    if not differences(network, state):
        return state
    module = sys.modules[timm.model_entrypoint(name).__module__]
    reader = next((getattr(module, function) for function in READERS if hasattr(module, function)), None)
    if reader is None:
        return state
    arguments = (dict(state), network)[: len(inspect.signature(reader).parameters)]
    try:
        return reader(*arguments)
    except Exception:  # The readers do not check their keys and fail in many ways on those of another network.
        return state


def _check_settings(
    weights: str, settings: object, name: str, conv: Mapping[str, Any], model_args: Mapping[str, Any]
) -> None:
    """Raises ConvReproError if a checkpoint of this project was trained with another model or other arguments.

    A checkpoint of an operator is also rejected for another operator or other knobs; a checkpoint of standard
    convolutions can start any operator. Settings in the format of another project are ignored. Older checkpoints of
    this project do not contain the arguments.
    """
    match settings:
        case {"model": model, "conv": {"name": operator, **knobs}, **others}:
            trained: dict[str, object] = {"model": model}
            given: dict[str, object] = {"model": name}
        case _:
            return
    if isinstance(arguments := others.get("model_args"), Mapping):
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
