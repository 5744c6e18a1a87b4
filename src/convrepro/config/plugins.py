"""What users add from outside this package: plugins, and folders with configuration files.

A plugin is a Python module that is imported before a configuration is composed, and that registers operators when it
is imported (`convrepro.register_operator`). The option `--plugin` or the environment variable CONVREPRO_PLUGINS names
it, or an installed package declares it as an entry point of the group `convrepro.operators`. A configuration, a table
or a manifest cannot name one, because they are data. A folder, of `--config-dir` or CONVREPRO_CONFIG_DIR, has config
groups such as `conv/` and `recipe/`, and its files can be chosen beside those of `conf/`.

The options set the variables, so that every process that a command starts has the same plugins and folders.
"""

import hashlib
import importlib
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib.metadata import EntryPoint, entry_points, packages_distributions, version
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from convrepro.config.overrides import shown
from convrepro.config.paths import CONF
from convrepro.errors import ConvReproError

PLUGINS, CONFIG_DIR = "CONVREPRO_PLUGINS", "CONVREPRO_CONFIG_DIR"
ENTRY_POINTS = "convrepro.operators"
GROUPS = ("conv", "prune", "data", "recipe", "budget", "trainer", "logger")
#: The folder with the spaces of `convrepro search`, which no run chooses from.
SPACES = "search"


class Offer(NamedTuple):
    """A registered operator: description and content of the file in `conv/` that it would have, and its package."""

    about: str
    content: Mapping[str, Any]
    package: str


_offered: dict[str, Offer] = {}
"""The registered operators by name."""


def use(modules: Sequence[str], places: Sequence[str]) -> None:
    """Adds plugins and folders to the environment variables of this process and of those that it starts."""
    whole = [os.path.abspath(os.path.expanduser(place)) for place in places]
    for variable, separator, present, added in (
        (PLUGINS, ",", plugins(), modules),
        (CONFIG_DIR, os.pathsep, map(str, _places()), whole),
    ):
        if added:
            os.environ[variable] = separator.join(dict.fromkeys([*present, *added]))


def plugins() -> list[str]:
    """The modules that CONVREPRO_PLUGINS names."""
    return [word for text in os.environ.get(PLUGINS, "").split(",") if (word := text.strip())]


def folders() -> list[Path]:
    """The user's folders with configuration files.

    Raises ConvReproError for one that does not exist or has no config group, and for a file that has the name of one
    of `conf/`, which would not be read.
    """
    places = _places()
    for place in places:
        if not place.is_dir():
            raise ConvReproError(f"--config-dir {shown(str(place))} is not a folder")
        found = [path for group in (*GROUPS, SPACES) for path in sorted((place / group).glob("*.yaml"))]
        if not found:
            raise ConvReproError(
                f"--config-dir {shown(str(place))} has no configuration; it needs a file such as "
                f"conv/my_operator.yaml, in a folder of the name of a config group: {', '.join((*GROUPS, SPACES))}"
            )
        if taken := [path for path in found if (CONF / path.parent.name / path.name).exists()]:
            raise ConvReproError(
                f"{taken[0]} has the name of a file of convrepro, which would be read in its place; give it another"
            )
    return places


def words() -> list[str]:
    """The options that give another command the plugins and folders of this one."""
    modules = [word for module in plugins() for word in ("--plugin", module)]
    return modules + [word for place in _places() for word in ("--config-dir", str(place))]


def load() -> None:
    """Imports the plugins, once in a process.

    Raises ConvReproError for one that is not the name of a module, that cannot be imported, or that registers an
    operator which breaks a rule.
    """
    _load_installed()
    for module in plugins():
        if not all(part.isidentifier() for part in module.split(".")):
            raise ConvReproError(
                f"plugin {shown(module)} is not the name of a module; write it as in an import, such as my_package.ops"
            )
        _import(module, f"plugin {module}")


def provides(module: str) -> bool:
    """Whether `module` belongs to the package of a plugin, so that a configuration may name what it defines."""
    load()
    installed = {entry.module for entry in _declared()}
    return module.partition(".")[0] in {name.partition(".")[0] for name in (*plugins(), *installed)}


def any_operators() -> bool:
    """Whether operators of other packages may be in use."""
    return bool(plugins() or _offered or _declared())


def offer(name: str, about: str, content: Mapping[str, Any], module: str) -> None:
    """Makes `conv=<name>` a choice with this content, where no file of that name is there to say otherwise.

    `module` is that of the operator's class.
    """
    _offered[name] = Offer(about, content, module.partition(".")[0])


