"""Removal of whole filters: which of them go, by a score, until a share of filters, MACs or parameters is left.

The dependency graph of torch-pruning (arXiv 2301.12900) finds what a filter is coupled to: its batch norm, the inputs
of the next layers, and the other convolutions that are added to its output.
"""

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import floor
from typing import Any

import torch
from torch import Tensor, nn

from convrepro.config.schema import Prune
from convrepro.errors import ConvReproError
from convrepro.models.filters import Gradients, evaluating, scores
from convrepro.models.layers import check_patterns, matches

#: Steps in which the ratio is tried that meets a target.
STEPS = 1000
HINT = "prune needs torch-pruning: pip install torch-pruning"


@dataclass(frozen=True)
class Whole:
    """The network before anything is removed: filters by convolution, and what a target is a share of.

    `positions` is the number of output positions of each convolution and linear layer, for one image.
    """

    filters: Mapping[str, int]
    positions: Mapping[str, int]
    macs: float
    params: float


@dataclass
class Coupled:
    """Filters that can only be removed together.

    Attributes:
        root: the first convolution that has these filters.
        convs: the convolutions that have them, with the indices that correspond to filters 0, 1, ... of `root`.
        norms: the same of batch norms.
        outputs, inputs: by layer, how many of its channels go with each filter.
    """

    root: str
    number: int
    convs: dict[str, list[int]] = field(default_factory=dict)
    norms: dict[str, list[int]] = field(default_factory=dict)
    outputs: dict[str, float] = field(default_factory=dict)
    inputs: dict[str, float] = field(default_factory=dict)


def whole(network: nn.Module, image: Tensor) -> Whole:
    """Returns the sizes of `network`, which has all its filters, for an image (1, C, H, W)."""
    positions: dict[str, int] = {}
    hooks = []
    for name, layer in network.named_modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            hooks.append(layer.register_forward_hook(_counter(positions, name)))
    try:
        _outputs(network, image)
    finally:
        for hook in hooks:
            hook.remove()
    filters = {name: layer.out_channels for name, layer in network.named_modules() if isinstance(layer, nn.Conv2d)}
    return Whole(filters, positions, *_cost(network, positions, {}, []))


def _counter(positions: dict[str, int], name: str) -> Callable[[nn.Module, Any, Tensor], None]:
    def count(layer: nn.Module, _: Any, output: Tensor) -> None:
        channels = layer.out_channels if isinstance(layer, nn.Conv2d) else layer.out_features
        assert isinstance(channels, int)
        positions[name] = positions.get(name, 0) + output.numel() // (channels * len(output))

    return count


def _outputs(network: nn.Module, image: Tensor) -> Any:
    """The output for an image in evaluation mode; the mode stays what it was."""
    with torch.no_grad(), evaluating(network):
        return network(image)


def prune(
    network: nn.Module, settings: Prune, base: Whole, image: Tensor, *, seed: int, gradients: Gradients | None = None
) -> str:
    """Removes filters of `network` in place, and returns what was removed in one line.

    Shares are of the filters, MACs and parameters in `base`, so that a network which was pruned before is pruned
    further, down to the target, and one that meets it stays as it is. All scores are computed before a filter is
    removed. How many filters of a layer go depends on no weight.

    Args:
        settings: what is removed, by which score.
        image: (1, C, H, W), for which the network is traced and its MACs are counted.
        seed: of random scores.
        gradients: accumulates the gradients of the loss in the parameters, for Taylor scores.

    Raises ConvReproError for patterns that match no convolution, for a target that is out of reach, for a score that
    the layers do not have, and where nothing can be removed.
    """
    _check(network, settings)
    groups, unfit = _usable(network, settings, image, list(base.positions)[-1])
    kept = _kept(network, groups, settings, base)
    chosen = [group for group in groups if kept[group.root] < group.number]
    before = {group.root: group.number for group in chosen}
    if chosen:
        ranked = scores(network, chosen, settings.by or "", seed, gradients)
        gone = {root: ranked[root].argsort(stable=True)[: before[root] - kept[root]].tolist() for root in before}
        _remove(network, image, gone)
    macs, params = _cost(network, base.positions, {}, [])
    shares = f"{100 * macs / base.macs:.1f} % of the MACs and {100 * params / base.params:.1f} % of the parameters"
    removed = sum(before.values()) - sum(kept[root] for root in before)
    more = f" and {len(unfit) - 1} more" if len(unfit) > 1 else ""
    refused = f"; kept {unfit[0]}{more}" if unfit else ""
    return f"by {settings.by}: {removed} filters removed in {len(chosen)} groups of layers, {shares} left{refused}"


