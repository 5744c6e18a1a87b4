"""Surgery: puts another operator in the place of a built model's convolutions, as a paper's rule selects them."""

import inspect
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache

import torch
from torch import Tensor, nn

from convrepro.errors import ConvReproError
from convrepro.ops import LINEAR_OPERATORS, OPERATORS, SqueezeExciteConv, conv_arguments
from convrepro.ops import knobs as knobs_of

Layer = nn.Conv2d | nn.Linear

GATES = {"SqueezeExcite", "SqueezeExcitation", "SEModule", "EffectiveSEModule", "EcaModule"}
"""Class names of the attention that may stand between a depthwise and its pointwise convolution, and stays."""


class NothingToReplace(ConvReproError):
    """A rule that selects no layer of a model."""


@dataclass(frozen=True)
class Rule:
    """Which layers a paper replaces: those of some kinds, or the depthwise-pointwise pairs."""

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
    """One replaced layer: its name in the model, and the `repr` of what was and of what is there."""

    name: str
    before: str
    after: str


@dataclass
class SurgeryReport:
    """What `replace_convs` did: `kept` gives the reason for each convolution that it left as it was."""

    operator: str
    where: str
    replaced: list[Swap] = field(default_factory=list)
    kept: dict[str, str] = field(default_factory=dict)

    def summary(self) -> str:
        """One line: how many layers were replaced, and how many were kept for which reason."""
        if not self.replaced:
            return f"{self.operator}: no layer replaced"
        text = f"{self.operator} at {self.where}: {len(self.replaced)} replaced"
        return f"{text}; kept {_counted(self.kept.values())}" if self.kept else text


@dataclass(frozen=True)
class _Site:
    """A place for an operator: `dense` has the shape to give it, the `merged` modules become `nn.Identity`."""

    name: str
    dense: Layer
    merged: tuple[str, ...] = ()


def replace_convs(
    model: nn.Module,
    operator: str,
    where: str,
    knobs: Mapping[str, object] | None = None,
    *,
    se_reduction: int | None = None,
    init: str = "torch",
    convert: bool = False,
    state: Mapping[str, Tensor] | None = None,
) -> SurgeryReport:
    """Replace, in place, the layers of `model` that the rule `where` selects by `operator`; say what was replaced.

    Each new layer has the shape, bias, device, dtype, mode, memory format and frozen state of the one it replaces. Its
    weights are fresh, drawn by the scheme `init` (see `ops.init`), or with `convert` taken from the replaced layer as
    far as the operator can represent them (`from_conv`, `from_linear`). With `se_reduction`, squeeze-and-excitation
    with that reduction follows each new convolution. The operator "standard" leaves the layers as they are, and adds
    squeeze-and-excitation where asked to. `state` has the tensors, by name, that the model is to load afterwards: from
    them an operator takes what its conversion decides layer by layer (`for_state`).

    Not replaced, and reported as kept: variants of `nn.Conv2d` and `nn.Linear` that are classes of their own, layers
    whose parent reads their weight itself, and pairs with a module that the model uses elsewhere, too.

    Raises NothingToReplace where the rule selects no layer. Raises ConvReproError for an unknown operator, rule or
    knob; where every layer that the rule selects has to be kept; with the layer's name where the operator refuses it;
    and where `convert` has no meaning. The model is then as it was before.
    """
    rule = _choose(WHERE, where, "where rule")
    _check_knobs(operator, _choose(OPERATORS, operator, "operator"), knobs or {})
    report = SurgeryReport(operator, where)
    if operator == "standard" and se_reduction is None:
        return report
    if convert and operator != "standard" and rule.pairs:
        raise ConvReproError(
            f"weights cannot be carried over by rule {where}: the norm and activation between the two convolutions "
            "are dropped; start without weights, or from those of the replaced network"
        )

    kinds = layer_kinds(model)
    sites = _select(model, rule, kinds, linear=operator in LINEAR_OPERATORS)
    places = Counter(child for parent in model.modules() for child in parent._modules.values())
    refused = {site.name: reason for site in sites if (reason := _refusal(model, site, places))}
    sites = [site for site in sites if site.name not in refused]
    if not sites:
        raise (ConvReproError if refused else NothingToReplace)(_nothing(model, where, kinds, refused))

    memory_format = _memory_format(model)
    fresh = {}
    for site in sites:
        layer = model.get_submodule(site.name)
        try:
            excited = se_reduction is not None and isinstance(layer, nn.Conv2d)
            if operator == "standard":
                new = layer
            else:
                own = None if state is None else _below(state, f"{site.name}.conv" if excited else site.name)
                new = _make(operator, site.dense, layer, knobs or {}, init, convert, own)
            if excited:
                new = SqueezeExciteConv(new, se_reduction)
        except ValueError as error:
            raise ConvReproError(f"layer {site.name!r}: {error}") from error
        fresh[site.name] = new.train(layer.training).to(memory_format=memory_format)

    new = {}
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


