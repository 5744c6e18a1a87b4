"""Composes the Hydra configuration of one run, and turns what Hydra complains about into one sentence."""

import copy
import difflib
import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from convrepro.config import plugins
from convrepro.config.overrides import key_of, normal, parse, shown
from convrepro.config.paths import CONF
from convrepro.config.plan import whole_plan
from convrepro.config.plugins import GROUPS
from convrepro.config.schema import RunConfig
from convrepro.config.secrets import is_secret, refuse_secrets
from convrepro.config.settle import settled
from convrepro.config.strict import text_of, validated
from convrepro.errors import ConvReproError

OPEN = ("recipe.optimizer.args", "recipe.schedule.args")
"""Mappings of the configuration that take keys that no file of ours lists."""


def choices(group: str) -> list[str]:
    """The names that a config group offers; those of plugins and of the user's folders among them."""
    return plugins.names(group)


def compose_config(overrides: Sequence[str]) -> RunConfig:
    """The configuration of one run, checked against `config.schema`.

    Raises ConvReproError naming the override that does not fit and what would. Also raises for an override that would
    put a secret on record, and for one that asks for a Python object by `_target_`: a table or a manifest is data, and
    composing or running it executes nothing that it names.
    """
    overrides = check_overrides(overrides)
    plugins.load()
    try:
        composed = _composed(overrides)
        tree = _plain(composed)
        written = _written(_groups(overrides), plugins.revision())
    except (HydraException, OmegaConfBaseException) as error:
        raise ConvReproError(_explain(overrides, error)) from error
    tree["conv"] = whole_plan(tree["conv"])
    refuse_secrets(tree)
    if where := _target(tree):
        raise ConvReproError(f"{where} asks for a Python object; a configuration holds numbers, texts and names only")
    validated(RunConfig, tree)
    return validated(RunConfig, settled(tree, written["recipe"], {key_of(text) for text in overrides}))


def check_overrides(overrides: Sequence[str], *, sweep: bool = False) -> list[str]:
    """The overrides in Hydra's grammar (see `overrides.normal`).

    Raises ConvReproError for a text that is no override, one that would put a secret on record, a choice that a group
    does not have and, unless for a `sweep`, one with several values.
    """
    refuse_secrets(overrides)
    for text in overrides:
        override = parse(text)
        key = override.key_or_group
        if "logger." in key and is_secret(key):
            raise ConvReproError(f"{key} would be written to the record of the run; set WANDB_API_KEY or `wandb login`")
        if override.is_sweep_override():
            if not sweep:
                raise ConvReproError(f"{shown(text)} has several values; `convrepro train -m` runs each of them")
        elif not override.is_delete() and (wrong := _unknown_choice(key, override.value())):
            raise ConvReproError(wrong)
    return [normal(text) for text in overrides]


def _plain(cfg: DictConfig) -> dict[str, Any]:
    tree = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(tree, dict), tree
    return {str(key): value for key, value in tree.items()}


def _composed(overrides: Sequence[str]) -> DictConfig:
    """What Hydra composes. It reads every file anew for that, so that the choices of groups are composed once in a
    process, and plain values put into a copy.
    """
    parsed = [parse(text) for text in overrides]
    if not all(map(_is_plain, parsed)):
        return _compose(overrides)
    cfg = copy.deepcopy(_chosen(_groups(overrides), plugins.revision()))
    for override in parsed:
        key, value = override.key_or_group, override.value()
        if override.is_add() and OmegaConf.select(cfg, key) is not None:
            return _compose(overrides)
        if key not in GROUPS:
            added = override.is_add() or override.is_force_add()
            OmegaConf.update(cfg, key, value, merge=True, force_add=added)
    return cfg


def _is_plain(override: Override) -> bool:
    """Whether it chooses of one of our groups, or sets or adds one value of a run."""
    place, key = override.package, override.key_or_group
    added = override.is_add() or override.is_force_add()
    changes = override.type is OverrideType.CHANGE or (added and key not in GROUPS)
    return changes and not override.is_sweep_override() and not place and not re.match(r"hydra\b|.*/", key)


