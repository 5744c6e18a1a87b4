"""Depthwise convolutions with the 1x1 convolution after them, which operators replace as one."""

import copy
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain

import torch
from timm.models import get_notrace_functions, get_notrace_modules
from torch import fx, nn

from convrepro.ops import Operator, conv_arguments

Layer = nn.Conv2d | nn.Linear

GATES = {"SqueezeExcite", "SqueezeExcitation", "SEModule", "EffectiveSEModule", "EcaModule"}
"""Class names of channel attention, which may lie between a depthwise and a pointwise convolution and is kept."""


@dataclass(frozen=True)
class Site:
    """A layer to replace. The operator gets the shape of `dense`; the `merged` modules become `nn.Identity`.

    traced: whether a trace has shown that each of these modules is called once, one after the other.
    """

    name: str
    dense: Layer
    merged: tuple[str, ...] = ()
    traced: bool = False


def find_pairs(model: nn.Module) -> list[Site]:
    """Returns each depthwise convolution with the 1x1 convolution after it.

    Norms, activations, dropout and gates may lie between the two. Norms and activations become part of the pair.
    Dropout and gates are kept, before the operator. Pairs in one module are found by the order in which it registers
    its children. A pair whose parts lie in several modules is found by tracing.
    """
    sites = list(_registered(model))
    taken = {name for site in sites for name in (site.name, *site.merged)}
    return [*sites, *(site for site in _traced(model) if taken.isdisjoint((site.name, *site.merged)))]


def _registered(model: nn.Module) -> Iterator[Site]:
    for path, parent in model.named_modules():
        depthwise: nn.Conv2d | None = None
        merged: list[str] = []
        for attribute, child in parent._modules.items():  # `named_children` would skip a module that is there twice.
            if child is None:
                continue
            name = f"{path}.{attribute}" if path else attribute
            if isinstance(child, nn.Conv2d):
                if depthwise is not None and _is_pointwise_after(depthwise, child):
                    yield Site(name, _dense_form(depthwise, child), tuple(merged))
                depthwise, merged = (child, [name]) if _is_depthwise(child) else (None, [])
            elif _is_norm_or_activation(child):
                merged.append(name)
            elif not _keeps_channels(child):
                depthwise = None


def _traced(model: nn.Module) -> Iterator[Site]:
    for path, module, graph in _graphs(model):
        called = {node: module.get_submodule(str(node.target)) for node in graph.nodes if node.op == "call_module"}
        calls = Counter(called.values())
        once = {node: part for node, part in called.items() if calls[part] == 1 and len(node.all_input_nodes) == 1}
        for node, depthwise in once.items():
            if isinstance(depthwise, nn.Conv2d) and _is_depthwise(depthwise):
                yield from _pair(node, depthwise, once, path)


def _pair(node: fx.Node, depthwise: nn.Conv2d, once: Mapping[fx.Node, nn.Module], path: str) -> Iterator[Site]:
    """Yields the pair that begins at `node`, if there is one."""
    merged: list[str] = []
    part: nn.Module | None = depthwise
    while part is depthwise or (part is not None and not isinstance(part, nn.Conv2d)):
        if part is depthwise or _is_norm_or_activation(part):
            merged.append(f"{path}{node.target}")
        elif not _keeps_channels(part):
            return
        if len(node.users) != 1:
            return
        node = next(iter(node.users))
        part = once.get(node)
    if isinstance(part, nn.Conv2d) and _is_pointwise_after(depthwise, part):
        yield Site(f"{path}{node.target}", _dense_form(depthwise, part), tuple(merged), traced=True)


class _Tracer(fx.Tracer):
    """A tracer that records layers, gates and what contains no layer as single calls."""

    def is_leaf_module(self, module: nn.Module, module_qualified_name: str) -> bool:
        whole = isinstance(module, (Layer, Operator, *get_notrace_modules())) or _keeps_channels(module)
        return whole or not any(isinstance(part, Layer) for part in module.modules())


def _graphs(model: nn.Module) -> Iterator[tuple[str, nn.Module, fx.Graph]]:
    """Yields graphs of the largest parts of the model with a depthwise convolution that can be traced, as (prefix of
    names, part, graph). Neither the model nor the random state is changed: a copy with the same tensors is traced.
    """
    tensors = {id(tensor): tensor for tensor in chain(model.parameters(), model.buffers())}
    try:
        twin = copy.deepcopy(model, tensors)
    except Exception:  # A module may hold anything; what cannot be copied is not traced.
        return
    waiting = [("", twin)]
    while waiting:
        path, part = waiting.pop()
        if isinstance(part, Layer) or not any(isinstance(m, nn.Conv2d) and _is_depthwise(m) for m in part.modules()):
            continue
        try:
            with torch.random.fork_rng(devices=[]):
                graph = _Tracer(autowrap_functions=tuple(get_notrace_functions())).trace(part)
        except Exception:  # Tracing can raise anything.
            waiting += [(f"{path}{name}.", child) for name, child in reversed(list(part.named_children()))]
        else:
            yield path, part, graph


def _is_depthwise(conv: nn.Conv2d) -> bool:
    return conv.groups == conv.in_channels == conv.out_channels > 1


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
