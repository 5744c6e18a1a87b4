"""What counts as evidence, what is refused and why, and the pages that are written from it. All on real files."""

import json
import re
from fractions import Fraction

import pytest

from convrepro.config.compose import compose_config
from convrepro.errors import ConvReproError
from convrepro.evidence.collect import collect
from convrepro.evidence.store import evidence_path, load_evidence, load_proxies
from convrepro.report.papers import report, write_scoreboard
from convrepro.tables import judge, list_tables, load_table
from support.recorded import AGAIN, COMMIT, STATICS, YAML, put, record

pytestmark = pytest.mark.unit


def test_finished_runs_become_evidence(table, finished, root):
    collected = collect(table, finished, STATICS, root)
    assert collected.refused == ()
    assert len(collected.accepted) == 4
    statics, results = load_evidence(table, root)
    assert statics["warm"]["macs"] == Fraction(10**7, 3)
    assert results["plain"][1]["metrics"]["last"]["top1"] == 94.1
    assert judge(table, table.row("plain"), table.metrics["top1"], statics, results).text == "reproduced"
    run = results["plain"][0]
    assert run["environment"]["commit"] == COMMIT
    assert run["history"]["val/top1"] == "94.00 93.90"
    assert run["time"]["seconds"] == 12.5
    assert run["counts"] == {"conv_fc": "7000000"}


def test_evidence_holds_no_place_of_the_machine(table, finished, root):
    text = collect(table, finished, STATICS, root).path.read_text()
    assert str(finished) not in text
    assert "/somewhere" not in text
    assert "a-name" not in text


def test_evidence_is_the_same_bytes_each_time(table, finished, root, tmp_path):
    path = collect(table, finished, STATICS, root).path
    first = path.read_bytes()
    assert first.endswith(b"}\n")
    assert json.dumps(json.loads(first), indent=1, sort_keys=True).encode() + b"\n" == first
    assert collect(table, finished, dict(reversed(STATICS.items())), root).path.read_bytes() == first
    assert sorted(p.name for p in path.parent.iterdir()) == [".small.json.lock", "small.json"]


def test_collecting_elsewhere_keeps_what_is_there(table, finished, root, tmp_path):
    collect(table, finished, STATICS, root)
    elsewhere = tmp_path / "elsewhere"
    put(elsewhere, record(table, "plain", 1, 93.0))
    collect(table, elsewhere, {}, root)
    statics, results = load_evidence(table, root)
    assert results["plain"][0]["metrics"]["last"]["top1"] == 93.9
    assert results["plain"][1]["metrics"]["last"]["top1"] == 93.0
    assert statics["plain"]["macs"] == 7_000_000


def edit(**changes):
    def apply(result: dict) -> None:
        for key, value in changes.items():
            inner = result
            *parents, last = key.split("__")
            for parent in parents:
                inner = inner[parent]
            inner[last] = value

    return apply


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (edit(status="running"), "not finished: status 'running'"),
        (edit(environment__dirty=True), "uncommitted changes"),
        (edit(environment__dirty=None), "uncommitted changes"),
        (edit(environment__commit=None), "commit is not known"),
        (edit(environment__commit="unknown"), "commit is not known"),
        (edit(environment=None), "commit is not known"),
        (edit(schema=2), "result.json: schema=2 must be 1"),
        (edit(config__conv__where="all"), "conv.where was all, the row has dense_kxk"),
        (edit(config__recipe__epochs=3), "recipe.epochs was 3, the row has"),
        (edit(config__budget__epochs=3), "budget.epochs was 3, the row has null"),
        (edit(config__train=False), "train was false, the row has true"),
        (edit(config__data={}), "data set is not known"),
        (edit(config__weights="/home/x.ckpt"), "started from weights, which the row does not"),
        (edit(metrics__last={"top1": float("nan")}), "metrics.last.top1=nan must be finite"),
        (edit(metrics__last={}), "`metrics.last.top1` is missing"),
        (edit(row="warm"), "folder's name and the record disagree"),
        (edit(seed=1), "folder's name and the record disagree"),
        (edit(budget="smoke"), "folder's name and the record disagree"),
        (edit(table="paper/large"), "folder's name and the record disagree"),
    ],
)
def test_what_is_no_evidence_is_refused_with_its_reason(table, runs, root, change, reason):
    result = record(table, "plain", 0, 94.0)
    folder = put(runs, result)
    change(result)
    (folder / "result.json").write_text(json.dumps(result))
    collected = collect(table, runs, STATICS, root)
    [(name, told)] = collected.refused
    assert name == "plain/paper-seed0"
    assert re.search(reason, told), told
    assert collected.accepted == collected.proxies == ()
    assert told in str(collected)
    assert load_evidence(table, root)[1]["plain"] == {}