def _check(network: nn.Module, settings: Prune) -> None:
    names = [name for name, layer in network.named_modules() if isinstance(layer, nn.Conv2d)]
    patterns = {"include": settings.include, "exclude": settings.exclude}
    patterns |= {f"layers[{index}].include": layer.include for index, layer in enumerate(settings.layers)}
    for key, given in patterns.items():
        check_patterns(f"prune.{key}", given, names)


def _usable(network: nn.Module, settings: Prune, image: Tensor, last: str) -> tuple[list[Coupled], list[str]]:
    """The groups of filters that the settings select and the network can lose, and why others cannot be removed."""
    groups, unfit = [], []
    for group in _groups(network, image, last):
        if any(_left_out(name, settings) for name in group.convs):
            continue
        if reason := _reason(network, group):
            unfit.append(f"those of {group.root}: {reason}")
        else:
            groups.append(group)
    sound = _sound(network, image, groups)
    unfit += [f"those of {group.root}: the network does not run without" for group in groups if group not in sound]
    if len(sound) < len(groups) and sound and not _works(network, image, sound):
        raise ConvReproError("prune: the network does not run without filters; select layers by prune.include")
    if not sound:
        why = unfit[0] if unfit else "prune.include and prune.exclude leave no convolution"
        raise ConvReproError(f"prune: no filter of the network can be removed; {why}")
    return sound, unfit


def _left_out(name: str, settings: Prune) -> bool:
    return bool(settings.include and not matches([name], settings.include)) or matches([name], settings.exclude)


def _reason(network: nn.Module, group: Coupled) -> str | None:
    for name in group.convs:
        conv = network.get_submodule(name)
        assert isinstance(conv, nn.Conv2d)
        if conv.groups > 1 and not conv.groups == conv.in_channels == conv.out_channels:
            return f"{name} has {conv.groups} groups"
    return None


def _graph(network: nn.Module, image: Tensor) -> Any:
    try:
        import torch_pruning
    except ImportError as error:
        raise ConvReproError(HINT) from error
    try:
        with evaluating(network):
            return torch_pruning.DependencyGraph().build_dependency(network, image)
    except Exception as error:  # It traces code of others, and can raise anything.
        reason = " ".join(str(error).split())
        raise ConvReproError(
            f"prune: torch-pruning cannot trace the network: {type(error).__name__}: {reason}"
        ) from error


def _groups(network: nn.Module, image: Tensor, last: str) -> list[Coupled]:
    """The groups of coupled filters in the order of the network, without that of its `last` layer."""
    graph = _graph(network, image)
    names = {layer: name for name, layer in network.named_modules()}
    order = {name: index for index, name in enumerate(names.values())}
    found = []
    for items in graph.get_all_groups(root_module_types=[nn.Conv2d]):
        number = len(items[0].idxs)
        group = Coupled("", number)
        for item in items:
            layer = item.dep.target.module
            name = names.get(layer)
            if name is None:
                continue
            share = len(item.idxs) / number
            if graph.is_out_channel_pruning_fn(item.dep.handler):
                group.outputs[name] = group.outputs.get(name, 0) + share
                if len(item.idxs) == number and isinstance(layer, nn.Conv2d):
                    group.convs[name] = list(item.idxs)
                elif len(item.idxs) == number and isinstance(layer, nn.modules.batchnorm._BatchNorm):
                    group.norms[name] = list(item.idxs)
            else:
                group.inputs[name] = group.inputs.get(name, 0) + share
        group.root = min(group.convs, key=order.__getitem__)
        if last not in group.outputs:
            found.append(group)
    return sorted(found, key=lambda group: order[group.root])


def _sound(network: nn.Module, image: Tensor, groups: list[Coupled]) -> list[Coupled]:
    """Those of the groups without a filter of which the network runs; halves are tried until one group is found."""
    if not groups or _works(network, image, groups):
        return groups
    middle = len(groups) // 2
    halves = (groups[:middle], groups[middle:]) if middle else ()
    return [group for half in halves for group in _sound(network, image, half)]


def _works(network: nn.Module, image: Tensor, groups: Iterable[Coupled]) -> bool:
    """Whether the network runs, to an output of the same shape, without the first filter of each group."""
    trial = copy.deepcopy(network)
    try:
        _remove(trial, image, {group.root: [0] for group in groups if group.number > 1})
        return bool(_outputs(trial, image).shape == _outputs(network, image).shape)
    except Exception:  # What a network raises for inputs of another size is its own.
        return False


