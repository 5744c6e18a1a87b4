"""Which layers of a model are replaced: the rules of papers, patterns of names, and reasons to keep a layer."""

import difflib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn

from convrepro.errors import ConvReproError
from convrepro.models.pairs import Layer, Site, find_pairs
from convrepro.models.reads import Reads


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
    "dw_pw_pair": Rule("a depthwise convolution and the 1x1 convolution that follows it, as one", pairs=True),
    "pointwise": Rule("ungrouped 1x1 convolutions, but the first and those in a classifier", frozenset({"pointwise"})),
    "depthwise": Rule("depthwise convolutions", frozenset({"depthwise"})),
    "grouped": Rule("convolutions with several groups, but fewer than input channels", frozenset({"grouped"})),
    "all": Rule(
        "every convolution, and every linear layer where the operator has a linear form",
        frozenset({"first", "classifier", "dense kxk", "pointwise", "depthwise", "grouped", "linear"}),
    ),
}


def layer_kinds(model: nn.Module, network: nn.Module | None = None) -> dict[str, str]:
    """Returns the kind of each convolution and linear layer, keyed by its name, in the order of the model.

    The kind "first" is that of the first convolution of `network`, of which `model` is a part; by default `model` is
    the whole network.
    """
    first = next((layer for layer in (network or model).modules() if isinstance(layer, nn.Conv2d)), None)
    kinds: dict[str, str] = {}
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Linear) and name:
            kinds[name] = "linear"
        elif isinstance(layer, nn.Conv2d) and name:
            kinds[name] = "first" if layer is first else _conv_kind(name, layer)
    return kinds


def other_convolutions(model: nn.Module) -> dict[str, str]:
    """Returns the reason to keep each convolution of a kind that no operator replaces (Conv1d), by its name."""
    convs = {n: m for n, m in model.named_modules() if isinstance(m, nn.modules.conv._ConvNd)}
    return {name: f"{type(m).__name__}, not a Conv2d" for name, m in convs.items() if not isinstance(m, nn.Conv2d)}


def _conv_kind(name: str, conv: nn.Conv2d) -> str:
    if "pre_logits" in name.split("."):
        return "classifier"
    if conv.groups == 1:
        return "pointwise" if conv.kernel_size == (1, 1) else "dense kxk"
    return "depthwise" if conv.groups == conv.in_channels else "grouped"


def select(model: nn.Module, rule: Rule, kinds: Mapping[str, str], *, linear: bool) -> list[Site]:
    """Returns the layers that the rule selects; linear layers only with `linear`."""
    if rule.pairs:
        return find_pairs(model)
    wanted = rule.kinds if linear else rule.kinds - {"linear"}
    return [Site(name, layer_at(model, name)) for name, kind in kinds.items() if kind in wanted]


def left_out(site: Site, include: Sequence[str], exclude: Sequence[str]) -> str | None:
    """Returns the reason if the patterns leave a site out, else None. A pair has the names of both convolutions."""
    names = (site.name, *site.merged[:1])
    if include and not matches(names, include):
        return "not in include"
    return "in exclude" if matches(names, exclude) else None


def check_patterns(key: str, patterns: Iterable[str], names: Iterable[str]) -> None:
    """Raises ConvReproError for a pattern that matches none of the layers' `names`; the message has near ones."""
    layers = list(names)
    for pattern in patterns:
        if matches(layers, [pattern]):
            continue
        if any(matches([name], [f"{pattern}.*"]) for name in layers):
            hint = f"{pattern}.* matches the layers in {pattern}"
        else:
            starts = dict.fromkeys(".".join(n.split(".")[: pattern.count(".") + 1]) for n in layers)
            near = difflib.get_close_matches(pattern, starts, n=3, cutoff=0.4) or layers[:3]
            hint = f"near: {', '.join(near)}" if near else "it has no layers"
        raise ConvReproError(f"{key}: {pattern!r} matches no layer of the network; {hint}")


def matches(names: Iterable[str], patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for name in names for pattern in patterns)


def layer_at(model: nn.Module, name: str) -> Layer:
    """Returns the convolution or linear layer with this name."""
    layer = model.get_submodule(name)
    assert isinstance(layer, Layer)
    return layer


class Refusals:
    """Why modules must not be replaced: the model would break, or would use a layer without calling the operator.

    network: the whole network, of which `model` is a part.
    """

    def __init__(self, model: nn.Module, network: nn.Module) -> None:
        self.model = model
        self.reads = Reads(network)
        self.places = Counter(child for parent in network.modules() for child in parent._modules.values())

    def reason(self, site: Site) -> str | None:
        """Returns the reason to keep the modules of the site, or None if they can be replaced."""
        for name in (*site.merged, site.name):
            module = self.model.get_submodule(name)
            path, _, attribute = name.rpartition(".")
            if isinstance(module, Layer):
                if type(module) not in (nn.Conv2d, nn.Linear):
                    return f"{type(module).__name__}, a class of its own"
                if reader := self.reads.readers.get(module):
                    return f"weight read by {reader}.forward"
            elif not site.traced and len(self.reads.uses.get(module, ())) > 1:
                parent = type(self.model.get_submodule(path)).__name__
                return f"{attribute} used more than once by {parent}.forward"
            if site.merged and self.places[module] > 1:
                return f"{type(module).__name__} registered in {self.places[module]} places"
        return None
