"""Verdicts from hand-made tables: what agrees, what does not, and what may not be compared."""

import random
from dataclasses import replace
from decimal import ROUND_FLOOR, ROUND_HALF_UP, Decimal
from fractions import Fraction

import pytest
import torch

from convrepro.tables import format_exact, judge, row_verdict, standing, tally
from convrepro.tables.verdict import measured
from support.judged import RECALLED, SOURCED, claim, run, runs, table, top1

pytestmark = pytest.mark.unit


def cell(given, metric: str, statics: dict, results: dict):
    return judge(given, given.row("a"), given.metrics[metric], statics, results)


@pytest.mark.parametrize(
    ("value", "decimals", "printed", "text"),
    [
        (Fraction(71_355_164, 10**6), 2, "floor", "71.35"),
        (Fraction(71_355_164, 10**6), 2, "round", "71.36"),
        (Fraction(5, 1000), 2, "round", "0.01"),
        (Fraction(4999, 10**6), 2, "round", "0.00"),
        (Fraction(-5, 1000), 2, "round", "0.00"),
        (Fraction(-6, 1000), 2, "round", "-0.01"),
        (Fraction(-1, 1000), 2, "floor", "-0.01"),
        (Fraction(999_999, 10**6), 2, "round", "1.00"),
        (Fraction(999_999, 10**6), 2, "floor", "0.99"),
        (Fraction(2, 3), 0, "round", "1"),
        (Fraction(5, 2), 0, "round", "3"),
        (10**30 + 1, 1, "floor", f"{10**30 + 1}.0"),
        (Fraction(7, 100), 3, "floor", "0.070"),
    ],
)
def test_figures_are_printed_exactly(value, decimals, printed, text):
    assert format_exact(value, decimals, printed) == text


def test_printing_agrees_with_decimal_quantisation():
    generator = random.Random(0)
    for _ in range(2000):
        decimals, value = generator.randrange(4), Decimal(generator.randrange(10**7)) / 10**4
        step = Decimal(1).scaleb(-decimals)
        for printed, rounding in (("floor", ROUND_FLOOR), ("round", ROUND_HALF_UP)):
            assert format_exact(Fraction(value), decimals, printed) == str(value.quantize(step, rounding))


def test_a_float_is_no_exact_figure():
    with pytest.raises(TypeError, match="not exact"):
        format_exact(71.35, 2, "floor")
    with pytest.raises(TypeError, match=r"row a: macs is 1\.5e6|1500000\.0"):
        cell(table({}), "macs", {"a": {"macs": 1.5e6}}, {})


@pytest.mark.parametrize(
    ("count", "verdict", "ours", "delta"),
    [
        (105_981_611, "static-ok", "105.98", "0.00"),
        (105_989_999, "static-ok", "105.98", "0.00"),
        (105_990_000, "static-off", "105.99", "+0.01"),
        (105_979_999, "static-off", "105.97", "-0.01"),
        (Fraction(105_980_000 * 3 - 1, 3), "static-off", "105.97", "-0.01"),
        (Fraction(105_980_000 * 3, 3), "static-ok", "105.98", "0.00"),
    ],
)
def test_static_verdict_is_that_of_the_printed_digits(count, verdict, ours, delta):
    given = table({"macs": {"value": Decimal("105.98"), **SOURCED}})
    result = cell(given, "macs", {"a": {"macs": count}}, {})
    assert (result.verdict, result.ours, result.delta) == (verdict, ours, delta)


def test_static_without_a_count_or_a_published_value():
    published = {"macs": {"value": Decimal("105.98"), **SOURCED}}
    assert cell(table(published), "macs", {}, {}).verdict == "not counted"
    assert cell(table({}), "macs", {}, {}).verdict == "-"
    counted = cell(table({}), "macs", {"a": {"macs": 105_981_611}}, {})
    assert (counted.verdict, counted.ours, counted.delta) == ("-", "105.98", "")
    unknown = cell(table({"macs": {"value": None, "note": "not remembered"}}), "macs", {"a": {"macs": 1}}, {})
    assert (unknown.verdict, unknown.published) == ("-", None)


@pytest.mark.parametrize(("basis", "shown"), [("printed", "30.32"), ("exact", "30.17")])
def test_reduction_from_printed_or_exact_figures(basis, shown):
    """ResNet-50 P=4: 4.0871 and 2.8540 G, printed 4.09 and 2.85; the paper's 30.32 is of the printed ones."""
    given = table({})
    metrics = dict(given.metrics)
    macs = {"name": "macs", "unit": "G", "decimals": 2, "printed": "round", "count": "conv_only"}
    metrics["macs"] = type(metrics["macs"])(**macs)
    cut = metrics["cut"]
    metrics["cut"] = type(cut)(**{**vars(cut), "from_": basis})
    given = type(given)(**{**vars(given), "metrics": metrics})
    statics = {"a": {"macs": 4_087_136_256}, "b": {"macs": 2_853_977_088}}
    assert judge(given, given.row("b"), metrics["cut"], statics, {}).ours == shown


