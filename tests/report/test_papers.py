"""The generated pages say what the tables and the committed evidence say, and what is counted today."""

import shutil

import pytest

from convrepro.complexity.rules import Count
from convrepro.config.paths import REPRODUCTIONS, ROOT
from convrepro.evidence.audit import audit
from convrepro.evidence.counts import row_count
from convrepro.evidence.speed_record import PLOT_FILE, merged, of_table, records
from convrepro.evidence.statics import Statics, lacking
from convrepro.evidence.store import load_evidence
from convrepro.report.audit import render_audit
from convrepro.report.papers import plot_path, report, write_scoreboard
from convrepro.report.plots.figures import figures
from convrepro.report.plots.files import OVERVIEW, SPEEDS, overview, read_digest
from convrepro.report.plots.speeds import speeds
from convrepro.tables import Counted, Row, Table, list_papers, list_tables, load_table
from support.counted import Counted as Counter
from support.counted import tables_of


@pytest.fixture(scope="module")
def counted(tmp_path_factory):
    return Counter(tmp_path_factory)


class OnRecord(Count):
    """The count of a row: by the rules of its table from what is committed, by others counted when it is asked for."""

    def __init__(self, table: Table, row: Row) -> None:
        self.row = table, row
        kept = load_evidence(table)[0].get(row.id, {})
        rules = {metric.count: name for name, metric in table.metrics.items() if isinstance(metric, Counted)}
        self.kept = {rule: kept[name] for rule, name in rules.items() if name in kept}

    def total(self, rule: str):
        return self.kept[rule] if rule in self.kept else row_count(*self.row).total(rule)


@pytest.fixture(scope="module")
def findings():
    return audit([load_table(name) for name in list_tables()], OnRecord)


def told(finding) -> str:
    return f"{finding.table.name}, {finding.row.id}, {finding.metric.name}: {finding.published.value}, {finding.ours}"


def on_record(table: Table) -> Statics:
    """The counts that are committed, which are what is counted today: a test of its own sees to that."""
    return load_evidence(table)[0]


@pytest.mark.parametrize("paper", list_papers())
def test_the_papers_page_is_up_to_date(paper, tmp_path):
    root = tmp_path / "reproductions"
    shutil.copytree(REPRODUCTIONS, root)
    (root / paper / "README.md").unlink()
    report(paper, on_record, root=root)
    assert (root / paper / "README.md").read_text() == (REPRODUCTIONS / paper / "README.md").read_text()


#: Papers whose networks take longest to count; their operators and networks are counted in tests of their own, too.
LONG = ("deepshift", "hetconv", "igcv1", "resnext", "senet", "shufflenet_v1")
PAPERS = [pytest.param(paper, marks=[pytest.mark.exhaustive] * (paper in LONG)) for paper in list_papers()]


@pytest.mark.parametrize("paper", PAPERS)
def test_the_counts_on_record_are_what_is_counted_today(paper, counted):
    for table in map(load_table, tables_of(paper)):
        kept = load_evidence(table)[0]
        assert lacking(table, kept) == []
        assert {row: counts for row, counts in kept.items() if counts} == counted.statics(table)


def test_the_scoreboard_is_up_to_date(tmp_path):
    shutil.copy(ROOT / "README.md", tmp_path)
    write_scoreboard(on_record, tmp_path / "README.md")
    text = (tmp_path / "README.md").read_text()
    assert text == (ROOT / "README.md").read_text()
    for paper in list_papers():
        assert text.count(f"](reproductions/{paper}/README.md) | ") == 1


def test_the_plots_are_up_to_date():
    """By the digests of what is drawn, so that another version of matplotlib may draw it a little differently."""
    tables = [load_table(name) for name in list_tables()]
    found = merged(records())
    wanted = {
        plot_path(table.name, figure.kind): figure.digest
        for table in tables
        for figure in figures(table, *load_evidence(table), of_table(table.name, found))
    }
    wanted[REPRODUCTIONS / OVERVIEW] = overview((table, on_record(table)) for table in tables).digest
    wanted[REPRODUCTIONS / PLOT_FILE] = speeds(found, SPEEDS).digest
    drawn = [*REPRODUCTIONS.glob("*/plots/*.svg"), *REPRODUCTIONS.glob("*.svg")]
    assert {path: read_digest(path) for path in drawn} == wanted


def test_the_audit_is_up_to_date(findings):
    assert render_audit(findings) == (REPRODUCTIONS / "AUDIT.md").read_text()


def test_every_value_that_differs_is_explained_and_no_other(findings):
    off = [finding for finding in findings if finding.nearest]
    assert [told(finding) for finding in off if not finding.published.erratum] == []
    right = [finding for finding in findings if finding.group in ("exact", "own rule")]
    assert [told(finding) for finding in right if finding.published.erratum] == []


def test_a_convention_is_a_rule_that_gives_the_digits(findings):
    found = [finding for finding in findings if finding.group == "convention"]
    assert found
    assert [told(finding) for finding in found if finding.nearest.startswith("nearest")] == []


def test_hetconv_table_1_counts_to_the_published_digits():
    table = load_table("hetconv/table1")
    published = {"p1": 31374, "p2": 17523, "p4": 10598, "p8": 7135, "p16": 5404, "p32": 4538, "p64": 4105}
    rule = table.metrics["macs"].count
    assert {row: int(row_count(table, table.row(row)).total(rule) // 10_000) for row in published} == published