def code(model: str, operators: Iterable[str]) -> dict[str, dict[str, str | None]]:
    """What of other packages a network consists of: version and digest of the Python files of each, by its name.

    `model` may name a factory of one; of `operators` those that are registered belong to one. The version of a package
    that is not installed is None.
    """
    named = {_offered[name].package for name in operators if name in _offered}
    module, factory, _ = model.partition(":")
    if factory and provides(module):
        named.add(module.partition(".")[0])
    return {package: {"version": _version(package), "digest": _digest(package)} for package in sorted(named)}


def _version(package: str) -> str | None:
    owners = packages_distributions().get(package)
    return version(owners[0]) if owners else None


def _digest(package: str) -> str:
    module = sys.modules[package]
    places = [Path(place) for place in getattr(module, "__path__", ())]
    sources = [(path.relative_to(place).as_posix(), path) for place in places for path in place.rglob("*.py")]
    if not places and (file := getattr(module, "__file__", None)):
        sources = [(package, Path(file))]
    digest = hashlib.sha256()
    for name, path in sorted(sources):
        digest.update(f"{name} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()[:16]


def names(group: str) -> list[str]:
    """The choices of a config group, sorted."""
    load()
    return sorted({*files(group), *(_offered if group == "conv" else ())})


def files(group: str) -> set[str]:
    """Those of the choices of a config group that have a file; nothing is imported to find them."""
    return {path.stem for place in (CONF, *folders()) for path in (place / group).glob("*.yaml")}


def content(group: str, name: str) -> dict[str, Any]:
    """What the file of a choice says, on top of those files of its group that it builds on; empty without a file."""
    path = _file(group, name)
    own = read(path) if path else {}
    below = (content(group, str(base)) for base in own.pop("defaults", ()))
    return {key: value for tree in (*below, own) for key, value in tree.items()}


def describe(group: str, name: str) -> str:
    """What a choice is: the comment in the first line of its file, or the summary of an operator without a file."""
    path = _file(group, name)
    if path is None:
        return _offered[name].about
    first = path.read_text(encoding="utf-8").partition("\n")[0]
    return first.lstrip("# ") if first.startswith("#") else ""


def read(path: Path) -> dict[str, Any]:
    """What a YAML file says, as a new mapping."""
    return dict(_cached(path))


def knobs(operator: str) -> dict[str, Any]:
    """The content of an operator's file, or what stands in its place; empty for an operator that is not known."""
    path = _file("conv", operator)
    if path:
        return dict(read(path))
    return dict(_offered[operator].content) if operator in _offered else {}


def revision() -> tuple[object, ...]:
    """What the choices of the groups depend on besides the files of `conf/`."""
    return (*folders(), *((name, repr(offered.content)) for name, offered in _offered.items()))


def tell_hydra() -> None:
    """Gives Hydra the choices that have no file; call it before Hydra composes.

    Hydra would take the content of a choice that has a file, too, for a schema of the file, and warn.
    """
    from hydra.core.config_store import ConfigStore  # slow, and not needed to show what is on record

    store, present = ConfigStore.instance(), files("conv")
    for name, offered in _offered.items():
        if name not in present:
            store.store(name=name, node=dict(offered.content), group="conv", provider="convrepro")
        elif "conv" in store.repo:
            store.repo["conv"].pop(f"{name}.yaml", None)


def search_path() -> list[str]:
    """The override by which Hydra finds the files in the user's folders."""
    listed = ",".join("'file://" + str(place).replace("'", r"\'") + "'" for place in folders())
    return [f"hydra.searchpath=[{listed}]"] if listed else []


def _places() -> list[Path]:
    return [Path(text) for text in os.environ.get(CONFIG_DIR, "").split(os.pathsep) if text]


def _file(group: str, name: str) -> Path | None:
    paths = [place / group / f"{name}.yaml" for place in (CONF, *_places())]
    return next((path for path in paths if path.is_file()), None)


@cache
def _cached(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


@cache
def _declared() -> tuple[EntryPoint, ...]:
    """The entry points of installed packages; finding them takes a tenth of a second."""
    return tuple(entry_points(group=ENTRY_POINTS))


@cache
def _load_installed() -> None:
    for entry in _declared():
        owner = f" of the installed package {entry.dist.name}" if entry.dist else ""
        _import(entry.module, f"entry point {entry.name} = {entry.value}{owner}")


def _import(module: str, what: str) -> None:
    try:
        importlib.import_module(module)
    except ConvReproError as error:
        raise ConvReproError(f"{what}: {error}") from error
    except (Exception, SystemExit) as error:  # the module is a user's, and can raise anything
        hint = ""
        if isinstance(error, ModuleNotFoundError) and module.partition(".")[0] == error.name:
            hint = "; install it, or put the folder that it is in on PYTHONPATH"
        reason = " ".join(str(error).split())
        raise ConvReproError(f"{what} cannot be imported: {type(error).__name__}: {reason}{hint}") from error
