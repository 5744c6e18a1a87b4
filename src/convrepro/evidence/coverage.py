"""Tries every operator in a network of each family, and records what works, what is refused and why, and what crashes.

A walk through the networks writes its record after each cell, or after each network where it uses several processes, so
that an interrupted walk can be continued. The module `coverage_record` describes the record.
"""

import hashlib
import json
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import BrokenExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

import timm
import torch
import torch.nn.functional as F
from torch import nn

from convrepro import complexity
from convrepro.config.compose import choices, compose_config
from convrepro.config.schema import PLAN
from convrepro.errors import ConvReproError
from convrepro.evidence import cores
from convrepro.evidence.coverage_record import (
    CRASH,
    NOTHING,
    RECORD,
    REFUSED,
    WORKS,
    Cell,
    Facts,
    Operator,
    Place,
    Record,
    new_record,
    read_record,
    write_record,
)
from convrepro.models.build import build
from convrepro.models.layers import layer_kinds
from convrepro.models.sources import list_models
from convrepro.models.surgery import NothingToReplace, SurgeryReport
from convrepro.ops import OPERATORS
from convrepro.runs import environment

PATIENCE = 1800
"""Seconds after which a cell counts as a crash."""

CLASSES = 10
SMALL = 64
"""Height and width of images that are tried before the default size, where a network takes images of any size."""
LARGE = 512
"""Height of images from which on training a network would need more memory than a small machine has."""

Operators = dict[str, Operator]
T = TypeVar("T")


class TrainingError(Exception):
    """Raised for a network that runs but does not train; the message names the parameter."""


@dataclass(frozen=True)
class Plain:
    """A network as timm builds it: the image size (C, H, W) at which it trains, and its parameters and MACs there.

    `trained` names the convolutions and linear layers of which every parameter gets a finite gradient.
    """

    input_size: tuple[int, int, int]
    params: int
    macs: int
    trained: frozenset[str]


def operators(names: Sequence[str] = ()) -> Operators:
    """The configurations of the operators in `conf/conv` by name: of `names`, or of all where that is empty.

    Raises ConvReproError for an unknown name.
    """
    return {
        name: cast(Operator, compose_config([f"conv={name}"]).conv.model_dump())
        for name in names or (c for c in choices("conv") if c != PLAN)
    }


def families() -> dict[str, list[str]]:
    """The networks by family: those that one module of timm or of the zoo defines, without those for timm's tests."""
    found: dict[str, list[str]] = {}
    for name in (name for name in list_models() if not name.startswith("test_")):
        found.setdefault(_family(name), []).append(name)
    return dict(sorted(found.items()))


def _family(name: str) -> str:
    return timm.models.model_entrypoint(name).__module__.removeprefix("timm.models.").removeprefix("convrepro.models.")


def smallest(names: Iterable[str]) -> str:
    """The network with the fewest parameters among those with a dense KxK convolution after the first, else of all.

    Networks that take only large images come last. The networks are built without memory for their weights.
    """

    def rank(name: str) -> tuple[bool, bool, int, str]:
        with torch.device("meta"):
            network = timm.create_model(name, num_classes=CLASSES)
        large = _input_sizes(network)[0][1] > LARGE
        return large, "dense kxk" not in layer_kinds(network).values(), _parameters(network), name

    return min(names, key=rank)


def cover(
    patterns: Sequence[str], configs: Operators, path: Path = RECORD, echo: Callable[[str], None] = print
) -> Record:
    """Tries the operators of `configs` in networks, writes the record to `path`, and returns it.

    The networks are those whose names match one of `patterns` or, without patterns, the smallest network of each
    family. Cells that `path` already holds from this commit, these versions and this processor are kept, unless they
    crashed. Many networks are shared among processes, one for each CPU core.

    Raises ConvReproError for a pattern that matches no network, and where `path` is not a record of coverage.
    """
    matching = _matching(patterns)
    record = read_record(path) if path.exists() else new_record()
    key = _enter_environment(record)
    _enter_operators(record, configs)
    names = matching or _members(record, path, echo)
    if not patterns:
        record["networks"] = {name: entry for name, entry in record["networks"].items() if name in names}
    todo: dict[str, Operators] = {}
    for name in names:
        entry = record["networks"].setdefault(name, {"family": _family(name), "cells": {}})
        if left := {conv: c for conv, c in configs.items() if not _is_current(entry["cells"].get(conv), key)}:
            todo[name] = left
    for name, conv, facts, cell in (_at_once if cores.are_worth_it(len(todo)) else _in_turn)(todo):
        entry = record["networks"][name]
        entry.update(facts)
        entry["cells"][conv] = cell | {"environment": key}
        write_record(path, record)
        echo(f"{name:32} {conv:14} {_in_words(cell, entry)}")
    write_record(path, record)
    return record


