"""Composes the Hydra configuration of one run, and turns what Hydra complains about into one sentence."""

import copy
import difflib
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from convrepro.config.paths import CONF
from convrepro.config.secrets import is_secret, refuse_secrets
from convrepro.errors import ConvReproError

GROUPS = ("conv", "data", "recipe", "budget", "trainer", "logger")

NUMBERS = ("seed", "recipe.epochs", "recipe.batch_size", "data.image_size", "trainer.num_nodes", "trainer.accumulate")
"""Keys whose values are whole numbers."""
_LIMITS = ("epochs", "max_batch_size", "train_examples", "test_examples", "max_image_size")
LIMITS = tuple(f"budget.{key}" for key in _LIMITS)
"""Whole numbers that may be null."""


def choices(group: str) -> list[str]:
    """The names that a config group offers."""
    return sorted(p.stem for p in (CONF / group).glob("*.yaml"))


def describe(group: str, name: str) -> str:
    """The first comment line of a config file: what the choice is."""
    first = (CONF / group / f"{name}.yaml").read_text().splitlines()[0]
    return first.lstrip("# ") if first.startswith("#") else ""


def compose_config(overrides: Sequence[str]) -> DictConfig:
    """The configuration of one run; raises ConvReproError naming the override that does not fit and what would.

    Also raises for an override that would put a secret on record, and for one that asks for a Python object by
    `_target_`: a table or a manifest is data, and composing or running it executes nothing that it names.
    """
    check_overrides(overrides)
    try:
        cfg = _composed(overrides)
        settle(cfg)
    except (HydraException, OmegaConfBaseException) as error:
        with _hydra():
            raise ConvReproError(_explain(overrides, error)) from error
    return cfg


def check_overrides(overrides: Sequence[str]) -> None:
    """Raises ConvReproError for an override that would put a secret on record."""
    refuse_secrets(overrides)
    for key in (override.split("=")[0] for override in overrides):
        if "logger." in key and is_secret(key):
            raise ConvReproError(f"{key} would be written to the record of the run; set WANDB_API_KEY or `wandb login`")


def plain(node: Any) -> Any:
    """A part of a configuration as dictionaries, lists and scalars; anything else as it is."""
    return OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node


def _composed(overrides: Sequence[str]) -> DictConfig:
    """What Hydra composes. It reads every file anew for that, so that the choices of groups are composed once in a
    process, and plain values put into a copy.
    """
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    if not all(map(_is_plain, parsed)):
        return _compose(overrides)
    cfg = copy.deepcopy(_chosen(tuple(o.input_line for o in parsed if o.key_or_group in GROUPS)))
    for override in parsed:
        key, value = override.key_or_group, override.value()
        if override.is_add() and OmegaConf.select(cfg, key) is not None:
            return _compose(overrides)
        if key not in GROUPS:
            OmegaConf.update(cfg, key, value, merge=True, force_add=override.is_add())
    return cfg


def _is_plain(override: Override) -> bool:
    """Whether it chooses of one of our groups, or sets or adds one value of a run."""
    place, key = override.package, override.key_or_group
    changes = override.type is OverrideType.CHANGE or (override.is_add() and key not in GROUPS)
    return changes and not override.is_sweep_override() and not place and not re.match(r"hydra\b|.*/", key)


@cache
def _chosen(choices: tuple[str, ...]) -> DictConfig:
    return _compose(choices)


def _compose(overrides: Sequence[str]) -> DictConfig:
    with _hydra():
        return compose("train", overrides=list(overrides))


@contextmanager
def _hydra() -> Iterator[None]:
    GlobalHydra.instance().clear()
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        yield


def settle(cfg: DictConfig) -> None:
    """Resolve a composed configuration, in place: interpolations, and the batch that its budget allows.

    A batch above `budget.max_batch_size` shrinks to it, and the learning rate in proportion (Goyal et al.,
    arXiv 1706.02677, section 2.1). Raises ConvReproError for a `_target_`, and for a value that no run can have.
    """
    OmegaConf.resolve(cfg)
    if where := _target(cfg):
        raise ConvReproError(f"{where} asks for a Python object; a configuration holds numbers, texts and names only")
    _check_values(cfg)
    largest, recipe = cfg.budget.max_batch_size, cfg.recipe
    if largest and recipe.batch_size > largest:
        recipe.optimizer.lr *= largest / recipe.batch_size
        recipe.batch_size = largest


def _check_values(cfg: DictConfig) -> None:
    for key in (*NUMBERS, *LIMITS):
        value, least = OmegaConf.select(cfg, key), 0 if key == "seed" else 1
        if key in LIMITS and value is None:
            continue
        if type(value) is not int or value < least:
            raise ConvReproError(f"{key}={value} must be a whole number of at least {least}")
    for key in ("runs", "model"):
        if not isinstance(cfg[key], str):
            raise ConvReproError(f"{key}={cfg[key]} is read as a number; put it in quotes: {key}=\"'{cfg[key]}'\"")
    if (cfg.table is None) != (cfg.row is None):
        raise ConvReproError(f"table={cfg.table} and row={cfg.row} go together: give both, or neither")


def _target(node: object, where: str = "") -> str | None:
    """The key of the first `_target_` below `node`."""
    if OmegaConf.is_dict(node):
        children = [(f"{where}.{key}" if where else str(key), key, node[key]) for key in node]
    elif OmegaConf.is_list(node):
        children = [(f"{where}[{index}]", index, child) for index, child in enumerate(node)]
    else:
        return None
    for path, key, child in children:
        if key == "_target_":
            return path
        if found := _target(child, path):
            return found
    return None


def _explain(overrides: Sequence[str], error: Exception) -> str:
    for text in overrides:
        try:
            override = OverridesParser.create().parse_override(text)
        except HydraException:
            return f"{text!r} is not an override; write key=value, for example conv.p=4"
        sentence = _unknown_choice(override.key_or_group, override.value()) or _unknown_key(
            text, override.key_or_group, overrides, added=override.is_add() or override.is_delete()
        )
        if sentence:
            return sentence
    return " ".join(str(error).split())


def _unknown_choice(group: str, value: object) -> str | None:
    if group not in GROUPS or value in choices(group):
        return None
    return f"{group}={value} does not exist{_near(str(value), choices(group))}; valid: {', '.join(choices(group))}"


def _unknown_key(text: str, key: str, overrides: Sequence[str], *, added: bool) -> str | None:
    if added or key in GROUPS:
        return None
    chosen = [o for o in overrides if re.fullmatch(rf"({'|'.join(GROUPS)})=\w+", o)]
    node = compose("train", overrides=chosen)
    parts = key.split(".")
    for depth, part in enumerate(parts):
        if not OmegaConf.is_dict(node) or part not in node:
            where = ".".join(parts[:depth])
            owner = f"{where}={node.name}" if OmegaConf.is_dict(node) and "name" in node else where
            valid = [str(k) for k in node] if OmegaConf.is_dict(node) else []
            named = f"{owner} has no key {part!r}" if owner else f"there is no key {part!r}"
            return f"{text!r}: {named}{_near(part, valid)}; valid: {', '.join(valid) or 'none'}"
        node = node._get_node(part)
    return None


def _near(word: str, valid: Sequence[str]) -> str:
    near = difflib.get_close_matches(word, valid, n=1)
    return f" (did you mean {near[0]}?)" if near else ""