def _groups(overrides: Sequence[str]) -> tuple[str, ...]:
    """Those of the overrides that choose a file of one of our groups."""
    return tuple(text for text in overrides if key_of(text) in GROUPS)


@cache
def _chosen(choices: tuple[str, ...], revision: tuple[object, ...]) -> DictConfig:
    return _compose(choices)


@cache
def _written(choices: tuple[str, ...], revision: tuple[object, ...]) -> dict[str, Any]:
    """What the files say that are chosen; nobody may change it."""
    return _plain(_chosen(choices, revision))


def _compose(overrides: Sequence[str]) -> DictConfig:
    with _hydra():
        return compose("train", overrides=[*plugins.search_path(), *overrides])


def print_whole(overrides: Sequence[str], which: str, *, resolve: bool) -> None:
    """Prints Hydra's own configuration (`which` is "hydra"), or the run's and Hydra's ("all"), as Hydra does."""
    with _hydra(), _own_logging():
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        hydra.show_cfg("train", [*plugins.search_path(), *overrides], cfg_type=which, package=None, resolve=resolve)


def print_info(overrides: Sequence[str], what: str) -> None:
    """Prints what Hydra knows about itself: its search path, defaults or plugins."""
    with _hydra(), _own_logging():
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        hydra.show_info(what, "train", [*plugins.search_path(), *overrides])


@contextmanager
def _hydra() -> Iterator[None]:
    GlobalHydra.instance().clear()
    plugins.tell_hydra()
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        yield


@contextmanager
def _own_logging() -> Iterator[None]:
    """What Hydra does to the logging of the process is undone at the end of the block."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    try:
        yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)


def _target(node: object, where: str = "") -> str | None:
    """The key of the first `_target_` below `node`."""
    children: list[tuple[str, object, object]] = []
    if isinstance(node, dict):
        children = [(f"{where}.{key}" if where else str(key), key, child) for key, child in node.items()]
    elif isinstance(node, list):
        children = [(f"{where}[{index}]", index, child) for index, child in enumerate(node)]
    for path, key, child in children:
        if key == "_target_":
            return path
        if found := _target(child, path):
            return found
    return None


def _explain(overrides: Sequence[str], error: Exception) -> str:
    for text in overrides:
        override = parse(text)
        added = override.is_add() or override.is_delete()
        if sentence := _unknown_key(text, override.key_or_group, overrides, added=added):
            return sentence
    return " ".join(str(error).split())


def _unknown_choice(group: str, value: object) -> str | None:
    if group not in GROUPS or value in choices(group):
        return None
    given, valid = text_of(value), choices(group)
    outside = "" if group != "conv" or plugins.any_operators() else "; for one of another package, give --plugin MODULE"
    return f"{group}={given} does not exist{_near(given, valid)}; valid: {', '.join(valid)}{outside}"


def _unknown_key(text: str, key: str, overrides: Sequence[str], *, added: bool) -> str | None:
    if added or key in GROUPS:
        return None
    chosen = [o for o in overrides if re.fullmatch(rf"({'|'.join(GROUPS)})=\w+", o)]
    node: Any = _chosen(tuple(chosen), plugins.revision())
    parts = key.split(".")
    for depth, part in enumerate(parts):
        if not OmegaConf.is_dict(node) or part not in node:
            where = ".".join(parts[:depth])
            owner = f"{where}={node.name}" if OmegaConf.is_dict(node) and "name" in node else where
            valid = [str(k) for k in node] if OmegaConf.is_dict(node) else []
            named = f"{owner} has no key {part!r}" if owner else f"there is no key {part!r}"
            hint = f"; to add it, write +{text}" if where in OPEN else ""
            return f"{text!r}: {named}{_near(part, valid)}; valid: {', '.join(valid) or 'none'}{hint}"
        node = node._get_node(part)
    return None


def _near(word: str, valid: Sequence[str]) -> str:
    near = difflib.get_close_matches(word, valid, n=1)
    return f" (did you mean {near[0]}?)" if near else ""
