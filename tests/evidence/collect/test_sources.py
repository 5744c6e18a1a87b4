"""A row that starts from another's weights is evidence only if that run is."""

import json
import shutil

import pytest

from convrepro.evidence.collect import collect
from convrepro.evidence.store import evidence_path
from support.recorded import STATICS, put, record

pytestmark = pytest.mark.unit


def test_a_row_must_start_from_the_weights_of_an_accepted_run(table, runs, root):
    plain = put(runs, record(table, "plain", 0, 94.0))
    warm = record(table, "warm", 0, 94.0, runs=runs)
    put(runs, warm)
    assert len(collect(table, runs, STATICS, root).accepted) == 2
    evidence_path(table.name, root).unlink()

    dirty = record(table, "plain", 0, 94.0)
    dirty["environment"]["dirty"] = True
    (plain / "result.json").write_text(json.dumps(dirty))
    assert "no evidence itself" in dict(collect(table, runs, STATICS, root).refused)["warm/paper-seed0"]

    put(runs, record(table, "plain", 0, 94.0))
    for other in (None, "paper-seed1", "proxy-seed0", "paper-seed0/old"):
        warm["config"]["weights"] = other and f"{runs}/paper/small/plain/{other}/last.ckpt"
        put(runs, warm)
        refused = dict(collect(table, runs, STATICS, root).refused)
        assert "did not start from the weights of paper/small/plain/paper-seed0" in refused["warm/paper-seed0"]
        evidence_path(table.name, root).unlink()


def test_a_variant_of_a_row_starts_from_the_variant_that_it_names(table, runs, root):
    """Their digests differ, as the settings of the two rows do."""
    given = {"plain": "plain+11111111", "warm": "warm+22222222"}
    made = {row: record(table, row, 0, 80.0, budget="proxy", runs=runs) | {"row": name} for row, name in given.items()}
    made["warm"]["config"]["weights"] = f"{runs}/paper/small/plain+11111111/proxy-seed0/last.ckpt"
    for result in made.values():
        put(runs, result)
    names = tuple(f"{name}/proxy-seed0" for name in given.values())
    assert tuple(name.split()[0] for name in collect(table, runs, STATICS, root).proxies) == names

    for other in ("plain+33333333", "other+11111111", "plain"):
        made["warm"]["config"]["weights"] = f"{runs}/paper/small/{other}/proxy-seed0/last.ckpt"
        put(runs, made["warm"])
        refused = dict(collect(table, runs, STATICS, root).refused)
        assert refused.keys() == {names[1]}, other
        evidence_path(table.name, root).unlink()


def test_weights_are_of_the_run_that_is_there_and_of_evidence_where_none_is(table, finished, root, tmp_path):
    collect(table, finished, STATICS, root)
    (finished / "paper/small/plain/paper-seed0/result.json").unlink()
    put(tmp_path / "other", record(table, "plain", 1, 94.0))
    put(finished, record(table, "warm", 1, 94.0, runs=tmp_path / "other"))
    refused = dict(collect(table, finished, STATICS, root).refused)
    assert "no evidence itself" in refused["warm/paper-seed0"]
    assert "did not start from the weights" in refused["warm/paper-seed1"]
    for gone in (tmp_path / "other", finished / "paper/small/plain"):
        shutil.rmtree(gone)
    assert collect(table, finished, STATICS, root).accepted == ("warm/paper-seed0", "warm/paper-seed1")
