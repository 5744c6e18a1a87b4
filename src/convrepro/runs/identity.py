"""Who a run is: its folder and its W&B identity, and which overrides are kept with its result."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from convrepro.config.overrides import key_of

#: Keys that say how a run is executed or filed.
EXECUTION = {"trainer", "logger", "data_root", "data.root", "data.download", "runs", "table", "row", "seed", "budget"}


@dataclass(frozen=True)
class Identity:
    """One (table, row, seed, budget), or an ad-hoc run, which is named by its network, operator and protocol."""

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


def named(overrides: Sequence[str]) -> list[str]:
    """Those of `overrides` that are kept with a result: `trainer=gpu`, `logger.mode=offline` and the like left out.

    They tell a reader how to ask for the run; what it is follows from its protocol.
    """
    return [text for text in overrides if not _executes(key_of(text))]


def _executes(key: str) -> bool:
    return key in EXECUTION or key.split(".")[0] in {"trainer", "logger"}


def former_digest(overrides: Sequence[str]) -> str:
    """Six hexadecimal digits for the text of overrides, by which runs were named before they had protocols."""
    return hashlib.sha256(json.dumps(sorted(overrides)).encode()).hexdigest()[:6]
