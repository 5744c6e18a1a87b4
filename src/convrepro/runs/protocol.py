"""What determines a result: the scientific part of a configuration, the content of the data and of starting weights.

The digest of the protocol is the identity of a run. Two spellings of one configuration have one protocol; another data
folder, an edited recipe file or a checkpoint with other content have another.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from convrepro.config.scientific import Tree, differences, scientific
from convrepro.config.strict import text_of

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

    def difference(self, config: Mapping[str, Any], content: Mapping[str, object] | None) -> str | None:
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


def short(settings: Mapping[str, Any]) -> str:
    """Eight hexadecimal digits for settings, in the names of folders."""
    return _digest(settings)[:8]


def _digest(tree: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(tree, sort_keys=True, default=str).encode()).hexdigest()


def _place(config: Mapping[str, Any], kind: str) -> object:
    return (config.get("data") or {}).get("root") if kind == "data" else config.get("weights")
