"""Claims on our values and on the paper's: what holds, what fails, and what nobody knows."""

from dataclasses import replace
from decimal import Decimal

import pytest
import torch

from convrepro.tables import judge_claim, render_table
from convrepro.tables.render import claim_line
from convrepro.tables.schema import NotMeasured
from support.judged import claim, run, runs, table, top1

pytestmark = pytest.mark.unit


def both(a: float, b: float, seeds: int = 3, **changes) -> dict:
    other = ["model=resnet18", "data=cifar10", "conv=hetconv"]
    return {
        "a": {s: run(a, **changes) for s in range(seeds)},
        "b": {s: run(b, overrides=other, **changes) for s in range(seeds)},
    }


@pytest.mark.parametrize(
    ("bounds", "a", "b", "ours", "delta"),
    [
        ({"min_delta": "-0.3"}, 93.7, 94.0, "holds", "-0.300"),
        ({"min_delta": "-0.3"}, 93.699, 94.0, "fails", "-0.301"),
        ({"max_delta": "-13"}, 78.55, 93.59, "holds", "-15.040"),
        ({"max_delta": "-13"}, 90.0, 93.59, "fails", "-3.590"),
        ({"min_delta": "0", "max_delta": "1"}, 94.5, 94.0, "holds", "+0.500"),
        ({"min_delta": "0", "max_delta": "1"}, 95.5, 94.0, "fails", "+1.500"),
    ],
)
def test_claims_on_our_means(bounds, a, b, ours, delta):
    given = table({}, claims=claim(**{k: Decimal(v) for k, v in bounds.items()}))
    verdict = judge_claim(given, given.claims[0], {}, both(a, b))
    assert (verdict.ours, verdict.ours_delta, verdict.paper) == (ours, delta, "unknown")


def test_a_claim_that_is_met_to_the_image_holds():
    """Three seeds that miss 10,000 images' accuracy by 30 images on average, in float32 as runs compute it."""
    given = table({}, claims=claim(min_delta=Decimal("-0.3")))
    results = both(0, 0)
    for row, rights in (("a", (9202, 9173, 9176)), ("b", (9225, 9209, 9207))):
        for seed, right in enumerate(rights):
            results[row][seed]["metrics"]["last"]["top1"] = 100 * float(torch.tensor(right) / 10_000)
    verdict = judge_claim(given, given.claims[0], {}, results)
    assert (verdict.ours, verdict.ours_delta) == ("holds", "-0.300")


def test_a_claim_tells_the_standard_error_of_the_difference():
    """Means of 93, 94, 95 and of 90, 90, 93: variances 1 and 3, so that the error is sqrt(1/3 + 3/3) = 1.1547."""
    given = table({}, claims=claim(min_delta=Decimal(0)))
    results = both(94, 91)
    for row, values in (("a", (93, 94, 95)), ("b", (90, 90, 93))):
        for seed, value in enumerate(values):
            results[row][seed]["metrics"]["last"]["top1"] = float(value)
    verdict = judge_claim(given, given.claims[0], {}, results)
    assert (verdict.ours, verdict.ours_delta, verdict.ours_error) == ("holds", "+3.000", "1.155")
    assert claim_line(verdict)[2] == "holds (+3.000 ±1.155)"
    assert "standard error" in render_table(given, {}, results, width=200)


def test_a_claim_on_counts_or_on_one_seed_has_no_error():
    counted = table({}, claims=claim(metric="macs", max_delta=Decimal(0)))
    verdict = judge_claim(counted, counted.claims[0], {"a": {"macs": 5}, "b": {"macs": 6}}, both(94, 93))
    assert (verdict.ours, verdict.ours_error) == ("holds", "")
    once = table({}, claims=claim(min_delta=Decimal(0)), seeds=(0,))
    verdict = judge_claim(once, once.claims[0], {}, both(94, 93, seeds=1))
    assert (verdict.ours, verdict.ours_error) == ("holds", "")
    assert claim_line(verdict)[2] == "holds (+1.000)"


def test_a_claim_waits_for_every_seed_at_the_papers_budget():
    given = table({}, claims=claim(min_delta=Decimal(0)))
    for results in ({}, both(94, 93, seeds=2), both(94, 93, budget="proxy"), {"a": both(94, 93)["a"]}):
        assert judge_claim(given, given.claims[0], {}, results).ours == "unknown"


def test_a_claim_on_counts_needs_no_runs():
    given = table({}, claims=claim(metric="macs", max_delta=Decimal(0)))
    below, above = {"a": {"macs": 5}, "b": {"macs": 6}}, {"a": {"macs": 6_000_001}, "b": {"macs": 6_000_000}}
    assert judge_claim(given, given.claims[0], below, {}).ours == "holds"
    assert judge_claim(given, given.claims[0], above, {}).ours == "fails"


def test_a_claim_without_right_is_about_the_value():
    one = {"text": "c", "left": "a", "metric": "macs", "max_delta": Decimal(0)}
    given = table({}, claims=[one])
    assert judge_claim(given, given.claims[0], {"a": {"macs": 0}}, {}).ours == "holds"
    assert judge_claim(given, given.claims[0], {"a": {"macs": 1}}, {}).ours == "fails"


def test_claims_on_published_values_tell_what_is_recalled():
    more = [{"id": "c", "label": "C", "overrides": ["conv=dwc_pwc"], "published": top1(value="93.00")}]
    sourced = table(top1(), claims=claim(right="c", min_delta=Decimal("0.5")), more=more)
    verdict = judge_claim(sourced, sourced.claims[0], {}, {})
    assert (verdict.paper, verdict.paper_delta, verdict.recalled) == ("holds", "+0.93", False)
    recalled = table(top1(), claims=claim(right="q", min_delta=Decimal(2)))
    verdict = judge_claim(recalled, recalled.claims[0], {}, runs(93.0, 93.0, 93.0))
    assert (verdict.paper, verdict.recalled, verdict.ours) == ("fails", True, "unknown")


def test_a_quoted_value_with_a_source_can_be_claimed_against():
    quoted = {"id": "r", "label": "R", "quoted": True, "published": top1(value="92.00")}
    given = table(top1(), claims=claim(right="r", min_delta=Decimal(0)), more=[quoted])
    assert judge_claim(given, given.claims[0], {}, runs(93.0, 93.0, 93.0)).ours == "holds"


def test_a_claim_on_printed_values_alone_is_unknown_on_ours():
    published = {"published": top1(value="92.00")}
    part = {"id": "r", "label": "R", "overrides": ["conv=hetconv"], "layers": "conv1", **published}
    quoted = {"id": "s", "label": "S", "quoted": True, **published}
    given = table(top1(), claims=claim(left="r", right="s", min_delta=Decimal(0)), more=[part, quoted])
    unmeasured = NotMeasured(name="top1", unit="%", not_measured="it is on a phone")
    other = replace(given, metrics={"top1": unmeasured}, claims=(replace(given.claims[0], left="a"),))
    for case in (given, other):
        verdict = judge_claim(case, case.claims[0], {}, runs(93.0, 93.0, 93.0))
        assert (verdict.ours, verdict.ours_delta, verdict.paper) == ("unknown", "", "holds")