def test_unreadable_unfinished_and_misplaced_runs_are_refused(table, runs, root):
    torn = put(runs, record(table, "plain", 0, 94.0))
    (torn / "result.json").write_text('{"schema": 1, "status"')
    (runs / "paper/small/plain/paper-seed1").mkdir()
    put(runs, record(table, "plain", 0, 94.0, budget="smoke"))
    put(runs, record(table, "plain", 5, 94.0))
    put(runs, record(table, "plain", 0, 94.0), "gone/paper-seed0")
    put(runs, record(table, "plain", 0, 94.0), "other/paper-seed0")
    put(runs, record(table, "plain", 0, 94.0), "plain/old-run")
    refused = dict(collect(table, runs, STATICS, root).refused)
    assert "not JSON" in refused["plain/paper-seed0"]
    assert "there is no result.json" in refused["plain/paper-seed1"]
    assert "budget smoke is no evidence" in refused["plain/smoke-seed0"]
    assert "seed 5 is not one of the table's: [0, 1]" in refused["plain/paper-seed5"]
    assert "no row 'gone'" in refused["gone/paper-seed0"]
    assert "no row 'other'" in refused["other/paper-seed0"]
    assert "<budget>-seed<number>" in refused["plain/old-run"]
    assert len(refused) == 7


def test_other_data_and_fewer_epochs_are_proxies(table, finished, root):
    put(finished, record(table, "plain", 0, 80.0, budget="proxy"))
    foreign = record(table, "plain", 0, 70.0) | {"row": "plain+abc123"}
    foreign["config"]["data"] = compose_config(["data=fashion_sample"]).data.model_dump()
    put(finished, foreign)
    unsaid = record(table, "plain", 1, 60.0) | {"row": "plain+def456"}
    unsaid["config"]["data"]["name"] = "kmnist"
    put(finished, unsaid)
    smaller = record(table, "plain", 0, 50.0, budget="proxy") | {"row": "plain+012345"}
    smaller["config"]["data"]["image_size"] = 16
    put(finished, smaller)
    collected = collect(table, finished, STATICS, root)
    assert len(collected.proxies) == 4
    assert collected.refused == ()
    proxies = load_proxies(table, root)
    kmnist = next(label for label in proxies if label.startswith("kmnist, "))
    labels = ["fashion-sample, budget paper", kmnist, "mnist, budget proxy"]
    assert sorted(proxies) == sorted([*labels, "mnist, data.image_size=16, budget proxy"])
    assert proxies["mnist, budget proxy"]["plain"][0]["metrics"]["last"]["top1"] == 80.0
    assert load_evidence(table, root)[1]["plain"][0]["metrics"]["last"]["top1"] == 93.9
    verdicts = {judge(table, table.row("plain"), table.metrics["top1"], {}, runs).verdict for runs in proxies.values()}
    assert verdicts == {"proxy"}


def test_a_run_whose_configuration_files_changed_is_refused(table, runs, root):
    result = record(table, "plain", 0, 94.0)
    config = result["config"]
    for seed, epochs in enumerate((config["recipe"]["epochs"], 7)):
        recipe = config["recipe"] | {"epochs": epochs}
        put(runs, result | {"seed": seed, "config": config | {"recipe": recipe}})
    collected = collect(table, runs, STATICS, root)
    assert collected.accepted == ("plain/paper-seed0",)
    assert "recipe.epochs was 7, the row has" in dict(collected.refused)["plain/paper-seed1"]


def test_evidence_of_a_changed_row_is_told_then_dropped(table, finished, root):
    collect(table, finished, STATICS, root)
    (root / "paper/small.yaml").write_text(YAML.replace("[conv=standard]", "[conv=standard, recipe.epochs=3]"))
    changed = load_table("paper/small", root)
    with pytest.raises(ConvReproError, match=r"row plain is model=resnet18 data=mnist conv=standard, but by now"):
        load_evidence(changed, root)
    collected = collect(changed, finished, STATICS, root)
    refused = dict(collected.refused)
    assert "then" in refused["plain (earlier evidence)"]
    assert "recipe.epochs was " in refused["plain/paper-seed0"]
    assert load_evidence(changed, root)[1]["plain"] == {}


