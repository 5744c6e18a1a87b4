"""Runs, evidence and W&B ids of versions that named runs by the text of their overrides still count.

What those versions wrote is spelled out here, by their formulas: the names are not computed by the code under test.
"""

import hashlib
import json
from pathlib import Path

import pytest

from convrepro.evidence.collect import collect
from convrepro.evidence.store import evidence_path, load_evidence, load_proxies, read_rows
from convrepro.report.dashboards.refill import records
from convrepro.runs.finished import is_done
from convrepro.runs.plan import plan
from convrepro.tables import Table, judge, load_table
from support import small_table
from support.results import result

pytestmark = pytest.mark.unit

#: Keys of a result that came later.
LATER = ("protocol", "counts")


def digest(overrides: list[str]) -> str:
    return hashlib.sha256(json.dumps(sorted(overrides)).encode()).hexdigest()[:6]


def wandb_id(table: str, row: str, seed: int, budget: str) -> str:
    return hashlib.sha256(f"{table}/{row}/{seed}/{budget}".encode()).hexdigest()[:16]


@pytest.fixture
def table(tmp_path) -> Table:
    return load_table("paper/small", small_table.write(tmp_path / "tables", small_table.SMALL))


def put(runs: Path, content: dict) -> Path:
    folder = runs / content["table"] / content["row"] / f"{content['budget']}-seed{content['seed']}"
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(json.dumps({k: v for k, v in content.items() if k not in LATER}))
    return folder


def jobs(table: Table, runs: Path, *extra: str) -> list:
    return plan(table, budget="paper", rows=["plain"], seeds=[0, 1], extra=extra, runs=runs)


def test_a_row_without_a_protocol_on_record_is_done_and_is_evidence(table, tmp_path):
    runs = tmp_path / "runs"
    overrides = table.overrides(table.row("plain"))
    for seed in (0, 1):
        put(runs, result(table.name, "plain", overrides, seed=seed))
    assert all(is_done(job) for job in jobs(table, runs))
    assert collect(table, runs, {}, tmp_path / "tables").accepted == ("plain/paper-seed0", "plain/paper-seed1")
    results = load_evidence(table, tmp_path / "tables")[1]
    cell = judge(table, table.row("plain"), table.metrics["top1"], {}, results)
    assert (cell.runs, cell.verdict) == (2, "off")


def test_a_variant_keeps_the_name_that_it_was_run_under(table, tmp_path):
    runs, extra = tmp_path / "runs", ["data=mnist", "trainer=cpu", "logger.mode=offline"]
    before = [job.folder for job in jobs(table, runs, *extra)]
    former = f"plain+{digest(['data=mnist'])}"
    overrides = (*table.overrides(table.row("plain")), "data=mnist")
    folder = put(runs, result(table.name, former, overrides))
    one, other = jobs(table, runs, *extra)
    assert one.folder == folder
    assert one.folder not in before
    assert other.folder.parent == folder.parent, "seeds of one variant stay together"
    assert one.identity.run_id == wandb_id(table.name, former, 0, "paper")
    assert is_done(one)
    assert not is_done(other)
    assert collect(table, runs, {}, tmp_path / "tables").proxies == (f"{former}/paper-seed0 (mnist, budget paper)",)
    assert load_proxies(table, tmp_path / "tables")["mnist, budget paper"]["plain"][0]["row"] == former


@pytest.mark.parametrize("name", ["deepshift/mnist_v5", "hetconv/table4"])
def test_evidence_that_does_not_name_its_folder_has_the_wandb_ids_of_then(name, tmp_path):
    table = load_table(name)
    rows = read_rows(name, evidence_path(name).parents[2])
    wanted = set()
    for row_id, entry in rows.items():
        own = len(entry["overrides"])
        for runs in (entry.get("runs", {}), *entry.get("proxies", {}).values()):
            for seed, run in runs.items():
                assert "row" not in run
                extra = run["overrides"][own:]
                folder = f"{row_id}+{digest(extra)}" if extra else row_id
                wanted.add(wandb_id(name, folder, int(seed), run["budget"]))
    assert wanted
    assert {identity.run_id for identity in records(table, tmp_path)} == wanted
