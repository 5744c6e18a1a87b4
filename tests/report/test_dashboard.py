"""Dashboards as code: what is in them, that a real run logs every key of theirs, and what reaches a W&B server."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from convrepro.cli.main import main
from convrepro.evidence.store import load_evidence
from convrepro.report.dashboards.panels import PALETTE
from convrepro.report.dashboards.workspace import report, workspace
from convrepro.runs.identity import Identity
from convrepro.runs.result import FILE
from convrepro.tables import list_tables, load_table
from support import command, small_table
from support.wandb_server import WandbServer

NAME = "lab/tiny"
TABLE = """\
title: Tiny networks
source: {paper: lab, table: 1}
question: does everything arrive?
base: [model=deepshift_mnist_fc, data=mnist, recipe=deepshift_mnist_v5, recipe.epochs=2, budget.sample=true,
       budget.train_examples=128, budget.test_examples=100]
seeds: [0, 1]
metrics:
  top1: {unit: "%", tol: 0.3, why: it is a test}
  error: {unit: "%", tol: 0.3, why: it is a test, run_metric: top1, complement: true}
  multiplications: {unit: k, decimals: 1, printed: round, count: multiplications}
  weights: {unit: k, decimals: 1, printed: round, count: weights}
rows:
  - id: plain
    label: Plain
    overrides: [conv=standard]
    published:
      top1: {value: 20.00, source: a test, confidence: found}
      multiplications: {value: 668.7, source: a test, confidence: found}
      weights: {value: 668.7, source: a test, confidence: found}
  - id: shift
    label: Shift
    overrides: [conv=shift]
    published: {error: {value: 70.00, source: a test, confidence: recalled}}
claims:
  - {text: plain is better, left: plain, right: shift, metric: top1, min_delta: 0}
"""
RUNS = [Identity(NAME, row, seed, "paper") for row in ("plain", "shift") for seed in (0, 1)]
CLOCKS = ("_runtime", "_timestamp", "_wandb")


def convrepro(*words: str, server: WandbServer | None = None, **environment: str) -> subprocess.CompletedProcess:
    """The command, led to `server` or to none."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    home = {"HOME": environment.pop("HOME", "/nonexistent"), "WANDB_SILENT": "true"}
    led = server.environment() if server else {}
    return command.convrepro(*words, env={**clean, **home, **led, **environment})


def fine(done: subprocess.CompletedProcess) -> str:
    assert done.returncode == 0, done.stderr
    return done.stdout


class Lab:
    """The tiny table trained for real, online, and the server that it was sent to."""

    def __init__(self, root: Path, server: WandbServer) -> None:
        self.tables, self.runs, self.server = root / "tables", root / "runs", server
        small_table.write(self.tables, TABLE, NAME)
        self.table = load_table(NAME, self.tables)
        fine(self.command("run", "trainer=cpu", f"runs={self.runs}", server=server))

    def command(self, verb: str, *words: str, server: WandbServer | None = None) -> subprocess.CompletedProcess:
        return convrepro(verb, NAME, *words, server=server, CONVREPRO_TABLES=str(self.tables))

    def dashboard(self, *words: str, server: WandbServer) -> str:
        return fine(self.command("dashboard", "--runs", str(self.runs), *words, server=server))


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with WandbServer() as server:
        yield Lab(tmp_path_factory.mktemp("lab"), server)


def panels(spec: dict) -> dict[str, list[dict]]:
    """Heading -> panels of a workspace."""
    return {section["name"]: section["panels"] for section in spec["section"]["panelBankConfig"]["sections"]}


def keys(panel: dict) -> list[str]:
    """The keys that a panel reads, those of summary and configuration with their section's name in front."""
    config = panel["config"]
    axes = [config[axis] for axis in ("xAxis", "yAxis") if axis in config]
    return [*axes, *config.get("metrics", []), *(column["accessor"] for column in config.get("columns", []))]