def _matching(patterns: Sequence[str]) -> list[str]:
    for pattern in patterns:
        if not list_models(pattern):
            raise ConvReproError(f"--models {pattern} matches no model; `convrepro list models` names them")
    return sorted({name for pattern in patterns for name in list_models(pattern)})


def _enter_environment(record: Record) -> str:
    """Puts this environment into the record; returns its key."""
    described = environment.describe("cpu", "32-true")
    here: dict[str, Any] = {name: described[name] for name in ("commit", "dirty", "versions", "device")}
    key = hashlib.sha256(json.dumps(here, sort_keys=True).encode()).hexdigest()[:6]
    record["environments"][key] = cast(Place, here | {"date": datetime.now(timezone.utc).date().isoformat()})
    return key


def _enter_operators(record: Record, configs: Operators) -> None:
    """Puts `configs` into the record, and removes unknown operators and cells of another configuration."""
    known = {conv: config for conv, config in record["operators"].items() if config["name"] in OPERATORS}
    record["operators"] = {**known, **configs}
    current = {conv for conv, config in known.items() if config == configs.get(conv, config)}
    for entry in record["networks"].values():
        entry["cells"] = {conv: cell for conv, cell in entry["cells"].items() if conv in current}


def _members(record: Record, path: Path, echo: Callable[[str], None]) -> list[str]:
    """The smallest network of each family. The record keeps those of timm, because finding them takes minutes."""
    groups = families()
    known = record["smallest"] if record["timm"] == timm.__version__ else {}
    chosen = {f: name for f, name in known.items() if name in groups.get(f, ()) and not f.startswith("zoo.")}
    record["timm"], record["smallest"] = timm.__version__, chosen
    for family in sorted(groups.keys() - chosen.keys()):
        chosen[family] = smallest(groups[family])
        write_record(path, record)
        echo(f"{family}: {chosen[family]} is the smallest of {len(groups[family])}")
    return [chosen[family] for family in groups]


def _is_current(cell: Cell | None, key: str) -> bool:
    return cell is not None and cell["environment"] == key and cell["outcome"] != CRASH


#: What is found out: network, operator, what the network itself costs, and the cell.
_Found = tuple[str, str, Facts, Cell]


def _in_turn(todo: Mapping[str, Operators]) -> Iterator[_Found]:
    for name, configs in todo.items():
        yield from _walk(name, configs)


def _at_once(todo: Mapping[str, Operators]) -> Iterator[_Found]:
    with cores.pool(__name__) as pool:
        pending = [pool.submit(_walked, name, configs) for name, configs in todo.items()]
        try:
            for future in as_completed(pending):
                yield from future.result()
        except BrokenExecutor as error:
            raise ConvReproError(cores.KILLED) from error
        finally:
            pool.shutdown(cancel_futures=True)


def _walked(name: str, configs: Operators) -> list[_Found]:
    return list(_walk(name, configs))


def _walk(name: str, configs: Operators) -> Iterator[_Found]:
    """Tries each operator in the network `name`; one that refuses a layer is tried again with that layer kept."""
    network = attempt(lambda: _plain(name))
    facts = Facts()
    if isinstance(network, Plain):
        facts = Facts(params=network.params, input_size=list(network.input_size), macs=network.macs)
    for conv, config in configs.items():
        if not isinstance(network, Plain):
            yield name, conv, facts, network
            continue
        cell = attempt(partial(_replaced, name, config, network))
        if cell["outcome"] == REFUSED:
            again = attempt(partial(_replaced, name, {**config, "unfit": "keep"}, network))
            if again["outcome"] == CRASH:
                cell = again
            elif again["outcome"] == WORKS:
                cell |= Cell(outcome=REFUSED, replaced=again["replaced"], macs=again["macs"])
        yield name, conv, facts, cell


