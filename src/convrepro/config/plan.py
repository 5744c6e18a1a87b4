"""Layer plans as data: the entries of `conv=plan`, each with what its operator's file says where it is silent."""

import re
from collections.abc import Mapping
from os.path import expanduser
from pathlib import Path
from typing import Any

import yaml

from convrepro.config import plugins
from convrepro.errors import ConvReproError

#: Keys of an operator's configuration that are no knobs.
PLACES = ("name", "where", "include", "exclude", "unfit", "entries")
#: Entries that the name of a plan shows at most.
SHOWN = 3


def whole_plan(conv: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration `conv` with the entries of its plan in full: read where a file is named, and without gaps.

    Raises ConvReproError for a file that cannot be read.
    """
    entries = conv.get("entries")
    if isinstance(entries, str):
        entries = _read(entries)
    if not isinstance(entries, list):
        return dict(conv) | ({"entries": entries} if "entries" in conv else {})
    return {**conv, "entries": [{**defaults(entry), **entry} if _is_entry(entry) else entry for entry in entries]}


def defaults(conv: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of an operator with the defaults of its file; nothing for an operator that is not known."""
    name = str(conv.get("name"))
    return plugins.knobs(name) if re.fullmatch(r"[\w-]+", name) else {}


def conv_name(conv: Mapping[str, Any]) -> str:
    """The operator of a configuration, or a plan with its operators: `plan:hetconv(p=2)+shift`.

    Of the knobs those are named that are not the defaults of the operator's file.
    """
    entries = conv.get("entries")
    if not entries:
        return str(conv["name"])
    titles = dict.fromkeys(map(_title, entries))
    more = [f"{len(titles) - SHOWN} more"] if len(titles) > SHOWN else []
    return f"plan:{'+'.join([*list(titles)[:SHOWN], *more])}"


def made_by(config: Mapping[str, Any]) -> str:
    """What makes a run's network cheaper: its operator or plan; `pruned:l1` where filters are removed instead."""
    by = (config.get("prune") or {}).get("by")
    return f"pruned:{by}" if by else conv_name(config["conv"])


def operators(conv: Mapping[str, Any]) -> set[str]:
    """The names of the operators of a configuration; of a plan, those of its entries."""
    return {str(placed["name"]) for placed in conv.get("entries") or [conv]}


def _title(entry: Mapping[str, Any]) -> str:
    known = defaults(entry)
    knobs = {key: value for key, value in entry.items() if key not in PLACES and known.get(key) != value}
    shown = ",".join(f"{key}={value}" for key, value in knobs.items())
    return f"{entry['name']}({shown})" if shown else str(entry["name"])


def _is_entry(entry: object) -> bool:
    return isinstance(entry, Mapping) and isinstance(entry.get("name"), str)


def _read(name: str) -> object:
    path = Path(expanduser(name))
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no YAML"
        raise ConvReproError(f"conv.entries={name} cannot be read: {reason}; give a YAML file with a list") from error
    if not isinstance(content, list):
        raise ConvReproError(f"conv.entries={name}: the file must contain a list of entries")
    return content
