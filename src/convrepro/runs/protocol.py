"""What determines a result: the scientific part of a configuration, the content of the data and of starting weights.

The digest of the protocol is the identity of a run. Two spellings of one configuration have one protocol; another data
folder, an edited recipe file or a checkpoint with other content have another.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import yaml
from pydantic import BaseModel

from convrepro.config.paths import CONF
from convrepro.config.schema import EXECUTION, RunConfig
from convrepro.config.strict import text_of

Tree = dict[str, Any]
#: Scientific settings that have a place of their own: the seed in a run's name, the weights by their content.
APART = ("seed", "weights", "weights_sha256")
#: Kinds of content, in words.
WORDS = {"data": "images", "weights": "starting weights"}


@dataclass(frozen=True)
class Protocol:
    """The protocol of a run.

    settings: the scientific part of its configuration, without the seed. data: a digest of the images' content, None
    where the data set is fixed by its name and checksums, or where the content was not looked at. weights: the same of
    the starting weights. places: where both were found, by which runs of versions that kept no content are compared.
    """

    settings: Tree
    data: str | None = None
    weights: str | None = None
    places: Tree = dataclasses.field(default_factory=dict)

    @property
    def digest(self) -> str:
        """64 hexadecimal digits, the same for equal protocols."""
        known = {key: value for key, value in (("data", self.data), ("weights", self.weights)) if value}
        return _digest({**self.settings, "content": known} if known else self.settings)

    @property
    def record(self) -> Tree:
        """What a result keeps beside its configuration."""
        return {"digest": self.digest, "data": self.data, "weights": self.weights}

    def difference(self, config: Mapping[str, Any], content: Mapping[str, Any] | None) -> str | None:
        """Where a run on record differs from this protocol, as the end of a sentence; None where it does not.

        `config` is its resolved configuration, `content` its `Protocol.record`, which runs of older versions lack: of
        these the places are compared. What was not looked at is not compared.
        """
        for where, was, now in differences(scientific(config), self.settings):
            return f"{where} was {text_of(was)} and is {text_of(now)}"
        known = {"data": self.data, "weights": self.weights}
        for kind, now in ((kind, now) for kind, now in known.items() if now):
            if content is None and (place := _place(config, kind)) != self.places.get(kind):
                return f"its {WORDS[kind]} came from {text_of(place)}, and their content is not on record"
            if content is not None and content.get(kind) not in (None, now):
                return f"its {WORDS[kind]} had another content"
        return None


def scientific(config: RunConfig | Mapping[str, Any]) -> Tree:
    """The settings of a configuration that determine the result.

    Also of a configuration on record: keys that came later have their defaults, and keys that are gone are left out.
    Settings at a default of the schema are left out, so that a setting that is added to it changes no digest.
    """
    tree = config.model_dump() if isinstance(config, RunConfig) else dict(config)
    conv = tree.get("conv") or {}
    settings = {key: value for key, value in _scientific(RunConfig, tree).items() if key not in APART}
    return settings | {"conv": _whole({**_knobs(str(conv.get("name"))), **conv})}


def differences(was: Any, now: Any, where: str = "") -> Iterator[tuple[str, Any, Any]]:
    """The settings in which two trees differ, as (key, first, second)."""
    if isinstance(was, Mapping) and isinstance(now, Mapping):
        for key in sorted(was.keys() | now.keys()):
            yield from differences(was.get(key), now.get(key), f"{where}.{key}" if where else key)
    elif was != now:
        yield where, was, now


def short(settings: Mapping[str, Any]) -> str:
    """Eight hexadecimal digits for settings, in the names of folders."""
    return _digest(settings)[:8]


def _scientific(model: type[BaseModel], tree: Mapping[str, Any]) -> Tree:
    found: Tree = {}
    for name, field in model.model_fields.items():
        extra = field.json_schema_extra
        if (isinstance(extra, dict) and extra.get(EXECUTION)) or name not in tree:
            continue
        value, inner = tree[name], field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel) and isinstance(value, Mapping):
            found[name] = _scientific(inner, value)
        elif field.is_required() or value != field.default:
            found[name] = _whole(value)
    return found


def _whole(value: Any) -> Any:
    """`value` with whole numbers as integers (2.0 and 2 are one setting), and an empty mapping for none."""
    if isinstance(value, Mapping):
        return {str(key): _whole(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_whole(item) for item in value]
    if isinstance(value, float) and value.is_integer() and abs(value) < 1 << 53:
        return int(value)
    return value


@cache
def _knobs(operator: str) -> Tree:
    """The knobs of an operator with the defaults of its file; none for an operator that has no file."""
    path = CONF / "conv" / f"{operator}.yaml"
    return yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _digest(tree: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(tree, sort_keys=True, default=str).encode()).hexdigest()


def _place(config: Mapping[str, Any], kind: str) -> object:
    return (config.get("data") or {}).get("root") if kind == "data" else config.get("weights")