def test_a_workspace_holds_what_it_promises(lab):
    spec = workspace(lab.table, "paper").spec
    told = {
        heading: [(panel["viewType"], panel["config"].get("groupBy"), *keys(panel)) for panel in there]
        for heading, there in panels(spec).items()
    }
    accuracy, macs, left = "summary:last/top1", "summary:static/macs", "summary:multiplications_left"
    bar, curve = ("Bar Chart", "row.value"), ("Run History Line Plot", "row.value", "epoch")
    assert told == {
        "About": [("Markdown Panel", None)],
        "Accuracy against cost": [
            ("Scatter Plot", None, macs, accuracy),
            ("Scatter Plot", None, left, accuracy),
            ("Parallel Coordinates Plot", None, "config:conv_name.value", macs, left, accuracy),
        ],
        "Published against ours": [
            (*bar, "published/top1", "ours/top1"),
            (*bar, "delta/top1"),
            (*bar, "published/error", "ours/error"),
            (*bar, "delta/error"),
            (*bar, "published/multiplications", "ours/multiplications"),
            (*bar, "published/weights", "ours/weights"),
        ],
        "Learning curves, by row": [
            (*curve, "val/top1"),
            (*curve, "train/loss"),
            (*curve, "val/loss"),
            (*curve, "lr"),
        ],
    }
    for panel in panels(spec)["Learning curves, by row"]:
        assert (panel["config"]["groupAgg"], panel["config"]["groupArea"]) == ("mean", "minmax")
    (about,) = panels(spec)["About"]
    for words in ("does everything arrive?", "within 0.3 %", "plain is better"):
        assert words in about["config"]["value"]


def test_a_workspace_shows_the_runs_of_its_table_and_budget_and_their_verdicts(lab):
    (runs,) = workspace(lab.table, "proxy").spec["section"]["runSets"]
    wanted = [("run", "group", NAME), ("config", "budget_name", "proxy")]
    assert [(f["key"]["section"], f["key"]["name"], f["value"]) for f in runs["filters"]["filters"]] == wanted
    shown = runs["runFeed"]["columnOrder"]
    assert shown[0] == "run:displayName"
    for key in ("verdict/top1", "verdict/error", "delta/top1", "static/macs", "static/weight_bits"):
        assert f"summary:{key}" in shown


def test_every_key_of_a_workspace_is_one_that_a_real_run_logs(lab):
    runs = [lab.server.run(identity.run_id) for identity in RUNS]
    known = {f"summary:{key}" for run in runs for key in run.summary}
    known |= {f"config:{key}.value" for run in runs for key in run.values}
    known |= {"run:displayName", "run:state"}
    drawn = {key for run in runs for row in run.history() for key in row} | {k for run in runs for k in run.summary}
    section = workspace(lab.table, "paper").spec["section"]
    (runset,) = section["runSets"]
    assert set(runset["runFeed"]["columnOrder"]) <= known
    for panel in (panel for there in panels({"section": section}).values() for panel in there):
        assert set(keys(panel)) <= known | drawn
        if group := panel["config"].get("groupBy"):
            assert f"config:{group}" in known
    for condition in runset["filters"]["filters"]:
        if condition["key"]["section"] == "config":
            assert {run.values[condition["key"]["name"]] for run in runs} == {condition["value"]}


def test_a_run_has_its_operators_colour(lab):
    colors = workspace(lab.table, "paper").spec["section"]["customRunColors"]
    assert colors == {run.run_id: PALETTE[0] if run.row == "plain" else PALETTE[1] for run in RUNS}
    assert set(colors) == set(lab.server.runs)


def test_rows_that_are_another_tables_are_shown_too():
    table = load_table("shufflenet_v1/table5")
    assert {row.same_as.rpartition("/")[0] for row in table.rows} > {"", "mobilenet_v1/table4"}
    filters = workspace(table, "paper").spec["section"]["runSets"][0]["filters"]["filters"]
    values = [(condition["key"]["name"], condition["value"]) for condition in filters]
    for row in table.rows:
        owner, _, row_id = row.same_as.rpartition("/")
        if owner:
            assert ("group", owner) in values
            assert any(name == "row" and row_id in value for name, value in values)
    assert ("group", table.name) in values


@pytest.mark.parametrize("name", list_tables())
def test_a_dashboard_of_every_table_is_the_same_each_time(name):
    table = load_table(name)
    if not table.to_run:
        with pytest.raises(ValueError, match=f"{name} has no runs of its own"):
            workspace(table, "paper")
        return
    first, second = workspace(table, "paper"), workspace(table, "paper")
    assert json.dumps(first.spec) == json.dumps(second.spec)
    ids = [panel["__id__"] for there in panels(first.spec).values() for panel in there]
    assert len(set(ids)) == len(ids)
    assert workspace(table, "proxy").name != first.name


def test_the_json_is_the_same_from_one_process_to_the_next(tmp_path):
    one, other = tmp_path / "one.json", tmp_path / "other.json"
    for seed, path in enumerate((one, other)):
        words = [sys.executable, "-m", "convrepro.cli", "dashboard", "deepshift/mnist_v5", "--json", str(path)]
        subprocess.run(words, env=os.environ | {"PYTHONHASHSEED": str(seed)}, check=True)
    assert one.read_text() == other.read_text()
    assert json.loads(one.read_text())["title"] == "deepshift/mnist_v5"


