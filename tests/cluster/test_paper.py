"""A paper's tables as one submission: a wrong path, its correction by `resubmit`, a row that is cancelled."""

import re
from pathlib import Path

import pytest
from PIL import Image

from support import lab_table, small_table
from support.table_on_cluster import Lab, result

pytestmark = [pytest.mark.cluster]

#: Class folders are read as they are, so that two images are a data set.
PHOTOS = """\
title: Networks for photographs
source: {paper: lab, table: 2}
question: does everything arrive?
base:
  [model=resnet20_cifar, data=imagenet, data.num_classes=2, data.image_size=16, recipe.batch_size=4,
   recipe.augment.crop_padding=0, budget.train_examples=8, budget.test_examples=8, budget.sample=false]
seeds: [0]
metrics:
  top1: {unit: "%", tol: 0.3, why: it is a test}
rows:
  - {id: dense, label: Dense, overrides: [conv=standard], published: {}}
  - {id: het, label: Het, overrides: [conv=hetconv, conv.p=2], published: {}}
"""


def photographs(root: Path) -> Path:
    for split in ("train", "val"):
        for label in ("cats", "dogs"):
            folder = root / "imagenet" / split / label
            folder.mkdir(parents=True)
            for n in range(4):
                Image.new("RGB", (20, 20), (40 * n, 90, 10)).save(folder / f"{n}.png")
    return root


def test_a_paper_with_a_wrong_path_is_corrected_and_goes_on(cluster, tmp_path, monkeypatch):
    lab = Lab(cluster, tmp_path, monkeypatch, lab_table.PLAIN)
    small_table.write(lab.root, PHOTOS, "lab/photos")
    wrong, right = photographs(tmp_path / "wrong"), tmp_path / "right"

    def typed(verb: str, *words: str) -> str:
        done = cluster.run("convrepro", verb, f"runs={lab.runs}", *words, cwd=tmp_path, env=lab.env)
        return done.stdout + done.stderr

    full = lab.preempt("--nodes=2", "--exclusive", seconds=3600)
    words = ["lab", "--budget", "smoke", "--seeds", "0..0", f"data_root={wrong}", *lab_table.EXTRA]
    told = typed("submit", *words, "--", "-t", "50")
    assert "2 tables, 3 runs: 3 queued" in told
    wrong.rename(right)
    cluster.run("scancel", full)
    cluster.wait_until_over(*re.findall(r"^queued (\d+):", told, re.MULTILINE))
    status = typed("status", "lab")
    assert re.search(r"^ *plain +done", status, re.MULTILINE), status
    assert len(re.findall(r"^(dense|het), seed 0: failed: .*wrong.imagenet", status, re.MULTILINE)) == 2, status

    dry = typed("resubmit", "lab", f"data_root={right}", "--dry-run")
    assert "2 tables, 3 runs: 2 would be queued" in dry
    assert "-t 50" in dry or "--time=50" in dry
    full = lab.preempt("--nodes=2", "--exclusive", seconds=3600)
    told = typed("resubmit", "lab", f"data_root={right}", "--no-collect")
    assert "2 tables, 3 runs: 2 queued" in told
    assert "budget smoke: 2 runs, 0 finished, 0 queued already, 2 to queue" in told
    assert "gathers the results" not in told
    (array,) = re.findall(r"^queued (\d+):", told, re.MULTILINE)
    cluster.run("scancel", f"{array}_1")
    cluster.run("scancel", full)
    cluster.wait_until_over(array)
    status = typed("status", "lab", f"data_root={right}")
    assert re.search(r"^ *dense +done", status, re.MULTILINE), status
    assert re.search(r"^ *het +cancelled", status, re.MULTILINE), status
    assert "lost" not in status

    told = typed("resubmit", "lab/photos")
    cluster.wait_until_over(*re.findall(r"^queued (\d+):", told, re.MULTILINE))
    assert "2 runs: 2 done" in typed("status", "lab/photos")
    (path,) = lab.runs.glob("lab/photos/het/*/result.json")
    found = result(path.parent)
    assert found["budget"] == "smoke"
    assert found["config"]["data"]["root"] == str(right / "imagenet")


def test_rows_times_a_sweep_is_a_submission_for_each_value(cluster, tmp_path, monkeypatch):
    lab = Lab(cluster, tmp_path, monkeypatch, lab_table.PLAIN)
    words = ["submit", "-m", lab_table.NAME, "--budget", "smoke", "--seeds", "0", *lab_table.EXTRA]
    told = cluster.run(
        "convrepro",
        *words,
        "recipe.optimizer.lr=0.05,0.1",
        f"runs={lab.runs}",
        "--",
        "--hold",
        cwd=tmp_path,
        env=lab.env,
    ).stdout
    assert "1 tables, 2 runs: 2 queued" in told
    assert len(lab.submissions()) == 2
    assert {o for s in lab.submissions() for o in s.request.overrides if "lr" in o} == {
        "recipe.optimizer.lr=0.05",
        "recipe.optimizer.lr=0.1",
    }
    assert "jobs cancelled" in lab.call("cancel")