def test_reduction_is_unknown_without_its_base():
    given = table({})
    assert judge(given, given.row("b"), given.metrics["cut"], {"b": {"macs": 5}}, {}).ours == ""


@pytest.mark.parametrize(
    ("values", "text", "delta"),
    [
        ((93.63, 93.63, 93.63), "reproduced", "-0.30"),
        ((94.23, 94.23, 94.23), "reproduced", "+0.30"),
        ((93.62, 93.63, 93.63), "off by -0.30", "-0.30"),
        ((93.0, 93.0, 93.0), "off by -0.93", "-0.93"),
        ((95.0, 95.0, 95.0), "off by +1.07", "+1.07"),
        ((93.93, 93.90, 93.96), "reproduced", "0.00"),
        ((90.0,), "partial 1/3", "-3.93"),
        ((93.93, 93.93), "partial 2/3", "0.00"),
        ((), "not run", ""),
    ],
)
def test_trained_verdict(values, text, delta):
    result = cell(table(top1()), "top1", {}, runs(*values))
    assert (result.text, result.delta) == (text, delta)


@pytest.mark.parametrize("images", [1000, 10_000, 50_000])
def test_an_accuracy_is_the_share_of_images_that_it_stands_for(images):
    """A run computes it in float32: 9,202 of 10,000 come out as 92.0199990272522 %."""
    metric = table(top1()).metrics["top1"]
    for right in [*range(0, images, 37), images]:
        percent = 100 * float(torch.tensor(right) / images)
        assert measured(run(percent), metric) == Fraction(100 * right, images)


def test_any_float_between_0_and_100_is_an_accuracy():
    generator, metric = random.Random(0), table(top1()).metrics["top1"]
    for _ in range(20_000):
        percent = generator.choice((1, 1e-6, 1e-40)) * generator.uniform(0, 100)
        assert measured(run(percent), metric) == pytest.approx(percent, rel=2**-23, abs=1e-42)


def test_mean_and_spread_over_seeds():
    result = cell(table(top1()), "top1", {}, runs(93.0, 94.0, 95.0))
    assert (result.ours, result.spread, result.runs) == ("94.00", "1.00", 3)
    assert cell(table(top1()), "top1", {}, runs(93.0)).spread == ""


def test_an_error_is_100_minus_the_accuracy_and_best_is_the_best_epoch():
    error = table(top1(value="6.07"), metric={"complement": True})
    assert cell(error, "top1", {}, runs(93.93, 93.93, 93.93)).text == "reproduced"
    best = table(top1(value="95.00"), metric={"epoch": "best"})
    assert cell(best, "top1", {}, runs(90.0, 90.0, 90.0)).text == "reproduced"
    other = table(top1(value="99.00"), metric={"run_metric": "top5"})
    assert cell(other, "top1", {}, runs(90.0, 90.0, 90.0)).text == "reproduced"


def test_a_recalled_value_never_decides():
    generator = random.Random(1)
    verdicts = set()
    for _ in range(200):
        value, count = generator.uniform(90, 96), generator.randrange(105_900_000, 106_100_000)
        published = top1(RECALLED) | {"macs": {"value": Decimal("105.98"), **RECALLED}}
        seeds = generator.randrange(4)
        given = table(published)
        for metric in ("top1", "macs"):
            verdicts.add(cell(given, metric, {"a": {"macs": count}}, runs(*[value] * seeds)).verdict)
    assert verdicts == {"unverified", "partial", "not run"}


def test_a_recalled_value_is_shown_with_the_difference():
    result = cell(table(top1(RECALLED)), "top1", {}, runs(94.0, 94.0, 94.0))
    assert (result.verdict, result.delta) == ("unverified", "+0.07")


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({"budget": "proxy"}, "proxy"),
        ({"budget": "smoke"}, "smoke"),
        ({"budget": None}, "proxy"),
        ({"config": {"data": {"name": "cifar10-jpeg"}}}, "proxy"),
        ({"config": {}}, "proxy"),
        ({"config": None}, "proxy"),
        ({"overrides": ["model=resnet18", "data=cifar10", "conv=standard", "recipe.epochs=3"]}, "proxy"),
        ({"overrides": ["model=resnet18", "data=cifar10", "conv=hetconv"]}, "proxy"),
        ({"status": "running"}, "not run"),
        ({"metrics": {"last": {"top1": float("nan")}}}, "not run"),
        ({"metrics": {"last": {}}}, "not run"),
        ({"metrics": None}, "not run"),
    ],
)
def test_what_is_not_the_papers_protocol_is_not_compared(changes, verdict):
    result = cell(table(top1()), "top1", {}, runs(93.93, 93.93, 93.93, **changes))
    assert (result.verdict, result.delta) == (verdict, "")