def test_without_a_key_the_json_goes_beside_the_runs(tmp_path):
    done = convrepro("dashboard", "deepshift/mnist_v5", "--runs", str(tmp_path), HOME=str(tmp_path))
    assert "no API key" in done.stderr
    assert json.loads(Path(fine(done).strip()).read_text())["spec"]
    assert Path(done.stdout.strip()) == tmp_path / "deepshift/mnist_v5/dashboard.json"


def test_a_report_tells_of_each_table_of_its_paper():
    tables = [load_table(name) for name in list_tables() if name.startswith("deepshift/")]
    blocks = report("deepshift", tables, "paper", load_evidence).spec["blocks"]
    text = json.dumps(blocks)
    for table in tables:
        at = text.index(json.dumps(table.title))
        assert text.index(json.dumps(table.question)[1:-1], at) > at
        for claim in table.claims:
            assert f"{claim.text}: " in text
    assert "trained: 20 not run" in text or "reproduced" in text
    grids = [block["metadata"] for block in blocks if block["type"] == "panel-grid"]
    assert [grid["runSets"][0]["name"] for grid in grids] == [table.name for table in tables if table.to_run]
    for table, grid in zip((table for table in tables if table.to_run), grids, strict=True):
        wanted = [p for there in panels(workspace(table, "paper").spec).values() for p in there]
        drawn = grid["panelBankSectionConfig"]["panels"]
        assert [(p["viewType"], keys(p)) for p in drawn] == [(p["viewType"], keys(p)) for p in wanted]
        places = [tuple(panel["layout"].values()) for panel in drawn]
        assert len(set(places)) == len(places)
        assert grid["runSets"][0]["runFeed"]["lockColumns"]


def test_a_dashboard_is_saved_once_however_often(lab):
    for _ in range(2):
        address = lab.dashboard(server=lab.server).strip().splitlines()[-1]
    (view,) = lab.server.views.values()
    assert view["spec"] == workspace(lab.table, "paper").spec
    assert (view["type"], view["displayName"], view["projectName"]) == ("project-view", NAME, "convrepro")
    assert address == f"{lab.server.url}/tester/convrepro?nw={view['name'][3:-2]}"
    assert not lab.server.unknown


def test_a_report_is_saved_once_however_often_into_a_new_project(lab):
    with WandbServer() as server:
        for _ in range(2):
            words = ("dashboard", "lab", "logger.project=papers", "logger.entity=team")
            address = fine(convrepro(*words, server=server, CONVREPRO_TABLES=str(lab.tables))).strip().splitlines()[-1]
        assert server.projects == {("team", "papers")}
        (view,) = server.views.values()
        assert (view["type"], view["projectName"], view["entityName"]) == ("runs", "papers", "team")
        assert address.startswith(f"{server.url}/team/papers/reports/")
        (grid,) = [block["metadata"] for block in view["spec"]["blocks"] if block["type"] == "panel-grid"]
        assert grid["runSets"][0]["project"]["name"] == "papers"
        assert not server.unknown


def told(server: WandbServer, identity: Identity, *left_out: str) -> dict:
    """All that a server knows of a run but clocks."""
    run = server.run(identity.run_id)
    history = [{key: value for key, value in row.items() if key not in CLOCKS} for row in run.history()]
    summary = {key: value for key, value in run.summary.items() if key not in CLOCKS}
    who = {"name": run.name, "group": run.group, "job": run.job_type, "tags": run.tags, "state": run.state}
    known = {**who, "exit": run.exit_code, "config": run.values, "history": history, "summary": summary}
    return {key: value for key, value in known.items() if key not in left_out}


def test_a_new_project_gets_the_runs_as_they_were_when_they_were_trained(lab):
    with WandbServer() as server:
        assert "4 runs written, 0 were there" in lab.dashboard("--from-results", server=server)
        assert set(server.runs) == {identity.run_id for identity in RUNS}
        for identity in RUNS:
            assert told(server, identity) == told(lab.server, identity)
            rows = server.run(identity.run_id).history()
            assert [row["epoch"] for row in rows] == [1, 2]
            steps = [row["trainer/global_step"] for row in rows]
            assert steps == sorted(set(steps))
        assert len(server.views) == 1

        assert "0 runs written, 4 were there" in lab.dashboard("--from-results", server=server)
        broken = server.run(RUNS[1].run_id)
        broken.state, broken.exit_code = "crashed", None
        del broken.lines["wandb-history.jsonl"][1]
        broken.summary = json.loads(broken.lines["wandb-history.jsonl"][0])
        assert "1 runs written, 3 were there" in lab.dashboard("--from-results", server=server)
        for identity in RUNS:
            assert told(server, identity) == told(lab.server, identity)
        assert len(server.views) == 1
        assert not server.unknown


