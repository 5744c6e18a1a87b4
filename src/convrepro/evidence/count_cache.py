"""Counts that are kept between commands: what a row costs, as long as the sources that say so are the same.

They are in CONVREPRO_CACHE, else in `convrepro` in the user's cache folder. A count is of a row's overrides and
layers, of this package's sources and configuration, of the user's configuration, and of the libraries that build and
count a network. What plugins and factories of users build is counted each time: their sources are not known here.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from functools import cache
from pathlib import Path

from convrepro.config import plugins
from convrepro.config.overrides import key_of
from convrepro.config.paths import CONF, PACKAGE
from convrepro.errors import ConvReproError
from convrepro.runs.environment import installed
from convrepro.runs.storage import write_whole

#: The rooms of this package that a count depends on.
ROOMS = ("complexity", "config", "evidence", "models", "ops")
LIBRARIES = ("torch", "torchvision", "timm", "fvcore", "hydra-core")
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
        if not _is_ours(overrides):
            return None
        try:
            return {
                rule: Fraction(total) for rule, total in json.loads(self._file(overrides, layers).read_text()).items()
            }
        except (OSError, ValueError, AttributeError, TypeError):
            return None

    def put(self, overrides: Sequence[str], layers: str, totals: Mapping[str, int | Fraction]) -> None:
        """Keeps totals for the next `get`."""
        if not _is_ours(overrides):
            return
        try:
            write_whole(
                self._file(overrides, layers),
                json.dumps({rule: str(Fraction(total)) for rule, total in totals.items()}).encode(),
            )
        except (OSError, ConvReproError):
            return

    def _file(self, overrides: Sequence[str], layers: str) -> Path:
        return self.folder / f"{_digest([*overrides, layers])}.json"


def _is_ours(overrides: Sequence[str]) -> bool:
    """Whether all that builds the network of `overrides` is of this package or of a library that it names."""
    factory = any(key_of(text) == "model" and ":" in text for text in overrides)
    return not factory and not plugins.any_operators()


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
