"""The audit on a small table, by hand."""

from decimal import Decimal

import pytest

from convrepro.complexity.rules import Count, LayerCount
from convrepro.evidence.audit import audit
from convrepro.report.audit import render_audit
from convrepro.tables.parse import parse_table

pytestmark = pytest.mark.unit

SOURCE = {"source": "the paper", "confidence": "found"}


def network(scale: int) -> Count:
    """1,234.567 k MACs in convolutions and 100 k in a linear layer, times `scale`; 2,000 parameters and 50 of norms."""
    return Count(
        (3, 8, 8),
        (
            LayerCount("conv", "conv", "Conv2d", macs=1_234_567 * scale, params=1000, weights=990),
            LayerCount("norm", "norm", "BatchNorm2d", macs=5000, params=50, statistics=50),
            LayerCount("fc", "linear", "Linear", macs=100_000 * scale, params=1000, weights=1000),
        ),
    )


def table(published: dict[str, dict], row: dict | None = None, **metrics: dict):
    columns = {
        "macs": {"unit": "k", "decimals": 1, "printed": "round", "count": "conv_fc"},
        "params": {"unit": "1", "decimals": 0, "printed": "round", "count": "params"},
        "saved": {"unit": "%", "decimals": 0, "printed": "round", "reduction_of": "macs", "base_row": "base"},
        **metrics,
    }
    published = {name: SOURCE | {"value": Decimal(value.pop("value"))} | value for name, value in published.items()}
    rows = [
        {"id": "base", "label": "Base", "overrides": ["conv=standard"]},
        {"id": "thin", "label": "Thin", "overrides": ["conv=hetconv"], "published": published, **(row or {})},
    ]
    data = {"title": "T", "question": "Q?", "base": [], "seeds": [0], "metrics": columns, "rows": rows}
    return parse_table("paper/t", data | {"source": {"paper": "paper", "arxiv": "0000.00000", "table": 1}}, "t.yaml")


def findings(published: dict[str, dict], row: dict | None = None, **metrics: dict):
    counts = {"base": network(4), "thin": network(1)}
    return audit([table(published, row, **metrics)], lambda _, row: counts[row.id])


def only(*arguments, **metrics):
    (finding,) = findings(*arguments, **metrics)
    return finding


def test_printed_digits_by_a_usual_rule_are_exact():
    finding = only({"macs": {"value": "1334.6"}})
    assert (finding.group, finding.ours, finding.nearest) == ("exact", "1334.6", "")


def test_cut_digits_are_the_papers_own_rule_only_where_rounding_would_differ():
    cut = {"unit": "k", "decimals": 1, "printed": "floor", "count": "conv_fc"}
    assert only({"macs": {"value": "1334.5"}}, macs=cut).group == "own rule"
    coarse = cut | {"decimals": 0, "unit": "M"}
    assert only({"macs": {"value": "1"}}, macs=coarse).group == "exact"


def test_an_unusual_rule_is_the_papers_own():
    conv = {"unit": "k", "decimals": 1, "printed": "round", "count": "conv_only"}
    assert only({"macs": {"value": "1234.6"}}, macs=conv).group == "own rule"


def test_another_convention_is_found_and_named():
    explained = {"cause": "convention", "erratum": "the classifier is left out"}
    finding = only({"macs": {"value": "1234.6", **explained}})
    assert (finding.group, finding.ours) == ("convention", "1334.6")
    assert finding.nearest == "conv_only rounded"
    assert only({"params": {"value": "1990", **explained}}).nearest == "weights rounded or cut"


def test_digits_to_the_hundreds_are_recognised():
    hundreds = {"unit": "1", "decimals": 0, "printed": "round", "count": "conv_fc"}
    finding = only({"macs": {"value": "1234600", "cause": "convention", "erratum": "e"}}, macs=hundreds)
    assert finding.nearest == "conv_only rounded"


def test_what_no_rule_gives_has_the_distance_of_the_nearest():
    finding = only({"macs": {"value": "1300.0", "cause": "misprint", "erratum": "digits swapped"}})
    assert finding.group == "misprint"
    assert finding.nearest == "nearest: macs, 1334.6 (+2.66 %)"
    assert only({"params": {"value": "2500"}}).group == "unexplained"
    assert only({"params": {"value": "2500"}}).nearest == "nearest: params_and_buffers, 2100 (-16.00 %)"


def test_percentages_are_recounted_from_both_rows():
    assert only({"saved": {"value": "75"}}).group == "exact"
    assert only({"saved": {"value": "60"}}).nearest.startswith("nearest: ")


def test_recalled_and_quoted_values_say_so():
    recalled = {"confidence": "recalled"}
    assert only({"macs": {"value": "1.0", **recalled}}).group == "recalled"
    quoted = {"quoted": True, "overrides": []}
    assert only({"macs": {"value": "1.0"}}, quoted).group == "not checkable"
    assert only({"macs": {"value": "1.0", **recalled}}, quoted).group == "recalled"


def test_the_page_has_the_totals_and_every_value():
    wrong = {"cause": "misprint", "erratum": "digits | swapped"}
    page = render_audit(findings({"macs": {"value": "1300.0", **wrong}, "params": {"value": "2050"}}))
    lines = page.splitlines()
    assert "| paper | exact | misprint | values |" in lines
    assert "| paper | 1 | 1 | 2 |" in lines
    assert "| all | 1 | 1 | 2 |" in lines
    assert any("1300.0 | 1334.6 | conv_fc, rounded | found | nearest: macs" in line for line in lines)
    assert any("digits \\| swapped |" in line for line in lines)