def _remove(network: nn.Module, image: Tensor, gone: Mapping[str, Sequence[int]]) -> None:
    """Removes the filters `gone` of each convolution with all that is coupled to them."""
    import torch_pruning

    graph = _graph(network, image)
    for root, indices in gone.items():
        if indices:
            conv = network.get_submodule(root)
            graph.get_pruning_group(conv, torch_pruning.prune_conv_out_channels, list(indices)).prune()


def _kept(network: nn.Module, groups: Sequence[Coupled], settings: Prune, base: Whole) -> dict[str, int]:
    """How many filters each group keeps."""
    own = {
        group.root: next((layer.ratio for layer in settings.layers if matches([group.root], layer.include)), None)
        for group in groups
    }

    def kept(ratio: float) -> dict[str, int]:
        counts = {}
        for group in groups:
            share = own[group.root]
            left = base.filters[group.root] * (1 - (ratio if share is None else share)) / settings.multiple_of
            counts[group.root] = min(group.number, max(1, floor(left + 0.5)) * settings.multiple_of)
        return counts

    target = settings.macs or settings.params
    if target is None:
        return kept(settings.ratio or 0)

    def cost(step: int) -> float:
        macs, params = _cost(network, base.positions, kept(step / STEPS), groups)
        return macs / base.macs if settings.macs else params / base.params

    low, high = 0, STEPS - 1
    if cost(high) > target:
        key = "macs" if settings.macs else "params"
        raise ConvReproError(
            f"prune.{key}={target} is out of reach: with the fewest filters in each layer that is pruned, "
            f"{cost(high):.3f} is left; prune more layers, or take a larger share"
        )
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if cost(middle) <= target else (middle + 1, high)
    return kept(low / STEPS)


def _cost(
    network: nn.Module, positions: Mapping[str, int], kept: Mapping[str, int], groups: Sequence[Coupled]
) -> tuple[float, float]:
    """MACs of convolutions and linear layers, and parameters, if each group keeps its number of filters."""
    outputs: dict[str, float] = {}
    inputs: dict[str, float] = {}
    for group in groups:
        for channels, lost in ((outputs, group.outputs), (inputs, group.inputs)):
            for name, share in lost.items():
                channels[name] = channels.get(name, 0) + share * (group.number - kept[group.root])
    macs = params = 0.0
    for name, layer in network.named_modules():
        own = {key: parameter for key, parameter in layer._parameters.items() if parameter is not None}
        if isinstance(layer, nn.Conv2d | nn.Linear):
            weight = own.pop("weight")
            left = weight.shape[0] - outputs.get(name, 0)
            depthwise = isinstance(layer, nn.Conv2d) and layer.groups > 1
            taken = weight.shape[1] - (0 if depthwise else inputs.get(name, 0))
            size = left * taken * weight[0, 0].numel()
            macs += size * positions.get(name, 0)
            params += size + (left if "bias" in own else 0)
        else:
            params += sum(p.numel() * (1 - outputs.get(name, 0) / len(p)) if p.dim() else 1 for p in own.values())
    return macs, params


def take_shapes(network: nn.Module, state: Mapping[str, Tensor]) -> bool:
    """Gives the layers of `network` the sizes of a pruned network's `state`; returns whether one of them changed.

    The values of resized parameters and buffers are undefined until the state is loaded. Sizes change for convolutions,
    linear layers and norms that keep their number of dimensions; what else differs is left for the caller to find.
    """
    changed = False
    for name, layer in network.named_modules():
        prefix = f"{name}." if name else ""
        for tensors in (layer._parameters, layer._buffers):
            for key, own in tensors.items():
                given = state.get(f"{prefix}{key}")
                if own is None or given is None or own.shape == given.shape or own.dim() != given.dim():
                    continue
                new = own.detach().new_empty(given.shape)
                tensors[key] = nn.Parameter(new, own.requires_grad) if isinstance(own, nn.Parameter) else new
                changed = True
        _tell_size(layer)
    return changed


def _tell_size(layer: nn.Module) -> None:
    """Lets the attributes of a layer say what its weight's shape says."""
    weight = layer._parameters.get("weight")
    if weight is None:
        return
    if isinstance(layer, nn.Conv2d):
        if layer.groups == layer.in_channels == layer.out_channels:
            layer.groups = len(weight)
        layer.out_channels, layer.in_channels = len(weight), weight.shape[1] * layer.groups
    elif isinstance(layer, nn.Linear):
        layer.out_features, layer.in_features = weight.shape
    elif isinstance(layer, nn.modules.batchnorm._BatchNorm):
        layer.num_features = len(weight)
    elif isinstance(layer, nn.LayerNorm):
        layer.normalized_shape = tuple(weight.shape)
    elif isinstance(layer, nn.PReLU):
        layer.num_parameters = len(weight)