def test_unreadable_evidence_is_not_overwritten(table, finished, root):
    path = evidence_path(table.name, root)
    path.parent.mkdir()
    for content, rule in (
        ("{", "not JSON"),
        ('{"schema": 9, "table": "paper/small", "rows": {}}', "schema=9 must be 1"),
    ):
        path.write_text(content)
        with pytest.raises(ConvReproError, match=rule):
            collect(table, finished, STATICS, root)
        assert path.read_text() == content


def test_without_runs_only_counts_are_kept_and_told_while_their_rule_is_the_tables(table, runs, root):
    collect(table, runs, STATICS, root)
    statics, results = load_evidence(table, root)
    assert statics["plain"] == {"macs": 7_000_000}
    assert results == {"plain": {}, "warm": {}, "other": {}}
    (root / "paper/small.yaml").write_text(YAML.replace("conv_fc", "conv_only"))
    assert not load_evidence(load_table("paper/small", root), root)[0]["plain"]


def test_without_evidence_nothing_is_known(table, root):
    statics, results = load_evidence(table, root)
    assert not any(statics.values())
    assert not any(results.values())
    assert load_proxies(table, root) == {}


def test_a_row_of_another_table_brings_its_runs_along(table, finished, root):
    (root / "paper/again.yaml").write_text(AGAIN)
    collect(table, finished, STATICS, root)
    again = load_table("paper/again", root)
    results = load_evidence(again, root)[1]
    assert results["warm"][1]["metrics"]["last"]["top1"] == 94.1
    put(finished, record(again, "warm", 0, 94.0))
    refused = dict(collect(again, finished, {}, root).refused)
    assert "no row 'warm' with runs of its own" in refused["warm/paper-seed0"]


def test_report_is_notes_then_tables(table, finished, root):
    put(finished, record(table, "plain", 0, 80.0, budget="proxy"))
    collect(table, finished, STATICS, root)
    (root / "paper/notes.md").write_text("# The paper\n\nWhat reproduces, in *words*.\n")
    (root / "paper/again.yaml").write_text(AGAIN)
    path = report("paper", lambda t: STATICS, root)
    text = path.read_text()
    assert path == root / "paper/README.md"
    assert text.startswith("# The paper\n\nWhat reproduces, in *words*.\n")
    assert "| Plain | `plain` | 94.00 | 94.00 ±0.14 (2) | 0.00 | 7.00 | reproduced |" in text
    assert "| warm loses nothing | top1: warm - plain >= 0 | holds (+0.100 ±0.141) | unknown |" in text
    assert "| Plain | 80.00 (1) |" in text
    assert text.index("paper/small") < text.index("paper/again")
    assert report("paper", lambda t: STATICS, root).read_text() == text


def test_report_of_no_paper(root):
    with pytest.raises(ConvReproError, match="no paper 'papre'; valid: paper"):
        report("papre", lambda t: {}, root)


def test_scoreboard_goes_between_its_marks(table, finished, root, tmp_path):
    collect(table, finished, STATICS, root)
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- scoreboard -->\nstale\n<!-- /scoreboard -->\nafter\n")
    write_scoreboard(lambda t: STATICS, readme, root)
    text = readme.read_text()
    assert text.startswith("before\n<!-- scoreboard -->\n|  | rows |")
    assert text.endswith("|\n<!-- /scoreboard -->\nafter\n")
    assert "| [paper](reproductions/paper/README.md) | 2 + 1 quoted | - | 1 reproduced | 1 holds |" in text
    assert "stale" not in text
    write_scoreboard(lambda t: STATICS, readme, root)
    assert readme.read_text() == text


def test_scoreboard_needs_its_marks(root, tmp_path):
    readme = tmp_path / "README.md"
    for text in ("none", "<!-- scoreboard --> only"):
        readme.write_text(text)
        with pytest.raises(ConvReproError, match="scoreboard"):
            write_scoreboard(lambda t: {}, readme, root)
        assert readme.read_text() == text


@pytest.mark.parametrize("name", list_tables())
def test_committed_evidence_is_up_to_date(name):
    """Every committed run still stands for its row, at the paper's protocol, of a clean commit."""
    table = load_table(name)
    for row, runs in load_evidence(table)[1].items():
        for seed, run in runs.items():
            assert seed in table.seeds
            assert run["environment"]["dirty"] is False
            cells = [judge(table, table.row(row), metric, {}, {row: runs}) for metric in table.metrics.values()]
            assert not {"proxy", "smoke", "not run"} & {cell.verdict for cell in cells}
