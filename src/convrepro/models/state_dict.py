"""The state dict in a checkpoint: the entry that holds it, the prefixes of its keys, and whether a network fits it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from convrepro.config.strict import text_of
from convrepro.errors import ConvReproError

ENTRIES = ("state_dict", "model_state_dict", "model", "net", "state_dict_ema", "model_ema")
"""Entries of a checkpoint that may hold the state dict; the last two hold averaged weights."""

PREFIXES = ("network.", "module.", "model.", "net.", "backbone.", "_orig_mod.")
"""Prefixes that Lightning modules, DataParallel, `torch.compile` and others add to the keys of a network."""

SHOWN = 5
"""Keys that a message names."""


@dataclass(frozen=True)
class Taken:
    """A state dict with the keys of a network, and where it was in the checkpoint.

    `entry` is the entry of the checkpoint, None if the checkpoint is the state dict itself. `prefix` was removed from
    the keys, and the keys in `left_out` do not have it.
    """

    state: dict[str, Tensor]
    entry: str | None
    prefix: str
    left_out: tuple[str, ...]

    def __str__(self) -> str:
        """Returns what was taken, in words."""
        parts = [f"took {self.entry!r}" if self.entry else "took the whole file"]
        if self.prefix:
            parts.append(f"prefix {self.prefix!r}")
        if self.left_out:
            parts.append(f"left out {_named(self.left_out)}")
        return ", ".join(parts)


def take(content: Mapping[Any, object], network: nn.Module, path: object) -> Taken:
    """Returns the state dict in the content of the checkpoint `path`, with keys of `network` as far as a prefix allows.

    The state dict is the content itself or one of its `ENTRIES`. Of prefixes and stacks of them (`module.model.`), that
    is removed which leaves most keys of the network.

    Raises ConvReproError if there is no state dict, if several entries or prefixes hold different weights of the
    network, and for a key that is no text or a value that is no dense tensor of finite real numbers.
    """
    found: dict[str | None, Mapping[Any, object]] = {}
    for key in ENTRIES:
        if isinstance(inner := content.get(key), Mapping) and _holds_tensors(inner):
            found[key] = inner
    if not found and _holds_tensors(content):
        found[None] = content
    if not found:
        kinds = [f"{text_of(key)} ({type(value).__name__})" for key, value in content.items()]
        raise ConvReproError(
            f"weights {path} hold no state dict: {f'there are {_named(kinds)}' if kinds else 'they are empty'}; valid: "
            f"a state dict, or one under {', '.join(ENTRIES)}"
        )
    for entry, state in found.items():
        for key in state:
            if not isinstance(key, str):
                raise ConvReproError(f"weights {path} have the key {key!r}{_in(entry)}, which is not a text")
    taken = [_unwrapped(state, entry, network, path) for entry, state in found.items()]
    for other in taken[1:]:
        if not _equal(taken[0].state, other.state):
            raise ConvReproError(
                f"weights {path} hold different weights in {taken[0].entry!r} and {other.entry!r}; save the one that "
                f"you mean alone: content = torch.load({str(path)!r}, weights_only=False); "
                f"torch.save(content[{taken[0].entry!r}], 'weights.pth')"
            )
    return taken[0]


def _holds_tensors(content: Mapping[Any, object]) -> bool:
    return any(isinstance(value, Tensor) for value in content.values())


def _unwrapped(state: Mapping[str, object], entry: str | None, network: nn.Module, path: object) -> Taken:
    own = network.state_dict().keys()
    heads = {key.partition(".")[0] for key in own}

    def score(prefix: str) -> tuple[int, bool]:
        inner = [key.removeprefix(prefix) for key in state if key.startswith(prefix)]
        return sum(key in own for key in inner), any(key.partition(".")[0] in heads for key in inner)

    scores = {prefix: score(prefix) for prefix in ("", *_stacks(state))}
    best = max(scores, key=lambda prefix: scores[prefix])
    chosen = _below(state, best, entry, path)
    rivals = [prefix for prefix in scores if prefix != best and scores[prefix] == scores[best]]
    for rival in rivals if scores[best][0] else []:
        if not _equal(chosen, _below(state, rival, entry, path)):
            raise ConvReproError(
                f"weights {path} hold several networks{_in(entry)}, with the prefixes {best!r} and {rival!r}; save the "
                "one that you mean alone, with its keys"
            )
    left_out = tuple(key for key in state if not key.startswith(best))
    return Taken(chosen, entry, best, left_out)


def _stacks(state: Mapping[str, object]) -> Iterator[str]:
    """Every prefix, and stack of prefixes, that keys of `state` have, shorter ones first."""
    stacks = [""]
    for outer in stacks:
        inner = {key.removeprefix(outer).partition(".")[0] + "." for key in state if key.startswith(outer)}
        new = [outer + prefix for prefix in PREFIXES if prefix in inner]
        stacks += new
        yield from new


def _below(state: Mapping[str, object], prefix: str, entry: str | None, path: object) -> dict[str, Tensor]:
    """The part of `state` with this prefix, without it; raises ConvReproError for a value that is no usable tensor."""
    below: dict[str, Tensor] = {}
    for key, value in state.items():
        if not key.startswith(prefix):
            continue
        if not isinstance(value, Tensor):
            raise ConvReproError(
                f"weights {path} hold {text_of(key)}{_in(entry)}, which is {_article(type(value).__name__)}, not a "
                "tensor; save the state dict alone"
            )
        if fault := _fault(value):
            raise ConvReproError(f"weights {path} hold {text_of(key)}{_in(entry)}, which {fault}")
        below[key.removeprefix(prefix)] = value
    if broken := next((key for key, value in below.items() if not _is_finite(value)), None):
        raise ConvReproError(
            f"weights {path} hold values that are not finite, in {text_of(broken)}{_in(entry)}; a diverged training?"
        )
    return below


def _fault(value: Tensor) -> str | None:
    """Why a network cannot take the values of a tensor, as the end of a sentence; None if it can."""
    if value.is_meta:
        return "has a shape and no values (it is on the meta device); save the network after its weights are loaded"
    if value.is_quantized:
        return f"is quantised ({_dtype(value)}); give the weights before quantisation"
    if value.layout != torch.strided:
        return f"is sparse ({str(value.layout).removeprefix('torch.')}); save its to_dense()"
    return f"is complex ({_dtype(value)}); a network takes real numbers" if value.is_complex() else None


def _is_finite(value: Tensor) -> bool:
    return not value.is_floating_point() or bool(value.float().isfinite().all())


def _equal(one: Mapping[str, Tensor], two: Mapping[str, Tensor]) -> bool:
    return one.keys() == two.keys() and all(
        one[key].dtype == two[key].dtype and torch.equal(one[key], two[key]) for key in one
    )


def differences(network: nn.Module, state: Mapping[str, Tensor]) -> list[str]:
    """Returns the reasons why the network cannot load `state`, one phrase for each key; it is empty if it can.

    The number of batches that a batch norm has seen may be missing, as in checkpoints from before torch 0.4.1, because
    `load_state_dict` adds it. Floating-point numbers of any width fit each other, and so do integers.
    """
    own = network.state_dict()
    missing = [f"it lacks {k}" for k in own if k not in state and not k.endswith(".num_batches_tracked")]
    unknown = [f"{text_of(key)} is unknown" for key in state if key not in own]
    both = {key: (state[key], value) for key, value in own.items() if key in state}
    changed = [f"{k} is {tuple(a.shape)}, not {tuple(b.shape)}" for k, (a, b) in both.items() if a.shape != b.shape]
    other = [
        f"{key} is {_dtype(given)}, not {_dtype(value)}"
        for key, (given, value) in both.items()
        if given.is_floating_point() != value.is_floating_point()
    ]
    return missing + unknown + changed + other


def _dtype(value: Tensor) -> str:
    return str(value.dtype).removeprefix("torch.")


def _in(entry: str | None) -> str:
    return f" in {entry!r}" if entry else ""


def _article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiouAEIOU' else 'a'} {noun}"


def _named(keys: tuple[str, ...] | list[str]) -> str:
    more = f" and {len(keys) - SHOWN} more" if len(keys) > SHOWN else ""
    return ", ".join(text_of(key) for key in keys[:SHOWN]) + more
