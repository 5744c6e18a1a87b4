"""Surgery: replaces the convolutions of a built model, which the rule of a paper selects, by another operator."""

import inspect
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from convrepro.config import plugins
from convrepro.errors import ConvReproError
from convrepro.models.knobs import check_knobs
from convrepro.ops import LINEAR_OPERATORS, OPERATORS, SqueezeExciteConv, conv_arguments, linear_arguments

Layer = nn.Conv2d | nn.Linear
T = TypeVar("T")

GATES = {"SqueezeExcite", "SqueezeExcitation", "SEModule", "EffectiveSEModule", "EcaModule"}
"""Class names of channel attention, which may lie between a depthwise and a pointwise convolution and is kept."""


class NothingToReplace(ConvReproError):
    """Raised if a rule selects no layer of a model."""


@dataclass(frozen=True)
class Rule:
    """Which layers a paper replaces: those of the given kinds, or the pairs of depthwise and pointwise convolutions."""

    description: str
    kinds: frozenset[str] = frozenset()
    pairs: bool = False


WHERE: dict[str, Rule] = {
    "dense_kxk": Rule(
        "ungrouped convolutions larger than 1x1, but the first and those in a classifier", frozenset({"dense kxk"})
    ),
    "dw_pw_pair": Rule(
        "a depthwise convolution and the 1x1 convolution that follows it in the same module, as one", pairs=True
    ),
    "pointwise": Rule("ungrouped 1x1 convolutions, but the first and those in a classifier", frozenset({"pointwise"})),
    "depthwise": Rule("depthwise convolutions", frozenset({"depthwise"})),
    "all": Rule(
        "every convolution, and every linear layer where the operator has a linear form",
        frozenset({"first", "classifier", "dense kxk", "pointwise", "depthwise", "grouped", "linear"}),
    ),
}


@dataclass(frozen=True)
class Swap:
    """One replaced layer: its name in the model, and the `repr` of the modules before and after the replacement."""

    name: str
    before: str
    after: str


@dataclass
class SurgeryReport:
    """The result of `replace_convs`. `kept` holds the reason for each convolution that was not replaced.

    `weights` is one line about the checkpoint that the network was loaded from, set by `models.build`.
    """

    operator: str
    where: str
    replaced: list[Swap] = field(default_factory=list)
    kept: dict[str, str] = field(default_factory=dict)
    weights: str | None = None

    def summary(self) -> str:
        """Returns one line: how many layers were replaced, and how many were kept for each reason."""
        if not self.replaced:
            return f"{self.operator}: no layer replaced"
        text = f"{self.operator} at {self.where}: {len(self.replaced)} replaced"
        return f"{text}; kept {_counted(self.kept.values())}" if self.kept else text


@dataclass(frozen=True)
class _Site:
    """A layer to replace. The operator gets the shape of `dense`; the `merged` modules become `nn.Identity`."""

    name: str
    dense: Layer
    merged: tuple[str, ...] = ()


