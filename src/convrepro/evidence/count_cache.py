"""Counts that are kept between commands: what a row costs, as long as the sources that say so are the same.

They are in CONVREPRO_CACHE, else in `convrepro` in the user's cache folder. A count is of a row's overrides and
layers, of this package's sources and configuration, of the user's configuration, and of the libraries that build and
count a network. What else a count may depend on is not known here, and such a row is counted each time: plugins and
factories of users, a file with a layer plan, and variables of the environment.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from functools import cache
from pathlib import Path

from convrepro.config import plugins
from convrepro.config.overrides import settings
from convrepro.config.paths import CONF, PACKAGE
from convrepro.errors import ConvReproError
from convrepro.runs.environment import installed
from convrepro.runs.storage import write_whole

#: The rooms of this package that a count depends on.
ROOMS = ("complexity", "config", "evidence", "models", "ops")
LIBRARIES = ("torch", "torchvision", "timm", "fvcore", "hydra-core", "torch-pruning")
VARIABLE = "CONVREPRO_CACHE"


class CountCache:
    """Totals by counting rule, in a folder. What cannot be read is counted anew, what cannot be written is not kept."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @staticmethod
    def of_user() -> "CountCache":
        """The cache of this user, for the sources as they are."""
        home = os.environ.get(VARIABLE) or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "convrepro"
        places = tuple(map(str, plugins.folders()))
        return CountCache(Path(home).expanduser() / "counts" / _sources(places))

    def get(self, overrides: Sequence[str], layers: str) -> dict[str, int | Fraction] | None:
        """The totals by rule of a row with these overrides and layers; None where they are not known."""
        if not is_whole(overrides):
            return None
        try:
            totals = json.loads(self._file(overrides, layers).read_text())
            return {rule: Fraction(total) for rule, total in totals.items()}
        except (OSError, ValueError, AttributeError, TypeError):
            return None

    def put(self, overrides: Sequence[str], layers: str, totals: Mapping[str, int | Fraction]) -> None:
        """Keeps totals for the next `get`."""
        if not is_whole(overrides):
            return
        content = {rule: str(Fraction(total)) for rule, total in totals.items()}
        try:
            write_whole(self._file(overrides, layers), json.dumps(content).encode())
        except (OSError, ConvReproError):
            return

    def _file(self, overrides: Sequence[str], layers: str) -> Path:
        return self.folder / f"{_digest([*overrides, layers])}.json"


def is_whole(overrides: Sequence[str]) -> bool:
    """Whether these overrides, with the sources and libraries that are known here, say all of a network."""
    given = settings(overrides)
    factory = ":" in given.get("model", "")
    plan = not given.get("conv.entries", "[").startswith("[")
    variable = any("${" in text for text in overrides)
    return not (factory or plan or variable or plugins.any_operators())


def _digest(texts: Iterable[str]) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:32]


@cache
def _sources(places: tuple[str, ...]) -> str:
    """A digest of all that counts depend on but for the row: files of this package and of `places`, and versions."""
    texts = [f"{library} {installed(library)}" for library in LIBRARIES]
    files = [path for room in ROOMS for path in (PACKAGE / room).rglob("*.py")]
    files += [path for place in (CONF, *map(Path, places)) for path in place.rglob("*.yaml")]
    for path in sorted(files):
        texts += [str(path), hashlib.sha256(path.read_bytes()).hexdigest()]
    return _digest(texts)
