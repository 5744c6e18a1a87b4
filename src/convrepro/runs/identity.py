"""Who a run is: its folder, its W&B identity, and which overrides belong to it."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: Overrides that choose how a run is executed or filed, not what it computes.
EXECUTION = {"trainer", "logger", "data_root", "data.root", "data.download", "runs", "table", "row", "seed", "budget"}


@dataclass(frozen=True)
class Identity:
    """One (table, row, seed, budget), or an ad-hoc training named by its overrides."""

    table: str
    row: str
    seed: int
    budget: str

    @property
    def run_id(self) -> str:
        """Deterministic W&B id: the same run always has the same."""
        return hashlib.sha256(f"{self.table}/{self.row}/{self.seed}/{self.budget}".encode()).hexdigest()[:16]

    @property
    def name(self) -> str:
        return f"{self.table}/{self.row}/{self.seed}"

    def folder(self, runs: Path) -> Path:
        """A function of the identity alone, so that a repeated or requeued run finds its own work."""
        return runs / self.table / self.row / f"{self.budget}-seed{self.seed}"


def scientific(overrides: Sequence[str]) -> list[str]:
    """Those of `overrides` that change what is computed: `trainer=gpu`, `logger.mode=offline` and the like left out."""

    def key(override: str) -> str:
        return override.lstrip("+~").split("=")[0]

    def executes(name: str) -> bool:
        return name in EXECUTION or name.split(".")[0] in {"trainer", "logger"}

    return [o for o in overrides if not executes(key(o))]


def digest(overrides: Sequence[str]) -> str:
    """Six hexadecimal digits for a set of overrides."""
    return hashlib.sha256(json.dumps(sorted(overrides)).encode()).hexdigest()[:6]


#: Parts of a run's configuration that decide what is computed, and keys in them that say only where files are.
PROTOCOL = ("model", "model_args", "conv", "se_reduction", "recipe", "budget", "data")
PLACES = {"data.root", "data.download"}


def changed(recorded: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """Where two resolved configurations differ in the protocol: "recipe.epochs was 10 and is 20"; None if nowhere.

    A file in `conf` can change between two runs of the same overrides. Keys that only one side has are left out: a knob
    that came later has the old behaviour as its default.
    """
    return next(_differences({k: recorded.get(k) for k in PROTOCOL}, {k: now.get(k) for k in PROTOCOL}), None)


def _differences(recorded: Any, now: Any, where: str = "") -> Iterator[str]:
    if isinstance(recorded, Mapping) and isinstance(now, Mapping):
        for key in sorted(recorded.keys() & now.keys()):
            yield from _differences(recorded[key], now[key], f"{where}.{key}" if where else key)
    elif recorded != now and where not in PLACES:
        yield f"{where} was {recorded} and is {now}"