def test_evidence_stands_in_for_runs_whose_folders_are_gone(lab, tmp_path):
    runs, tables = tmp_path / "runs", tmp_path / "tables"
    small_table.write(tables, TABLE, NAME)
    for identity in RUNS:
        result = json.loads((identity.folder(lab.runs) / FILE).read_text())
        result["environment"] |= {"commit": "0" * 40, "dirty": False}
        result["config"]["recipe"]["epochs"] += 7 * (identity == RUNS[0])
        folder = identity.folder(runs)
        folder.mkdir(parents=True)
        (folder / FILE).write_text(json.dumps(result))
    collected = fine(convrepro("collect", NAME, "--runs", str(runs), CONVREPRO_TABLES=str(tables)))
    assert "3 runs, 0 proxies, 1 refused" in collected
    assert "recipe.epochs was 9, the row has 2" in collected
    (RUNS[0].folder(runs) / FILE).write_text((RUNS[0].folder(lab.runs) / FILE).read_text())
    for identity in RUNS[1:]:
        (identity.folder(runs) / FILE).unlink()
    with WandbServer() as server:
        words = ("dashboard", NAME, "--from-results", "--runs", str(runs))
        out = fine(convrepro(*words, server=server, CONVREPRO_TABLES=str(tables)))
        assert "4 runs written" in out
        assert told(server, RUNS[0]) == told(lab.server, RUNS[0])
        for identity in RUNS[1:]:
            ours, theirs = told(server, identity), told(lab.server, identity)
            assert ours["config"]["commit"] == "0" * 40
            for key in ("name", "group", "job", "state", "exit"):
                assert ours[key] == theirs[key]
            assert ours["config"]["recipe"] == theirs["config"]["recipe"]
            for key, value in theirs["summary"].items():
                if key.split("/")[0] in ("last", "best", "static", "ours", "published", "delta", "verdict"):
                    assert ours["summary"][key] == value, key
            assert [row["epoch"] for row in ours["history"]] == [1, 2]
            assert not any("trainer/global_step" in row for row in ours["history"]), "evidence does not know the steps"
            curve = [row["val/top1"] for row in theirs["history"]]
            assert [row["val/top1"] for row in ours["history"]] == [round(value, 2) for value in curve]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["hetconv/table9"], "there is no table 'hetconv/table9'"),
        (["hetcon"], "there is no paper 'hetcon'; valid: .*hetconv"),
        (["hetconv/table2", "--json", "x"], "hetconv/table2 has no runs of its own .* those of hetconv/table1"),
        (["resnext/table2", "--json", "x"], "resnext/table2 has no runs of its own .* nothing in it is trained"),
        (["hetconv/table1", "--budget", "big"], "there is no budget 'big'; valid: paper, proxy, smoke"),
        (["hetconv/table1", "--from-results", "--json", "x"], "--from-results .* cannot go with --json"),
        (["hetconv/table1", "--from-results", "logger.mode=offline"], "--from-results .* W&B is offline here"),
        (["hetconv/table1", "logger=none", "--from-results"], "--from-results .* W&B is disabled here"),
    ],
)
def test_what_cannot_be_is_told_in_a_sentence(words, sentence, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["dashboard", *words])
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(sentence, line), line


def test_a_server_that_is_not_there_is_told_in_a_sentence():
    with WandbServer() as server:
        server.down()
        done = convrepro("dashboard", "deepshift/mnist_v5", "logger.timeout=3", server=server)
    assert done.returncode == 2
    assert f"W&B at {server.url} cannot be used" in done.stderr
    assert "Traceback" not in done.stderr


def test_online_without_a_key_is_told_in_a_sentence(tmp_path):
    done = convrepro("dashboard", "deepshift/mnist_v5", WANDB_MODE="online", HOME=str(tmp_path))
    assert done.returncode == 2
    assert "there is no W&B API key" in done.stderr


def test_a_missing_library_is_named():
    code = "import sys; sys.modules['wandb_workspaces'] = None\nfrom convrepro.cli.main import main\n"
    code += "main(['dashboard', 'hetconv/table1', '--json', 'x'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2
    assert "a dashboard needs wandb_workspaces" in done.stderr
