"""Hydra's overrides as data: the one place that reads `key=value`, by Hydra's own parser."""

import re
from collections.abc import Iterable, Sequence
from functools import cache
from typing import TYPE_CHECKING

from convrepro.errors import ConvReproError

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

_PLAIN = re.compile(r"(?P<key>[+~]{0,2}[\w./@:-]+)=(?P<value>.*)", re.DOTALL)
_KEY = re.compile(r"[+~]{0,2}(?P<key>[\w./-]+)=")
_OPEN = "model_args."
_QUOTE = re.compile(r"[\w./+-]+", re.ASCII)


@cache
def parse(text: str) -> "Override":
    """The override as Hydra reads it. Raises ConvReproError for a text that is not an override."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        return OverridesParser.create().parse_override(normal(text))
    except HydraException:
        raise ConvReproError(f"{shown(text)} is not an override; write key=value, for example conv.p=4") from None


@cache
def normal(text: str) -> str:
    """`text` in Hydra's grammar: a value that the grammar does not take, such as `epoch=5-step=10.ckpt`, is quoted.

    White space around the override, a trailing carriage return too, is dropped. Values that begin with a quote or a
    bracket are left as they are, for their quoting is somebody's intention. An argument of the model is set whether the
    list has it or not, so that it needs no `+`.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    text = text.strip()
    if text.startswith(_OPEN):
        text = f"++{text}"
    match = _PLAIN.fullmatch(text)
    if match is None or match["value"][:1] in ("'", '"', "[", "{"):
        return text
    try:
        OverridesParser.create().parse_override(text)
    except HydraException:
        return f"{match['key']}={quoted(match['value'])}"
    return text


def quoted(value: object) -> str:
    """`value` as a text of Hydra's grammar, in quotes where it needs them."""
    text = str(value)
    if _QUOTE.fullmatch(text):
        return text
    return "'" + re.sub(r"(\\*)'", lambda m: m[1] * 2 + r"\'", text) + "'"


def key_of(text: str) -> str:
    """The key that an override sets, without the `+` or `~` before it and a package behind it."""
    plain = _KEY.match(text.strip())
    return plain["key"] if plain else parse(text).key_or_group


def setting(text: str) -> tuple[str, str]:
    """An override as (key, value): `+model_args.drop_rate=0.1` -> ("model_args.drop_rate", "0.1")."""
    return key_of(text), text.strip().partition("=")[2].strip("'\"")


def settings(overrides: Iterable[str]) -> dict[str, str]:
    """A list of overrides as key -> value; of two for one key the last wins, as in Hydra."""
    return dict(map(setting, overrides))


def without(overrides: Iterable[str], *keys: str) -> list[str]:
    """Those of `overrides` that set none of `keys`, nor a part of one: `conv` leaves `conv.p=4` out, too."""
    return [o for o in overrides if not any(_below(key_of(o), key) for key in keys)]


def value_of(overrides: Sequence[str], key: str) -> str | None:
    """The value that the last override of `key` gives, or None."""
    return settings(overrides).get(key)


def shown(text: str, limit: int = 80) -> str:
    """`text` for a message: quoted, its control characters escaped, at most `limit` characters of it."""
    cut = text if len(text) <= limit else f"{text[:limit]}..."
    return repr(cut)


def _below(name: str, key: str) -> bool:
    return name == key or name.startswith(f"{key}.")