def replace_convs(
    model: nn.Module,
    operator: str,
    where: str,
    knobs: Mapping[str, Any] | None = None,
    *,
    se_reduction: int | None = None,
    init: str = "torch",
    convert: bool = False,
    state: Mapping[str, Tensor] | None = None,
) -> SurgeryReport:
    """Replaces the layers of `model` that the rule `where` selects by `operator`, in place; returns a report.

    Each new layer has the shape, bias, device, dtype, training mode, memory format and frozen state of the layer that
    it replaces. Its weights are drawn by the scheme `init` (see `ops.init`). With `convert` they are converted from the
    replaced layer instead, as closely as the operator can represent them (`from_conv`, `from_linear`). With
    `se_reduction`, squeeze-and-excitation with this reduction follows each new convolution. The operator "standard"
    keeps the layers and only adds squeeze-and-excitation, if `se_reduction` is given. `state` is a state dict that the
    model will load afterwards; the operators get the sizes that an earlier conversion selected layer by layer
    (`for_state`).

    Some layers are kept and reported as such: layers of subclasses of `nn.Conv2d` and `nn.Linear`, layers whose weight
    is read by the module that contains them, and pairs with a module that the model also uses elsewhere.

    Raises NothingToReplace if the rule selects no layer. Raises ConvReproError for an unknown operator, rule or knob,
    if every selected layer has to be kept, if the operator rejects a layer (the message names it), and if weights
    cannot be converted by the rule. The model is then unchanged.
    """
    rule = check_operator(operator, where, knobs or {})
    report = SurgeryReport(operator, where)
    if operator == "standard" and se_reduction is None:
        return report
    if convert and operator != "standard" and rule.pairs:
        raise ConvReproError(
            f"weights cannot be carried over by rule {where}: the norm and activation between the two convolutions "
            "are dropped; start without weights, or from weights of the replaced network"
        )

    kinds = layer_kinds(model)
    sites = _select(model, rule, kinds, linear=operator in LINEAR_OPERATORS)
    places = Counter(child for parent in model.modules() for child in parent._modules.values() if child is not None)
    refused = {site.name: reason for site in sites if (reason := _refusal(model, site, places))}
    sites = [site for site in sites if site.name not in refused]
    if not sites:
        raise (ConvReproError if refused else NothingToReplace)(_nothing(model, where, kinds, refused))

    def make(site: _Site, layer: Layer, name: str) -> Any:
        """Returns the operator that will have the name `name`."""
        if operator == "standard":
            return layer
        own = None if state is None else _below(state, name)
        return _make(operator, site.dense, layer, knobs or {}, init, convert, own)

    memory_format = _memory_format(model)
    fresh: dict[str, nn.Module] = {}
    for site in sites:
        layer = _layer(model, site.name)
        try:
            if se_reduction is not None and isinstance(layer, nn.Conv2d):
                made = SqueezeExciteConv(make(site, layer, f"{site.name}.conv"), se_reduction)
            else:
                made = make(site, layer, site.name)
        except ValueError as error:
            raise ConvReproError(f"layer {site.name!r}: {error}") from error
        fresh[site.name] = made.train(layer.training).to(memory_format=memory_format)

    new: dict[str, nn.Module] = {}
    for site in sites:
        merged = () if operator == "standard" else site.merged
        convs = [name for name in merged if name in kinds]
        before = " + ".join(repr(model.get_submodule(name)) for name in (*convs, site.name))
        report.replaced.append(Swap(site.name, before, repr(fresh[site.name])))
        new[site.name] = fresh[site.name]
        new |= {name: nn.Identity() for name in merged}
    _install(model, new)
    report.kept = {n: refused.get(n, k) for n, k in kinds.items() if n not in new and (k != "linear" or n in refused)}
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


def layer_kinds(model: nn.Module) -> dict[str, str]:
    """Returns the kind of each convolution and linear layer, keyed by its name, in the order of the model."""
    kinds: dict[str, str] = {}
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Linear) and name:
            kinds[name] = "linear"
        elif isinstance(layer, nn.Conv2d) and name:
            kinds[name] = _conv_kind(name, layer) if "first" in kinds.values() else "first"
    return kinds


def _conv_kind(name: str, conv: nn.Conv2d) -> str:
    if "pre_logits" in name.split("."):
        return "classifier"
    if conv.groups == 1:
        return "pointwise" if conv.kernel_size == (1, 1) else "dense kxk"
    return "depthwise" if conv.groups == conv.in_channels else "grouped"


def _select(model: nn.Module, rule: Rule, kinds: Mapping[str, str], *, linear: bool) -> list[_Site]:
    if rule.pairs:
        return list(_pairs(model))
    wanted = rule.kinds if linear else rule.kinds - {"linear"}
    return [_Site(name, _layer(model, name)) for name, kind in kinds.items() if kind in wanted]


def _layer(model: nn.Module, name: str) -> Layer:
    """Returns the convolution or linear layer with this name."""
    layer = model.get_submodule(name)
    assert isinstance(layer, Layer)
    return layer


def _pairs(model: nn.Module) -> Iterator[_Site]:
    """Yields each depthwise convolution with the 1x1 convolution after it.

    Norms, activations, dropout and gates may lie between the two. Norms and activations become part of the pair.
    Dropout and gates are kept, before the operator.
    """
    for path, parent in model.named_modules():
        depthwise: nn.Conv2d | None = None
        merged: list[str] = []
        for attribute, child in parent._modules.items():  # `named_children` would skip a module that is there twice.
            if child is None:
                continue
            name = f"{path}.{attribute}" if path else attribute
            if isinstance(child, nn.Conv2d):
                if depthwise is not None and _is_pointwise_after(depthwise, child):
                    yield _Site(name, _dense_form(depthwise, child), tuple(merged))
                whole = child.groups == child.in_channels == child.out_channels > 1
                depthwise, merged = (child, [name]) if whole else (None, [])
            elif _is_norm_or_activation(child):
                merged.append(name)
            elif not _keeps_channels(child):
                depthwise = None


