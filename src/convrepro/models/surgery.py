"""Surgery: replaces the convolutions of a built model by operators, by the rule of a paper or by a plan of several."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from convrepro.config import plugins
from convrepro.errors import ConvReproError
from convrepro.models.knobs import check_knobs
from convrepro.models.layers import (
    WHERE,
    Refusals,
    Rule,
    check_patterns,
    layer_at,
    layer_kinds,
    left_out,
    other_convolutions,
    select,
)
from convrepro.models.pairs import Layer, Site
from convrepro.ops import LINEAR_OPERATORS, OPERATORS, SqueezeExciteConv, conv_arguments, linear_arguments
from convrepro.ops import knobs as knobs_of

T = TypeVar("T")
Unfit = Literal["refuse", "keep"]


class NothingToReplace(ConvReproError):
    """Raised if a rule selects no layer of a model."""


@dataclass(frozen=True)
class Entry:
    """An operator with its knobs, and the layers that it replaces.

    These are the layers that the rule `where` selects, of them those whose name matches a pattern of `include`, if
    there is one, and none of `exclude`. A pattern is a shell pattern in which `*` also matches dots: `layer2.*`.
    """

    operator: str
    where: str
    knobs: Mapping[str, Any] = field(default_factory=dict)
    include: Sequence[str] = ()
    exclude: Sequence[str] = ()

    @property
    def layers(self) -> str:
        """The rule and the patterns in words."""
        but = f" but {', '.join(self.exclude)}" if self.exclude else ""
        return f"{self.where}{' in ' if self.include else ''}{', '.join(self.include)}{but}"


@dataclass(frozen=True)
class Swap:
    """One replaced layer: its name in the model, and the `repr` of the modules before and after the replacement.

    `entry` is the index of the plan's entry that replaced it.
    """

    name: str
    before: str
    after: str
    entry: int = 0


@dataclass
class SurgeryReport:
    """The result of a surgery. `kept` holds the reason for each convolution that was not replaced.

    `weights` is one line about the checkpoint that the network was loaded from, and `pruned` one about removed filters;
    both are set by `models.build`.
    """

    entries: Sequence[Entry]
    replaced: list[Swap] = field(default_factory=list)
    kept: dict[str, str] = field(default_factory=dict)
    weights: str | None = None
    pruned: str | None = None

    def summary(self) -> str:
        """Returns one line: how many layers were replaced, how many were kept for each reason, what was removed."""
        if not self.replaced:
            operators = ", ".join(dict.fromkeys(entry.operator for entry in self.entries))
            return f"{operators}: no layer replaced" + (f"; pruned {self.pruned}" if self.pruned else "")
        counts = Counter(swap.entry for swap in self.replaced)
        several = len(self.entries) > 1
        parts = [
            f"{_title(entry, several)} at {entry.layers}: {counts[index]} replaced"
            for index, entry in enumerate(self.entries)
            if index in counts
        ]
        return "; ".join([*parts, *([f"kept {_counted(self.kept.values())}"] if self.kept else [])])


def _title(entry: Entry, several: bool) -> str:
    """The operator, in a plan of several with the knobs that are not the defaults of its signature."""
    known = knobs_of(OPERATORS[entry.operator])
    given = ", ".join(f"{key}={value}" for key, value in entry.knobs.items() if known[key] != value)
    return f"{entry.operator}({given})" if several and given else entry.operator


def replace_convs(
    model: nn.Module,
    operator: str,
    where: str,
    knobs: Mapping[str, Any] | None = None,
    *,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    unfit: Unfit = "refuse",
    se_reduction: int | None = None,
    init: str = "torch",
    convert: bool = False,
    state: Mapping[str, Tensor] | None = None,
    part_of: nn.Module | None = None,
) -> SurgeryReport:
    """Replaces the layers of `model` that the rule `where` selects by `operator`, in place; returns a report.

    `include` and `exclude` are patterns of layers' names (see `Entry`). This is `replace_by_plan` with one entry; see
    there for the other arguments and for what is raised.
    """
    entry = Entry(operator, where, knobs or {}, include, exclude)
    return replace_by_plan(
        model,
        [entry],
        unfit=unfit,
        se_reduction=se_reduction,
        init=init,
        convert=convert,
        state=state,
        part_of=part_of,
    )


def replace_by_plan(
    model: nn.Module,
    plan: Sequence[Entry],
    *,
    unfit: Unfit = "refuse",
    se_reduction: int | None = None,
    init: str = "torch",
    convert: bool = False,
    state: Mapping[str, Tensor] | None = None,
    part_of: nn.Module | None = None,
) -> SurgeryReport:
    """Replaces layers of `model` by the operators of a plan, in place; returns a report.

    A layer is replaced by the operator of the first entry that selects it. Each new layer has the shape, bias, device,
    dtype, training mode, memory format and frozen state of the layer that it replaces. Its weights are drawn by the
    scheme `init` (see `ops.init`). With `convert` they are converted from the replaced layer instead, as closely as
    the operator can represent them (`from_conv`, `from_linear`). With `se_reduction`, squeeze-and-excitation with this
    reduction follows each new convolution. The operator "standard" keeps the layers that its entry selects and only
    adds squeeze-and-excitation, if `se_reduction` is given. `state` is a state dict that the model will load
    afterwards; the operators get the sizes that an earlier conversion selected layer by layer (`for_state`).

    Some layers are kept and reported as such: layers of subclasses of `nn.Conv2d` and `nn.Linear`, layers whose weight
    is read by a module that contains them, pairs with a module that the model also uses elsewhere, and with
    `unfit="keep"` layers that the operator rejects. Convolutions of other kinds (Conv1d, ConvTranspose2d) are reported.
    If `model` is a part of a network, `part_of` is that network: its first convolution is the one that rules exempt,
    and all of its modules are searched for those that read a weight.

    Raises NothingToReplace if an entry selects no layer. Raises ConvReproError for an unknown operator, rule or knob,
    for a pattern that matches no layer, if every layer that an entry selects has to be kept, if an operator rejects a
    layer (the message names it) and `unfit` is "refuse", and if weights cannot be converted. The model is then
    unchanged.
    """
    rules = [check_operator(entry.operator, entry.where, entry.knobs) for entry in plan]
    if unfit not in ("refuse", "keep"):
        raise ConvReproError(f"unfit={unfit} does not exist; valid: refuse, keep")
    network = model if part_of is None else part_of
    if all(model is not module for module in network.modules()):
        raise ConvReproError("part_of is a network that does not contain the model")
    report = SurgeryReport(tuple(plan))
    kinds = layer_kinds(model, network)
    for entry in plan:
        check_patterns("include", entry.include, kinds)
        check_patterns("exclude", entry.exclude, kinds)
    idle = [entry.operator == "standard" and se_reduction is None for entry in plan]
    if all(idle):
        return report
    for entry, rule in zip(plan, rules, strict=True):
        if convert and entry.operator != "standard" and rule.pairs:
            raise ConvReproError(
                f"weights cannot be carried over by rule {entry.where}: the norm and activation between the two "
                "convolutions are dropped; start without weights, or from weights of the replaced network"
            )
    refusals = Refusals(model, network)
    memory_format = _memory_format(model)
    kept: dict[str, str] = {}
    taken: set[str] = set()
    fresh: list[tuple[int, Site, nn.Module]] = []
    for index, (entry, rule) in enumerate(zip(plan, rules, strict=True)):
        selected = select(model, rule, kinds, linear=entry.operator in LINEAR_OPERATORS)
        free = [site for site in selected if taken.isdisjoint((site.name, *site.merged))]
        outside = {site.name: why for site in free if (why := left_out(site, entry.include, entry.exclude))}
        refused: dict[str, str] = {}
        sites = [site for site in free if site.name not in outside]
        for site in sites:
            taken |= {site.name, *site.merged}
            if reason := refusals.reason(site):
                refused[site.name] = reason
            elif idle[index]:
                kept[site.name] = "standard in the plan"
            else:
                if convert:
                    _check_converts(site, entry.operator)
                try:
                    new = _replacement(model, site, entry, se_reduction, init, convert, state)
                except ValueError as error:
                    if unfit == "refuse":
                        raise ConvReproError(f"layer {site.name!r}: {error}") from error
                    refused[site.name] = str(error)
                else:
                    training = layer_at(model, site.name).training
                    fresh.append((index, site, new.train(training).to(memory_format=memory_format)))
        if len(sites) == len(refused):
            left = "an earlier entry of the plan leaves" if len(free) < len(selected) else ""
            raise (ConvReproError if refused else NothingToReplace)(_nothing(model, entry, kinds, refused, left))
        kept |= outside | refused

    new_modules: dict[str, nn.Module] = {}
    for index, site, module in fresh:
        merged = () if plan[index].operator == "standard" else site.merged
        convs = [name for name in merged if name in kinds]
        before = " + ".join(repr(model.get_submodule(name)) for name in (*convs, site.name))
        report.replaced.append(Swap(site.name, before, repr(module), index))
        new_modules |= {site.name: module, **{name: nn.Identity() for name in merged}}
    _install(model, new_modules)
    reasons = {n: kept.get(n, k) for n, k in kinds.items() if n not in new_modules and (k != "linear" or n in kept)}
    report.kept = reasons | other_convolutions(model)
    return report


def check_operator(operator: str, where: str, knobs: Mapping[str, Any]) -> Rule:
    """Returns the rule `where`. Raises ConvReproError for an unknown operator or rule, and for a knob that the operator
    lacks or whose value has another type than its signature says.
    """
    plugins.load()
    check_knobs(operator, _choose(OPERATORS, operator, "operator"), knobs)
    return _choose(WHERE, where, "where rule")


def _choose(choices: Mapping[str, T], name: str, category: str) -> T:
    if name not in choices:
        raise ConvReproError(f"{category} {name!r} does not exist; valid: {', '.join(choices)}")
    return choices[name]


def _nothing(model: nn.Module, entry: Entry, kinds: Mapping[str, str], refused: Mapping[str, str], left: str) -> str:
    """The message for an entry that replaces nothing; `left` says that earlier entries took what it selects."""
    convs = [kind for kind in kinds.values() if kind != "linear"]
    others = _counted(other_convolutions(model).values())
    what = f"none of its {len(convs)} convolutions ({_counted(convs)})" if convs else "nothing: it has no convolution"
    what += f" but {others}" if others and not convs else ""
    text = f"rule {entry.where} ({WHERE[entry.where].description}) matches {what}"
    if refused:
        return f"{text} that can be replaced ({_counted(refused.values())}); {_rules(model, entry, kinds)}"
    if patterns := [f"{key} {', '.join(texts)}" for key, texts in _patterns(entry) if texts]:
        text += f" with {' and '.join(patterns)}"
    return f"{text}{f' that {left}' if left else ''}; {_rules(model, entry, kinds)}"


def _patterns(entry: Entry) -> list[tuple[str, Sequence[str]]]:
    return [("include", entry.include), ("exclude", entry.exclude)]


def _rules(model: nn.Module, entry: Entry, kinds: Mapping[str, str]) -> str:
    others = [name for name, rule in WHERE.items() if name != entry.where and select(model, rule, kinds, linear=False)]
    return f"rules that match: {', '.join(others) or 'none'}"


def _counted(words: Iterable[str]) -> str:
    return ", ".join(f"{number} {word}" for word, number in Counter(words).items())


def _memory_format(model: nn.Module) -> torch.memory_format:
    """Returns channels_last if the weight of a convolution has this memory format, else the contiguous format."""
    weights = (m.weight for m in model.modules() if isinstance(m, nn.Conv2d) and m.weight[0, 0].numel() > 1)
    last = any(w.is_contiguous(memory_format=torch.channels_last) and not w.is_contiguous() for w in weights)
    return torch.channels_last if last else torch.contiguous_format


def _below(state: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """Returns the state dict of the module with this name."""
    return {key.removeprefix(f"{name}."): value for key, value in state.items() if key.startswith(f"{name}.")}


def _replacement(
    model: nn.Module,
    site: Site,
    entry: Entry,
    se_reduction: int | None,
    init: str,
    convert: bool,
    state: Mapping[str, Tensor] | None,
) -> nn.Module:
    """Returns the module that replaces the layer of the site. Raises ValueError if the operator rejects the layer."""
    layer = layer_at(model, site.name)
    gate = se_reduction if isinstance(layer, nn.Conv2d) else None
    made: Any = layer
    if entry.operator != "standard":
        own = None if state is None else _below(state, site.name if gate is None else f"{site.name}.conv")
        made = _make(site, entry, layer, init, convert, own)
    return made if gate is None else SqueezeExciteConv(made, gate)


def _class(site: Site, operator: str) -> tuple[Any, str]:
    """The class of the operator for the layer of a site, and the name of the method that converts such a layer."""
    if isinstance(site.dense, nn.Conv2d):
        return OPERATORS[operator], "from_conv"
    return LINEAR_OPERATORS[operator], "from_linear"


def _check_converts(site: Site, operator: str) -> None:
    if operator != "standard" and not hasattr(*_class(site, operator)):
        raise ConvReproError(
            f"layer {site.name!r}: operator {operator} cannot take over weights; start without weights"
        )


def _make(
    site: Site, entry: Entry, layer: Layer, init: str, convert: bool, state: Mapping[str, Tensor] | None
) -> nn.Module:
    """Returns the operator in the shape of the site, on the device and with the frozen state of `layer`.

    If `state` is given, the operator has the sizes of its tensors.
    """
    dense, knobs = site.dense, entry.knobs
    cls, converter = _class(site, entry.operator)
    shape = conv_arguments(dense) if isinstance(dense, nn.Conv2d) else linear_arguments(dense)
    if convert:
        new = getattr(cls, converter)(dense, **knobs)
    else:
        arguments = {**shape, "device": layer.weight.device, "dtype": layer.weight.dtype, **knobs}
        fitting = state is not None and hasattr(cls, "for_state")
        new = cls.for_state(state, **arguments) if fitting else cls(**arguments)
        new.reset_parameters(init)
    for name, parameter in new.named_parameters():
        old = layer.bias if name.endswith("bias") and layer.bias is not None else layer.weight
        if not old.requires_grad:
            parameter.requires_grad_(False)
    return new


def _install(model: nn.Module, new: Mapping[str, nn.Module]) -> None:
    """Sets each new module at its name, and wherever else the model holds the module that it replaces."""
    by_old = {model.get_submodule(name): module for name, module in new.items()}
    places = [(place, m) for place, m in model.named_modules(remove_duplicate=False) if m in by_old]
    for place, old in places:
        model.set_submodule(place, by_old[old])
