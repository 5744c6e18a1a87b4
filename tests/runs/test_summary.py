"""The summary of a W&B run: what is compared with the paper, by which rules, and when nothing is."""

import pytest

from convrepro.runs.summary import STATIC, rules_of, summary
from convrepro.tables import find_table, load_table

pytestmark = pytest.mark.unit

TABLE = load_table("hetconv/table1")
MACS = {"macs": 313_478_154, "params": 15_000_000, "multiplications": 0, "shifts": 0, "weight_bits": 0}


def record(row: str = "p1", top1: float = 94.0, **changed: object) -> dict:
    found = TABLE.row(row.partition("+")[0])
    settings = TABLE.settings(found)
    line = {"epoch": 5, "top1": top1, "top5": 99.0, "loss": 0.3}
    result = {"table": TABLE.name, "row": row, "seed": 1, "budget": "paper", "status": "done", "static": MACS}
    result |= {"overrides": list(TABLE.overrides(found)), "config": {"data": {"name": settings["data"]}}}
    return (
        result | {"metrics": {"last": line, "best": {**line, "epoch": 3}}, "time": {"images_per_second": 9.5}} | changed
    )


def test_a_run_that_counts_is_compared_by_its_tables_own_rules():
    """The paper's macs are HetConv's, with scaled biases; the run's static column is another count."""
    counts = {"hetconv_scaled_bias": "313740000", "params_no_norm": "14700000"}
    found = summary(record(top1=94.3, counts=counts), TABLE)
    assert {key: found[f"{key}/top1"] for key in ("ours", "published", "delta", "verdict")} == {
        "ours": 94.3, "published": 94.06, "delta": 0.24, "verdict": "reproduced",
    }  # fmt: skip
    assert (found["ours/macs"], found["published/macs"], found["verdict/macs"]) == (313.74, 313.74, "static-ok")
    assert summary(record(counts={"hetconv_scaled_bias": "313000000"}), TABLE)["verdict/macs"] == "static-off"


@pytest.mark.parametrize(("top1", "verdict", "delta"), [(93.76, "reproduced", -0.3), (93.75, "off", -0.31)])
def test_the_verdict_of_one_seed_uses_the_tables_tolerance(top1, verdict, delta):
    found = summary(record(top1=top1), TABLE)
    assert (found["verdict/top1"], found["delta/top1"]) == (verdict, delta)


@pytest.mark.parametrize(
    "changed",
    [{"budget": "smoke"}, {"budget": "proxy"}, {"overrides": []}, {"config": {"data": {"name": "fashion-sample"}}},
     {"row": "p1+abcdef", "overrides": ["conv=standard", "recipe.epochs=1"]}, {"status": "started", "metrics": None}],
    ids=str,
)  # fmt: skip
def test_what_is_not_the_rows_own_run_is_not_compared(changed):
    found = summary(record(counts={"hetconv_scaled_bias": "313740000"}) | changed, TABLE)
    assert (found["published/top1"], found["verdict/top1"]) == (94.06, "not compared")
    assert not any(key.startswith("delta/") for key in found)
    assert found.get("ours/top1") == (None if "status" in changed else 94.0)


def test_a_metric_that_takes_other_rows_is_not_compared_by_a_run_alone():
    found = summary(record("p4"), TABLE)
    assert (found["published/reduction"], found["verdict/reduction"]) == (66.22, "not compared")


def test_runs_of_no_table_or_of_one_that_is_gone_have_nothing_published():
    assert find_table("hetconv/gone") is None
    for table, row in ((None, None), (find_table("hetconv/gone"), "p1"), (TABLE, "gone")):
        found = summary(record() | {"row": row}, table)
        assert found["last/top1"] == 94.0
        assert not [key for key in found if key.startswith(("published/", "verdict/"))]
    assert rules_of(None) == ()


def test_costs_are_told_with_their_convention():
    found = summary(record(static={**MACS, "multiplications": MACS["macs"] // 2, "shifts": MACS["macs"] // 2}), TABLE)
    assert found["multiplications_left"] == 0.5
    assert {f"static/{name}" for name in STATIC} <= found.keys()
    assert found["static/convention"].startswith("macs: conv_fc, params: params")
    assert (found["images_per_second"], found["best/epoch"], found["last/epoch"]) == (9.5, 4, 6)
    assert rules_of(TABLE) == ("hetconv_scaled_bias", "params_no_norm")