def _is_pointwise_after(depthwise: nn.Conv2d, conv: nn.Conv2d) -> bool:
    plain = (conv.kernel_size, conv.stride, conv.groups) == ((1, 1), (1, 1), 1) and conv.padding in ((0, 0), "valid")
    return plain and conv.in_channels == depthwise.out_channels


def _dense_form(depthwise: nn.Conv2d, pointwise: nn.Conv2d) -> nn.Conv2d:
    """Returns the dense convolution with the shape of a pair, on the meta device, where its weight needs no memory."""
    shape = conv_arguments(depthwise) | {"groups": 1, "bias": pointwise.bias is not None}
    return nn.Conv2d(**shape | {"out_channels": pointwise.out_channels, "device": "meta"})


def _is_norm_or_activation(module: nn.Module) -> bool:
    if any(isinstance(part, Layer) for part in module.modules()):
        return False
    activations = ("torch.nn.modules.activation", "timm.layers.activations")
    return "Norm" in type(module).__name__ or type(module).__module__.startswith(activations)


def _keeps_channels(module: nn.Module) -> bool:
    return isinstance(module, nn.Identity | nn.Dropout | nn.Dropout2d) or type(module).__name__ in GATES


def _refusal(model: nn.Module, site: _Site, places: Mapping[nn.Module, int]) -> str | None:
    """Returns the reason why the modules of the site must not be replaced, or None if they can be replaced.

    Otherwise the model would break, or would use the layer without calling the operator. `places` counts for each
    module how many attributes of modules in `model` hold it.
    """
    for name in (*site.merged, site.name):
        module = model.get_submodule(name)
        path, _, attribute = name.rpartition(".")
        parent: type = type(model.get_submodule(path))
        uses = re.findall(rf"\bself\.{attribute}\b(\.weight\b|\.bias\b)?", _forward_source(parent))
        if isinstance(module, Layer):
            if type(module) not in (nn.Conv2d, nn.Linear):
                return f"{type(module).__name__}, a class of its own"
            if any(uses):
                return f"weight read by {parent.__name__}.forward"
        elif len(uses) > 1:
            return f"{attribute} used more than once by {parent.__name__}.forward"
        if site.merged and places[module] > 1:
            return f"{type(module).__name__} registered in {places[module]} places"
    return None


@cache
def _forward_source(parent: type) -> str:
    methods = inspect.getmembers(parent, inspect.isfunction)
    forwards = [method for name, method in methods if name.lstrip("_").startswith("forward")]
    try:
        return "\n".join(inspect.getsource(method) for method in forwards)
    except OSError:
        return ""


def _nothing(model: nn.Module, where: str, kinds: Mapping[str, str], refused: Mapping[str, str]) -> str:
    convs = [kind for kind in kinds.values() if kind != "linear"]
    what = f"none of its {len(convs)} convolutions ({_counted(convs)})" if convs else "nothing: it has no convolution"
    text = f"rule {where} ({WHERE[where].description}) matches {what}"
    if refused:
        text += f" that can be replaced ({_counted(refused.values())})"
    others = [name for name, rule in WHERE.items() if name != where and _select(model, rule, kinds, linear=False)]
    return f"{text}; rules that match: {', '.join(others) or 'none'}"


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


def _make(
    operator: str,
    dense: Layer,
    layer: Layer,
    knobs: Mapping[str, Any],
    init: str,
    convert: bool,
    state: Mapping[str, Tensor] | None,
) -> nn.Module:
    """Returns the operator in the shape of `dense`, on the device and with the frozen state of `layer`.

    If `state` is given, the operator has the sizes of its tensors.
    """
    cls: Any  # a class of the registry, with `reset_parameters` and optional converters
    if isinstance(dense, nn.Conv2d):
        cls, shape, converter = OPERATORS[operator], conv_arguments(dense), "from_conv"
    else:
        cls, shape, converter = LINEAR_OPERATORS[operator], linear_arguments(dense), "from_linear"
    if convert:
        if not hasattr(cls, converter):
            raise ValueError(f"operator {operator} cannot take over weights; start without weights")
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
