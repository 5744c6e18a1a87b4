"""The networks among which a search chooses: for each layer, or group of layers, the operators that fit there.

What does not fit is excluded when the space is built: each operator is put into the network by the real surgery, and a
layer that rejects it has it not as a choice. So no trial fails because a knob does not divide the layer's channels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Annotated, Any

from pydantic import Field
from torch import nn

from convrepro.complexity import Count
from convrepro.config import plugins
from convrepro.config.compose import compose_config
from convrepro.config.overrides import key_of, setting, shown
from convrepro.config.plugins import SPACES
from convrepro.config.schema import Name, RunConfig
from convrepro.config.strict import Record, validated
from convrepro.errors import ConvReproError
from convrepro.evidence.counts import count
from convrepro.models.build import build_network
from convrepro.models.layers import WHERE, layer_kinds, select
from convrepro.models.pairs import Site
from convrepro.ops import ConvOperator, LinearOperator, SqueezeExciteConv
from convrepro.ops.init import RepeatedFill
from convrepro.runs.comparison import Choice, operators

#: The choice that keeps a layer as it is.
DENSE = "dense"
#: Combinations of options at most: the network is built for each of them with each operator.
MOST_VARIANTS = 32
RESERVED = ("conv", "model", "data", "seed", "budget", "table", "row", "weights", "train")

Params = Mapping[str, str]
Text = Annotated[str, Field(min_length=1, max_length=4096)]


class Definition(Record):
    """The content of a file in `conf/search`."""

    name: Name
    where: Text
    group: Annotated[int, Field(ge=1, le=9)] | None
    choices: Annotated[list[Text], Field(min_length=1)]
    options: dict[str, list[Any]]


@dataclass(frozen=True)
class Cost:
    """The cost of a network for one image: multiply-accumulates, and parameters."""

    macs: int
    params: int

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.macs + other.macs, self.params + other.params)

    def __sub__(self, other: "Cost") -> "Cost":
        return Cost(self.macs - other.macs, self.params - other.params)


@dataclass(frozen=True)
class Variant:
    """A combination of options, by the overrides that it adds.

    rest: the cost of everything but the layers that have a choice.
    layers: the cost of each such layer by choice.
    """

    overrides: tuple[str, ...]
    rest: Cost
    layers: Mapping[str, Mapping[str, Cost]]


def definition(name: str) -> Definition:
    """The space of this name in `conf/search`, or in a folder of the user's own.

    Raises ConvReproError for an unknown name, and for a file with a mistake.
    """
    if name not in (known := sorted(plugins.files(SPACES))):
        raise ConvReproError(f"--space {shown(name)} does not exist; valid: {', '.join(known)}")
    found = validated(Definition, plugins.content(SPACES, name), f"{SPACES}/{name}.yaml")
    if found.where not in WHERE:
        raise ConvReproError(f"{SPACES}/{name}.yaml: where={found.where!r} does not exist; valid: {', '.join(WHERE)}")
    for key, values in found.options.items():
        if key.split(".")[0] in RESERVED or not values:
            raise ConvReproError(
                f"{SPACES}/{name}.yaml: options.{key}={values} must be the values of an override of the network, such "
                "as se_reduction: [null, 8]"
            )
    return found


class Space:
    """The choices of a network, and what each costs.

    Attributes:
        dimensions: the choices by name: of a layer or a group of layers its operators, of an option its values.
        members: the layers of each dimension that is not an option.
        refused: why an operator fits nowhere, by its title.
        dense: the cost of the network without an operator and without options.
    """

    def __init__(self, found: Definition, base: Sequence[str]) -> None:
        """Builds the network with each operator of the definition.

        `base` are the overrides that name the network and its data. Raises ConvReproError where no operator fits
        anywhere, and for a base that does not compose.
        """
        self.definition = found
        self.base = tuple(base)
        self.choices = {choice.title: choice for choice in operators(found.choices)}
        if DENSE in self.choices:
            raise ConvReproError(f"{SPACES}/{found.name}.yaml: {DENSE} is always a choice; leave it out")
        self.refused: dict[str, str] = {}
        self.network = compose_config([*self.base, "conv=standard"])
        values = {key: [_text(value) for value in listed] for key, listed in found.options.items()}
        combinations = list(product(*values.values()))
        if len(combinations) > MOST_VARIANTS:
            raise ConvReproError(
                f"{SPACES}/{found.name}.yaml: its options have {len(combinations)} combinations; at most "
                f"{MOST_VARIANTS} are allowed"
            )
        self.variants = {texts: self._variant(dict(zip(values, texts, strict=True))) for texts in combinations}
        self.members, choices = self._grouped()
        if not self.members:
            reason = next(iter(self.refused.values()), f"rule {found.where} selects none of its layers")
            raise ConvReproError(
                f"{self.network.model} has no layer that an operator of --space {found.name} can replace: {reason}"
            )
        self.options = tuple(values)
        self.dimensions: dict[str, tuple[str, ...]] = {**choices, **{key: tuple(v) for key, v in values.items()}}
        plain = not values and self.network.se_reduction is None
        self.dense = self.cost(dict.fromkeys(choices, DENSE)) if plain else _total(count(self.network)[0])

    @property
    def size(self) -> int:
        """The number of networks."""
        number = 1
        for choices in self.dimensions.values():
            number *= len(choices)
        return number

    def cost(self, params: Params) -> Cost:
        """What the network with these choices costs."""
        variant = self._chosen(params)
        total = variant.rest
        for layer, choice in self._by_layer(params).items():
            total += variant.layers[layer][choice]
        return total

    def overrides(self, params: Params) -> tuple[str, ...]:
        """The overrides that make the network with these choices, without those of the base."""
        by_choice: dict[str, list[str]] = {}
        for layer, choice in self._by_layer(params).items():
            by_choice.setdefault(choice, []).append(layer)
        variant = self._chosen(params).overrides
        if not any(key_of(text) == "se_reduction" and text != "se_reduction=null" for text in (*self.base, *variant)):
            by_choice.pop(DENSE, None)
        if not by_choice:
            return ("conv=standard", *variant)
        entries = ", ".join(self._entry(choice, layers) for choice, layers in by_choice.items())
        return ("conv=plan", f"conv.entries=[{entries}]", *variant)

    def uniform(self) -> dict[str, dict[str, str]]:
        """The choices of the networks with one operator wherever it fits, by the title of the operator."""
        plain = {key: self.dimensions[key][0] for key in self.options}
        return {
            title: {name: title if title in self.dimensions[name] else DENSE for name in self.members} | plain
            for title in self.choices
            if any(title in self.dimensions[name] for name in self.members)
        }

    @cached_property
    def least(self) -> Cost:
        """The fewest MACs, and the fewest parameters, that a network of the space has."""
        return Cost(*(min(self._least(variant, of) for variant in self.variants.values()) for of in ("macs", "params")))

    def _least(self, variant: Variant, of: str) -> int:
        total = getattr(variant.rest, of)
        for name, layers in self.members.items():
            total += min(sum(getattr(variant.layers[n][c], of) for n in layers) for c in self.dimensions[name])
        return total

    def _chosen(self, params: Params) -> Variant:
        return self.variants[tuple(params[key] for key in self.definition.options)]

    def _by_layer(self, params: Params) -> dict[str, str]:
        return {layer: params[name] for name, layers in self.members.items() for layer in layers}

    def _entry(self, choice: str, layers: Sequence[str]) -> str:
        names = ", ".join(f"'{layer}'" for layer in layers)
        placed = {"include": f"[{names}]", "name": "standard", "where": self.definition.where}
        if choice != DENSE:
            first, *knobs = self.choices[choice].overrides
            placed["name"] = setting(first)[1]
            placed |= {key_of(text).removeprefix("conv."): text.partition("=")[2] for text in knobs}
        return "{" + ", ".join(f"{key}: {value}" for key, value in placed.items()) + "}"

    def _variant(self, options: Mapping[str, str]) -> Variant:
        overrides = tuple(f"{key}={value}" for key, value in options.items())
        words = [*self.base, *overrides]
        plain = compose_config([*words, "conv=standard", "se_reduction=null"])
        counted, _ = count(plain)
        with RepeatedFill():
            network, _ = build_network(plain)
        sites = select(network, WHERE[self.definition.where], layer_kinds(network), linear=True)
        dense = {site.name: _dense(counted, site) for site in sites}
        costs: dict[str, dict[str, Cost]] = {name: {} for name in dense}
        gated = compose_config([*words, "conv=standard"]).se_reduction is not None
        for title, choice in {DENSE: Choice(DENSE, ("conv=standard",)), **self.choices}.items():
            if title == DENSE and not gated:
                for name, cost in dense.items():
                    costs[name][DENSE] = cost
                continue
            for name, cost in self._fitting(words, title, choice, counted).items():
                costs[name][title] = cost
        layers = {name: found for name, found in costs.items() if DENSE in found and len(found) > 1}
        rest = _total(counted)
        for name in layers:
            rest -= dense[name]
        return Variant(overrides, rest, layers)

    def _fitting(self, words: Sequence[str], title: str, choice: Choice, counted: Count) -> dict[str, Cost]:
        """The layers that take the operator, each with what it costs there."""
        where = f"conv.where={self.definition.where}"
        try:
            cfg = compose_config([*words, *choice.overrides, where, "conv.unfit=keep"])
            with RepeatedFill():
                network, report = build_network(cfg)
        except ConvReproError as error:
            self.refused.setdefault(title, str(error))
            return {}
        return {swap.name: _cost(network.get_submodule(swap.name), counted, swap.name) for swap in report.replaced}

    def _grouped(self) -> tuple[dict[str, tuple[str, ...]], dict[str, tuple[str, ...]]]:
        """The layers of each dimension, and the choices that all of these have in all variants."""
        first, *others = self.variants.values()
        groups: dict[str, list[str]] = {}
        for layer in first.layers:
            if all(layer in variant.layers for variant in others):
                words = layer.split(".")
                groups.setdefault(".".join(words[: self.definition.group]), []).append(layer)
        members, choices = {}, {}
        for name, layers in groups.items():
            fits = [
                title
                for title in (DENSE, *self.choices)
                if all(title in variant.layers[layer] for variant in self.variants.values() for layer in layers)
            ]
            if len(fits) > 1:
                members[name], choices[name] = tuple(layers), tuple(fits)
        return members, choices


def _total(counted: Count) -> Cost:
    return Cost(int(counted.total("macs")), int(counted.total("params")))


def _dense(counted: Count, site: Site) -> Cost:
    """The cost of the layers that an operator at this site replaces."""
    replaced = [layer for layer in counted.layers if layer.name in (site.name, *site.merged)]
    kinds = {"conv", "linear", "matmul"}
    return Cost(sum(layer.macs for layer in replaced if layer.kind in kinds), sum(layer.params for layer in replaced))


def _cost(module: nn.Module, counted: Count, name: str) -> Cost:
    """The cost of the module that took the place of the layer `name`, at the positions that the layer had."""
    (place,) = (layer for layer in counted.layers if layer.name == name)
    params = sum(parameter.numel() for parameter in module.parameters())
    gate = 0
    if isinstance(module, SqueezeExciteConv):
        gate, module = module.se.macs(), module.conv
    if isinstance(module, ConvOperator):
        return Cost(module.macs(place.out_h, place.out_w) + gate, params)
    if isinstance(module, LinearOperator):
        return Cost(module.macs(place.out_h, place.out_w), params)
    return Cost(place.macs + gate, params)


def _text(value: Any) -> str:
    """A value of an option in Hydra's grammar."""
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value).replace(" ", "")


def composed(space: Space, params: Params, *more: str) -> RunConfig:
    """The configuration of the network with these choices."""
    return compose_config([*space.base, *space.overrides(params), *more])