def test_a_table_of_the_bundled_sample_is_judged_on_it():
    words = ["model=resnet18", "data=fashion_sample", "conv=standard"]
    given = replace(table(top1()), base=("model=resnet18", "data=fashion_sample"))
    for name, verdict in (("fashion-sample", "reproduced"), ("fashion-mnist", "proxy")):
        changes = {"overrides": words, "config": {"data": {"name": name}}}
        assert cell(given, "top1", {}, runs(93.93, 93.93, 93.93, **changes)).verdict == verdict


def test_order_and_repetition_of_overrides_do_not_matter():
    given = table(top1())
    same = run(93.0, overrides=["conv=hetconv", "data=cifar10", "conv=standard", "model=resnet18"])
    assert standing(same, given, given.row("a")) == "paper"


@pytest.mark.parametrize(
    ("more", "level"),
    [
        (["recipe.optimizer.lr=5e-2"], "paper"),  # which the recipe has as 0.05
        (["++conv.name=standard", "model_args={}"], "paper"),
        (["trainer.precision=bf16-mixed"], "paper"),
        (["recipe.optimizer.lr=0.2"], "proxy"),
        (["conv.where=all"], "proxy"),
        (["conv.of_another_version=1"], "proxy"),
    ],
)
def test_a_run_is_the_rows_where_its_overrides_come_to_the_same(more, level):
    given = table(top1())
    changed = run(94.0, overrides=["model=resnet18", "data=cifar10", "conv=standard", *more])
    assert standing(changed, given, given.row("a")) == level


def test_runs_of_the_paper_go_before_proxies():
    results = {"a": {0: run(93.93), 1: run(50.0, budget="proxy"), 2: run(10.0, budget="smoke")}}
    result = cell(table(top1()), "top1", {}, results)
    assert (result.text, result.ours) == ("partial 1/3", "93.93")


def test_seeds_beyond_the_tables_do_not_count():
    results = {"a": {seed: run(93.93) for seed in (0, 1, 7)}}
    assert cell(table(top1()), "top1", {}, results).text == "partial 2/3"
    smoke = {"a": {7: run(12.0, budget="smoke")}}
    assert cell(table(top1()), "top1", {}, smoke).verdict == "smoke"


def test_nothing_published():
    assert cell(table({}), "top1", {}, {}).verdict == "not run"
    assert cell(table({}), "top1", {}, runs(1.0)).text == "partial 1/3"
    done = cell(table({}), "top1", {}, runs(93.0, 93.0, 93.0))
    assert (done.verdict, done.ours, done.delta) == ("-", "93.00", "")


def test_a_quoted_row_is_never_judged():
    given = table({})
    quoted = judge(given, given.row("q"), given.metrics["top1"], {"q": {"macs": 1}}, {"q": {0: run(92.0)}})
    assert (quoted.verdict, quoted.ours) == ("quoted", "")


@pytest.mark.parametrize(
    ("published", "statics", "results", "words"),
    [
        ({}, {}, {}, "not run"),
        (top1(), {}, runs(93.9, 93.9, 93.9), "reproduced"),
        (top1() | {"macs": {"value": Decimal("1.00"), **SOURCED}}, {}, {}, "not run, not counted"),
        (top1() | {"macs": {"value": Decimal("1.00"), **SOURCED}}, {"macs": 10**6}, {}, "not run, static-ok"),
        (top1() | {"macs": {"value": Decimal("1.01"), **SOURCED}}, {"macs": 10**6}, {}, "not run, static-off (macs)"),
        ({"macs": {"value": Decimal("1.01"), **RECALLED}}, {"macs": 10**6}, {}, "not run, counts unverified"),
    ],
)
def test_row_verdict(published, statics, results, words):
    given = table(published)
    row = given.row("a")
    cells = {
        name: judge(given, row, m, {"a": statics} if statics else {}, results) for name, m in given.metrics.items()
    }
    assert row_verdict(given, row, cells) == words


def test_tally_counts_what_has_a_published_value():
    published = top1() | {"macs": {"value": Decimal("1.00"), **SOURCED}}
    given = table(published, claims=claim(min_delta=Decimal(0)))
    counts = tally(given, {"a": {"macs": 10**6}, "b": {"macs": 5}}, runs(93.9, 93.9, 93.9))
    assert counts == {"static": {"static-ok": 1}, "trained": {"reproduced": 1}, "claims": {"unknown": 1}}
