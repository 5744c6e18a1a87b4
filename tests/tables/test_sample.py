"""The table to run first: its values are the means of our own runs, its tolerance follows their spread."""

import math
import statistics

import pytest

from convrepro.config.paths import REPRODUCTIONS
from convrepro.evidence.store import load_evidence
from convrepro.tables import load_table

pytestmark = pytest.mark.unit

REFERENCE, SAMPLE = load_table("common/reference"), load_table("common/sample")


def accuracies(row: str) -> list[float]:
    """Top-1 of the runs of a row of the reference, by their seeds."""
    _, results = load_evidence(REFERENCE)
    return [run["metrics"]["last"]["top1"] for _, run in sorted(results[row].items())]


def test_its_values_are_the_means_of_five_seeds_and_its_seed_is_none_of_them():
    assert not set(SAMPLE.seeds) & set(REFERENCE.seeds)
    for row in SAMPLE.rows:
        published = row.published["top1"]
        found = accuracies(row.id)
        assert len(found) == 5
        assert float(published.value) == round(statistics.fmean(found), 2), row.id
        assert published.confidence == "measured"
        assert f"{statistics.stdev(found):.2f}" in (published.note or ""), row.id


def test_its_tolerance_follows_the_rule_that_was_written_before():
    """Three times the largest standard deviation, upwards to a tenth, and at least 1.0."""
    largest = max(statistics.stdev(accuracies(row.id)) for row in REFERENCE.rows)
    assert float(SAMPLE.metrics["top1"].tol) == max(1.0, math.ceil(30 * largest) / 10)
    notes = " ".join((REPRODUCTIONS / "common" / "notes.md").read_text().split())
    assert "three times the largest standard deviation of a row among the five seeds, and at least 1.0 points" in notes


def test_its_runs_are_those_of_the_reference_but_for_the_seed():
    assert SAMPLE.base == REFERENCE.base
    assert len(SAMPLE.rows) == 7
    assert all(row.overrides == REFERENCE.row(row.id).overrides for row in SAMPLE.rows)
