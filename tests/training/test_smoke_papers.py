"""A row of each paper is trained on the bundled images, by the line that `convrepro run` prints."""

import math

import pytest

from convrepro.runs.plan import plan
from convrepro.tables import list_tables, load_table
from convrepro.training.runner import run_jobs, validate

SMALL = ["budget.train_examples=32", "budget.test_examples=16", "recipe.batch_size=16", "trainer=cpu", "logger=none"]


ROWS = {
    "common": ("reference", "hetconv_p4"),
    "deepshift": ("cifar10_v5", "resnet20_q"),
    "hetconv": ("table4", "p32"),
    "igcv1": ("cifar", "l24m2_d20_cifar10"),
    "igcv2": ("cifar100", "c416_cifar10"),
    "igcv3": ("imagenet", "igcv3_d"),
    "mobilenet_v1": ("table6", "w050"),
    "mobilenet_v2": ("table4", "mobilenet_v2"),
    "resnext": ("table3", "r50_32x4d"),
    "senet": ("table3", "se_mobilenet"),
    "shufflenet_v1": ("table2", "x1_g3"),
    "xception": ("table1", "xception"),
}
"""A table of each paper, and a row of it that is the paper's own."""


#: Networks like the others' train in `test_networks.py` and in the tests of the zoo, too.
ALWAYS = ("deepshift", "hetconv", "igcv2", "mobilenet_v1")
PAPERS = [pytest.param(paper, marks=[] if paper in ALWAYS else [pytest.mark.exhaustive]) for paper in ROWS]


@pytest.mark.parametrize("paper", PAPERS)
def test_a_row_of_the_paper_trains(paper, tmp_path):
    table, row = ROWS[paper]
    jobs = plan(load_table(f"{paper}/{table}"), budget="smoke", rows=[row], seeds=[0], extra=SMALL, runs=tmp_path)
    validate(jobs, print)
    results, failures = run_jobs(jobs, lambda line: None)
    assert failures == {}
    (result,) = results[row].values()
    assert result["status"] == "done"
    assert all(math.isfinite(line["train/loss"]) for line in result["history"])
    assert 0 <= result["metrics"]["last"]["top1"] <= 100


def test_no_paper_that_trains_anything_is_left_out():
    assert {name.split("/")[0] for name in list_tables() if load_table(name).to_run} == set(ROWS)
