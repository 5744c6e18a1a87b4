"""Building of networks: a model by name, with replaced convolutions and loaded weights."""

from collections.abc import Mapping
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import nn

from convrepro.config.schema import Conv, Count, RunConfig
from convrepro.config.strict import Record, validated
from convrepro.errors import ConvReproError
from convrepro.models.filters import Gradients
from convrepro.models.pruning import prune, take_shapes, whole
from convrepro.models.sources import check_model, create, renamed
from convrepro.models.state_dict import differences, take
from convrepro.models.surgery import Entry, SurgeryReport, check_operator, replace_by_plan
from convrepro.models.weights import locate, read_checkpoint


class _Settings(Record):
    """What `build` gets, named as users type it."""

    name: str
    conv: Conv
    num_classes: Annotated[int, Field(ge=0)]
    in_chans: Count


def build_network(cfg: RunConfig, gradients: Gradients | None = None) -> tuple[nn.Module, SurgeryReport]:
    """Returns the network of `cfg` with its convolutions replaced and filters removed, and the report about it.

    `gradients` accumulates the gradients of the loss, which `prune=taylor` needs where weights are given. Raises
    ConvReproError as `build` and `pruning.prune` do.
    """
    network, report = _built(cfg, cfg.weights)
    if not cfg.prune.by:
        return network, report
    if cfg.prune.by == "taylor" and not cfg.weights and gradients is None:
        gradients = _no_gradients  # how many filters go, which is all there is to know, depends on no weight
    image = torch.zeros(1, cfg.data.channels, cfg.data.image_size, cfg.data.image_size)
    base = whole(_built(cfg, None)[0] if report.pruned else network, image)
    report.pruned = prune(network, cfg.prune, base, image, seed=cfg.seed, gradients=gradients)
    return network, report


def _no_gradients(network: nn.Module) -> None:
    """Leaves a network without gradients."""


def _built(cfg: RunConfig, weights: str | None) -> tuple[nn.Module, SurgeryReport]:
    return build(
        cfg.model,
        conv=cfg.conv.model_dump(),
        num_classes=cfg.data.num_classes,
        in_chans=cfg.data.channels,
        se_reduction=cfg.se_reduction,
        init=cfg.recipe.init,
        weights=weights,
        weights_sha256=cfg.weights_sha256 if weights else None,
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

    The name is one of timm or the zoo, `torchvision:NAME`, or `module:function` of a plugin (see `sources`).

    `conv` holds the `name` of the operator, the rule `where`, and the knobs of the operator, or a layer plan (see
    `config.schema.Conv`). `se_reduction` adds squeeze-and-excitation after each replaced convolution; networks of the
    zoo that define their own positions for it take the reduction in `model_args` instead. `init` is the scheme for
    fresh layers (see `ops.init`).

    `weights` is a checkpoint, given as a file or a URL (see `weights.locate`, also for `weights_sha256`). It may be a
    checkpoint of a run of this project, a state dict, a mapping with one (see `state_dict.take`, also for prefixes of
    keys), or a safetensors file. The report says what was taken. If its keys are those of the network as timm builds
    it, or if timm's own reader renames them to those (as it does for torchvision's), the checkpoint is loaded first,
    and the replaced layers are converted from it. Otherwise its keys must be those of the network with the operator in
    place. The operators then have the sizes that an earlier conversion selected layer by layer, such as the ranks of
    `LowRankConv2d` for an energy. A checkpoint of a pruned network gives the network its numbers of filters.

    Raises ConvReproError for an unknown name, for arguments that the model rejects, for a checkpoint that is missing,
    unreadable, has another digest or belongs to another network, and for a checkpoint of this project that was trained
    with another model, other `model_args` or (unless its operator is "standard") another `conv`. It also raises as
    `surgery.replace_convs` does.
    """
    plain = dict(conv) if isinstance(conv, Mapping) else conv
    given = {"name": name, "conv": plain, "num_classes": num_classes, "in_chans": in_chans}
    settings = validated(_Settings, given).conv
    check_names(name, settings)
    network = create(name, num_classes, in_chans, model_args or {})

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
    fitting = renamed(name, state, network)
    unfit = differences(network, fitting)
    if not unfit:
        network.load_state_dict(fitting)
        report = swap(convert=True)
        how = f"converted to {settings.title}" if report.replaced and settings.name != "standard" else "as they are"
        keys = "" if fitting is state else ", keys renamed as timm does"
        report.weights = f"weights={weights}: {taken}{keys}; loaded {how}"
        return network, report
    report = swap(state=state)
    if _is_pruned(content) and take_shapes(network, state):
        report.pruned = "as the weights are"
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
    check_model(model)
    for index, entry in enumerate(conv.plan):
        try:
            check_operator(entry.name, entry.where, entry.knobs)
        except ConvReproError as error:
            raise ConvReproError(f"conv.entries[{index}]: {error}" if conv.entries else str(error)) from None


def _is_pruned(content: Mapping[Any, object]) -> bool:
    """Whether a checkpoint of this project is of a network that has lost filters."""
    settings = content.get("settings")
    return isinstance(settings, Mapping) and bool(settings.get("pruned"))


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
