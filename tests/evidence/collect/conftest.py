"""A small table in a folder of its own, and the runs of its rows."""

from pathlib import Path

import pytest

from convrepro.tables import Table, load_table
from support.recorded import YAML, put, record


@pytest.fixture
def root(tmp_path) -> Path:
    folder = tmp_path / "reproductions" / "paper"
    folder.mkdir(parents=True)
    (folder / "small.yaml").write_text(YAML)
    return folder.parent


@pytest.fixture
def table(root) -> Table:
    return load_table("paper/small", root)


@pytest.fixture
def runs(tmp_path) -> Path:
    return tmp_path / "runs"


@pytest.fixture
def finished(table, runs) -> Path:
    for row, values in {"plain": (93.9, 94.1), "warm": (94.0, 94.2)}.items():
        for seed, value in enumerate(values):
            put(runs, record(table, row, seed, value, runs=runs))
    return runs
