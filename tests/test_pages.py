"""The generated pages say what the tables and the committed evidence say, and what is counted today."""

import shutil

import pytest

from convrepro.evidence import report, write_scoreboard
from convrepro.paths import REPRODUCTIONS, ROOT
from convrepro.statics import count_table
from convrepro.tables import list_papers, list_tables, load_table


@pytest.fixture(scope="module")
def counted():
    return {name: count_table(load_table(name)) for name in list_tables()}


def test_the_papers_pages_and_the_scoreboard_are_up_to_date(counted, tmp_path):
    root = tmp_path / "reproductions"
    shutil.copytree(REPRODUCTIONS, root)
    shutil.copy(ROOT / "README.md", tmp_path)
    for paper in list_papers():
        report(paper, lambda table: counted[table.name], root=root)
        assert (root / paper / "README.md").read_text() == (REPRODUCTIONS / paper / "README.md").read_text()
    write_scoreboard(lambda table: counted[table.name], tmp_path / "README.md", root)
    assert (tmp_path / "README.md").read_text() == (ROOT / "README.md").read_text()


def test_hetconv_table_1_counts_to_the_published_digits(counted):
    table = load_table("hetconv/table1")
    published = {"p1": 31374, "p2": 17523, "p4": 10598, "p8": 7135, "p16": 5404, "p32": 4538, "p64": 4105}
    assert {row: int(counted[table.name][row]["macs"] // 10_000) for row in published} == published