def _choose(choices: Mapping[str, object], name: str, word: str) -> object:
    if name not in choices:
        raise ConvReproError(f"{word} {name!r} does not exist; valid: {', '.join(choices)}")
    return choices[name]


def _check_knobs(name: str, operator: type[nn.Module], knobs: Mapping[str, object]) -> None:
    valid = knobs_of(operator)
    unknown = [knob for knob in knobs if knob not in valid]
    if unknown:
        raise ConvReproError(f"operator {name} has no knob {unknown[0]!r}; valid: {', '.join(valid) or 'none'}")


def layer_kinds(model: nn.Module) -> dict[str, str]:
    """The kind of each convolution and linear layer, by name, in the order of the model."""
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
    return [_Site(name, model.get_submodule(name)) for name, kind in kinds.items() if kind in wanted]


def _pairs(model: nn.Module) -> Iterator[_Site]:
    """Depthwise convolutions with the 1x1 convolution after them; norm, activation, dropout or a gate may lie between.

    Norms and activations are merged into the pair; dropout and gates stay in front of it.
    """
    for path, parent in model.named_modules():
        depthwise: nn.Conv2d | None = None
        merged: list[str] = []
        for attribute, child in parent._modules.items():  # unlike `named_children`, with what stands there twice
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
    """The dense convolution that stands for a pair, without memory for its weight."""
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
    """Why the model would break, or use the layer past the operator, if the site's modules were replaced.

    `places` counts the attributes, of all modules in `model`, that hold a module.
    """
    for name in (*site.merged, site.name):
        module = model.get_submodule(name)
        path, _, attribute = name.rpartition(".")
        parent = type(model.get_submodule(path))
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
def _forward_source(parent: type[nn.Module]) -> str:
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


def _counted(words: Iterator[str]) -> str:
    return ", ".join(f"{number} {word}" for word, number in Counter(words).items())


def _memory_format(model: nn.Module) -> torch.memory_format:
    """channels_last if a convolution's weight is laid out so."""
    weights = (m.weight for m in model.modules() if isinstance(m, nn.Conv2d) and m.weight[0, 0].numel() > 1)
    last = any(w.is_contiguous(memory_format=torch.channels_last) and not w.is_contiguous() for w in weights)
    return torch.channels_last if last else torch.contiguous_format


def _below(state: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """The tensors of the module called `name`, by their names in it."""
    return {key.removeprefix(f"{name}."): value for key, value in state.items() if key.startswith(f"{name}.")}


def _make(
    operator: str,
    dense: Layer,
    layer: Layer,
    knobs: Mapping[str, object],
    init: str,
    convert: bool,
    state: Mapping[str, Tensor] | None,
) -> nn.Module:
    """The operator in the shape of `dense`, on the device and with the frozen state of `layer`; it fits `state`."""
    is_conv = isinstance(dense, nn.Conv2d)
    cls = OPERATORS[operator] if is_conv else LINEAR_OPERATORS[operator]
    if convert:
        converter = "from_conv" if is_conv else "from_linear"
        if not hasattr(cls, converter):
            raise ValueError(f"operator {operator} cannot take over weights; start without weights")
        new = getattr(cls, converter)(dense, **knobs)
    else:
        shape = conv_arguments(dense) if is_conv else _linear_arguments(dense)
        words = shape | {"device": layer.weight.device, "dtype": layer.weight.dtype} | dict(knobs)
        fitting = state is not None and hasattr(cls, "for_state")
        new = cls.for_state(state, **words) if fitting else cls(**words)
        new.reset_parameters(init)
    for name, parameter in new.named_parameters():
        old = layer.bias if name.endswith("bias") and layer.bias is not None else layer.weight
        if not old.requires_grad:
            parameter.requires_grad_(False)
    return new


def _linear_arguments(linear: nn.Linear) -> dict[str, object]:
    return {"in_features": linear.in_features, "out_features": linear.out_features, "bias": linear.bias is not None}


def _install(model: nn.Module, new: Mapping[str, nn.Module]) -> None:
    """Put each module in the place that is its name, and wherever else the model uses the same module as there."""
    by_old = {model.get_submodule(name): module for name, module in new.items()}
    places = [(place, m) for place, m in model.named_modules(remove_duplicate=False) if m in by_old]
    for place, old in places:
        model.set_submodule(place, by_old[old])