def attempt(action: Callable[[], T], patience: int = PATIENCE) -> T | Cell:
    """Returns what `action` returns, or a cell with the reason where it raises.

    An exception other than ConvReproError is a crash, and so is an action that takes longer than `patience` seconds.
    """
    try:
        with _alarm(patience):
            return action()
    except NothingToReplace:
        return Cell(outcome=NOTHING)
    except ConvReproError as error:
        return Cell(outcome=REFUSED, reason=str(error))
    except Exception as error:
        return Cell(outcome=CRASH, reason=" ".join(f"{type(error).__name__}: {error}".split())[:300])


@contextmanager
def _alarm(seconds: int) -> Iterator[None]:
    """Raises TimeoutError inside the block once it has taken so many seconds."""

    def ring(*_: object) -> None:
        raise TimeoutError(f"not done after {seconds} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def _plain(name: str) -> Plain:
    network, _ = _build(name, {"name": "standard", "where": "all"})
    sizes = _input_sizes(network)
    for size in sizes:
        try:
            _backward(network, size)
            break
        except TimeoutError:
            raise
        except Exception:
            if size == sizes[-1]:
                raise
    trained = frozenset(layer for layer in layer_kinds(network) if not _untrained(network, layer))
    network.zero_grad()
    return Plain(size, _parameters(network), int(complexity.count(network, size).total("macs")), trained)


def _replaced(name: str, config: Mapping[str, Any], plain: Plain) -> Cell:
    torch.manual_seed(0)
    network, report = _build(name, config)
    _backward(network, plain.input_size)
    for layer in (swap.name for swap in report.replaced if swap.name in plain.trained):
        if parameter := _untrained(network, layer):
            raise TrainingError(f"{parameter} has no finite gradient")
    network.zero_grad()
    macs = int(complexity.count(network, plain.input_size).total("macs"))
    return {"outcome": WORKS, "replaced": len(report.replaced), "macs": macs}


def _build(name: str, conv: Mapping[str, Any]) -> tuple[nn.Module, SurgeryReport]:
    """Builds the network for the number of image channels that it was made for; networks for MNIST take one."""
    config = timm.get_pretrained_cfg(name)
    return build(name, conv=conv, num_classes=CLASSES, in_chans=config.input_size[0] if config else 3)


def _input_sizes(network: nn.Module) -> list[tuple[int, int, int]]:
    """The image sizes at which to try the network: its smallest or else a small one, then its default."""
    config: Any = network.pretrained_cfg
    default = tuple(config["input_size"])
    if config.get("fixed_input_size"):
        return [default]
    small = tuple(config.get("min_input_size") or (default[0], SMALL, SMALL))
    return [small, default] if small[1] < default[1] else [default]


def _backward(network: nn.Module, input_size: tuple[int, int, int]) -> None:
    """Runs one forward and one backward pass in training mode, with two images.

    Where the network is an encoder that returns features for each token, (B, T, C), the mean over the tokens is taken
    for the logits.
    """
    torch.manual_seed(0)
    network.train().zero_grad()
    logits = network(torch.randn(2, *input_size))
    logits = logits.mean(dim=1) if logits.ndim == 3 else logits
    F.cross_entropy(logits, torch.tensor([0, 1])).backward()


def _untrained(network: nn.Module, layer: str) -> str | None:
    """The name of a trainable parameter in `layer` without a finite gradient; None where every one has it."""
    for name, parameter in network.get_submodule(layer).named_parameters():
        if parameter.requires_grad and (parameter.grad is None or not parameter.grad.isfinite().all()):
            return f"{layer}.{name}"
    return None


def _parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def _in_words(cell: Cell, entry: Mapping[str, Any]) -> str:
    if cell["outcome"] == WORKS:
        macs = f"{entry['macs'] / 1e6:.2f} M -> {cell['macs'] / 1e6:.2f} M MACs"
        return f"{WORKS}: {cell['replaced']} layers replaced, {macs}"
    kept = f"with unfit=keep {cell['replaced']} layers replaced" if "replaced" in cell else None
    return ": ".join(text for text in (cell["outcome"], kept, cell.get("reason")) if text)
