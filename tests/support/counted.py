"""What every table's networks cost, counted once for all processes of a test session."""

import fcntl
import pickle

import pytest

from convrepro.complexity.rules import Count
from convrepro.evidence.counts import row_count
from convrepro.evidence.statics import Statics
from convrepro.tables import Row, Table, list_tables, load_table


class Counted:
    """The counts of papers, in a folder that all processes share: who asks for a paper first counts it, who asks
    meanwhile waits.
    """

    def __init__(self, factory: pytest.TempPathFactory) -> None:
        base = factory.getbasetemp()
        shared = base.parent if base.name.startswith("popen-") else base  # each process of xdist has a folder in it
        self.folder = shared / "counted"
        self.folder.mkdir(exist_ok=True)
        self._read: dict[str, dict[str, tuple[Statics, dict[str, Count]]]] = {}

    def statics(self, table: Table) -> Statics:
        """Row -> metric -> value, without anything from a cache."""
        return self._paper(table.name.split("/")[0])[table.name][0]

    def row(self, table: Table, row: Row) -> Count:
        """As `row_count` gives it."""
        return self._paper(table.name.split("/")[0])[table.name][1][row.id]

    def _paper(self, paper: str) -> dict[str, tuple[Statics, dict[str, Count]]]:
        if paper not in self._read:
            path = self.folder / f"{paper}.pickle"
            with path.with_suffix(".lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                if not path.exists():
                    path.write_bytes(pickle.dumps({name: _count(load_table(name)) for name in tables_of(paper)}))
                self._read[paper] = pickle.loads(path.read_bytes())
        return self._read[paper]


def tables_of(paper: str) -> list[str]:
    return [name for name in list_tables() if name.startswith(f"{paper}/")]


def _count(table: Table) -> tuple[Statics, dict[str, Count]]:
    rules = {name: metric.count for name, metric in table.metrics.items() if metric.count}
    counts = {row.id: row_count(table, row) for row in table.rows if rules and not row.quoted}
    return {row: {name: count.total(rule) for name, rule in rules.items()} for row, count in counts.items()}, counts
