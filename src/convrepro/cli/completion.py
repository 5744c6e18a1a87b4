"""Completion in bash and zsh, by argcomplete: of verbs and options, names of tables, and Hydra's overrides.

A shell waits for it at each press of the key, so that it reads file names and YAML alone: it imports no plugin, and
neither torch nor Hydra. Names of networks, and operators that have no file, are not completed.
"""

import argparse
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

import argcomplete

from convrepro.cli.command import parser
from convrepro.config import plugins
from convrepro.config.paths import CONF, table_names

#: What the user types to switch completion on.
SWITCH = 'eval "$(register-python-argcomplete convrepro)"'
#: Verbs whose tables may be given by a paper, or by `all`.
WHOLE = ("show", "count", "bench", "run", "submit", "status", "resubmit", "cancel", "collect", "report", "sync")


def complete() -> None:
    """Writes what could come next on the line of the shell to where the shell reads it, and ends the process.

    Does nothing in a process that no shell has started for that.
    """
    words = _without_overrides()
    top = parser()
    (verbs,) = (action.choices for action in top._actions if isinstance(action, argparse._SubParsersAction))
    for name, verb in verbs.items():
        for action in verb._actions:
            if completer := _completer(name, action.dest, {other.dest for other in verb._actions}, words):
                action.completer = completer
    argcomplete.autocomplete(top, always_complete_options=False)


def _without_overrides() -> list[str]:
    """The words of the shell's line; takes the whole overrides among them out of the line that argparse completes.

    argparse takes overrides in one place alone, and `convrepro train conv=hetconv --budget smoke recipe=` has two.
    """
    line, point = os.environ.get("COMP_LINE", "").encode(), int(os.environ.get("COMP_POINT", 0))
    start = re.sub(rb"(?<=\s)[\w+~][\w.+~@/-]*=[^\s'\"]*\s+", b"", line[:point])
    os.environ |= {"COMP_LINE": os.fsdecode(start), "COMP_POINT": str(len(start))}
    return os.fsdecode(line).split()


def _completer(verb: str, dest: str, beside: set[str], words: list[str]) -> Any:
    """What completes an argument of a verb that has the arguments `beside`, on a line of these words, or None."""

    def tables(**_: Any) -> list[str]:
        found = table_names()
        return [*found, *{name.partition("/")[0] for name in found}, "all"] if verb in WHOLE else found

    def overrides(prefix: str, parsed_args: argparse.Namespace, **_: Any) -> list[str]:
        plugins.use((), getattr(parsed_args, "config_dir", ()))
        return list(_overrides(prefix, words))

    def both(**given: Any) -> list[str]:
        return [*tables(), *overrides(**given)]

    if dest == "budget":
        return lambda **_: sorted(plugins.files("budget"))
    if dest in ("table", "tables", "names"):
        return tables
    if dest == "what":
        return None if verb == "list" else both
    if dest == "overrides":
        return both if "table" in beside and verb in WHOLE else overrides
    return None


def _overrides(prefix: str, words: list[str]) -> Iterator[str]:
    """The overrides that begin so, after the other words of the line: a choice of a group, or keys up to their `=`.

    Keys are those of the choices that the line has. Without a dot in the prefix there are only their first parts.
    """
    name, equals, value = prefix.partition("=")
    sign, key = re.fullmatch(r"([+~]*)(.*)", name, re.DOTALL).groups()  # type: ignore[union-attr]
    if equals:
        before = "".join(value.rpartition(",")[:2])
        yield from (f"{name}={before}{choice}" for choice in sorted(plugins.files(key)) if key in plugins.GROUPS)
        return
    for leaf in _leaves(_composed(words)):
        first, dot, _ = leaf.partition(".")
        if "." in key:
            yield f"{sign}{leaf}="
        else:
            yield from (f"{sign}{first}=", f"{sign}{first}.") if dot else (f"{sign}{first}=",)


def _composed(words: list[str]) -> dict[str, Any]:
    """The configuration that the words choose, as far as files say it."""
    tree = plugins.read(CONF / "train.yaml")
    chosen = {group: name for entry in tree.pop("defaults") if isinstance(entry, dict) for group, name in entry.items()}
    chosen |= dict(word.split("=", 1) for word in words if re.fullmatch(r"\w+=[\w.-]+", word))
    groups = {group: {**tree.get(group, {}), **plugins.content(group, chosen[group])} for group in plugins.GROUPS}
    return {key: value for key, value in {**tree, **groups}.items() if key != "hydra"}


def _leaves(tree: Mapping[str, Any], place: str = "") -> Iterator[str]:
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{place}{key}.")
        else:
            yield f"{place}{key}"
