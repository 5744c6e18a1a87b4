"""`convrepro compare`: operators on one network, from the line that a user types to the page."""

import csv
import json
import os

import pytest

from convrepro.cli.main import main
from convrepro.config.compose import compose_config
from convrepro.config.scientific import executes
from convrepro.errors import ConvReproError
from convrepro.evidence.comparison import record_path
from convrepro.evidence.counts import count
from convrepro.evidence.width import thinned
from convrepro.report.comparison import Line, _dominates, notes
from convrepro.runs.comparison import Comparison, operators
from convrepro.tables import load_table
from support.command import convrepro

NETWORK = ["model=deepshift_mnist_conv", "data=mnist", "budget.sample=true", "trainer=cpu", "logger=none"]
QUICK = ["--budget", "smoke", "--rounds", "2", "--batch-size", "4", "--threads", "1"]
QUICK += ["budget.train_examples=64", "budget.test_examples=50", "recipe.epochs=1"]


@pytest.mark.parametrize(
    ("words", "titles"),
    [
        (["igcv3"], ["igcv3"]),
        (["hetconv(p=2,4)"], ["hetconv(p=2)", "hetconv(p=4)"]),
        (
            ["hetconv(p=2,4, arrangement=shifted)"],
            ["hetconv(p=2,arrangement=shifted)", "hetconv(p=4,arrangement=shifted)"],
        ),
        (["hetconv(p=range(1,4))"], ["hetconv(p=1)", "hetconv(p=2)", "hetconv(p=3)"]),
        (["shift()", "low_rank( rank=0.5 )"], ["shift", "low_rank(rank=0.5)"]),
    ],
    ids=lambda words: " ".join(words),
)
def test_operators_are_written_with_their_knobs(words, titles):
    assert [choice.title for choice in operators(words)] == titles


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["hetconv(p=2"], "'hetconv(p=2' is no operator; write it as igcv3 or as hetconv(p=2,4)"),
        (["hetconv(2)"], "'2' is no knob; write hetconv(knob=value)"),
        (["hetconv(p=2,2)"], "hetconv(p=2) is there twice"),
        (["a b"], "'a b' is no operator"),
        (["hetconv(p=[)"], "is not an override"),
        ([], "there is nothing to compare"),
    ],
    ids=str,
)
def test_what_is_no_operator_is_one_sentence(words, says):
    with pytest.raises(ConvReproError) as error:
        operators(words)
    assert says in str(error.value)


@pytest.mark.parametrize("key", ["trainer", "trainer.devices", "logger.mode", "runs", "data_root", "data.root"])
def test_how_a_run_is_executed_is_no_part_of_a_comparison(key):
    assert executes(key)


@pytest.mark.parametrize("key", ["model", "recipe", "recipe.epochs", "data", "weights", "conv.p", "nothing", "budget"])
def test_what_determines_a_result_is_part_of_it(key):
    assert not executes(key)


def test_the_name_tells_what_is_compared():
    def name(*base: str, **more: bool) -> str:
        return Comparison(tuple(base), (), (0,), **more).name

    plain = name("model=resnet20_cifar", "data=cifar10")
    assert plain == "resnet20_cifar/cifar10"
    assert name("data=cifar10", "model=resnet20_cifar") == plain
    assert name("model=resnet20_cifar", "data=cifar10", from_dense=True) == f"{plain}_from_dense"
    assert len({name("model=resnet20_cifar", "data=cifar10", f"recipe.epochs={n}") for n in (1, 2)} | {plain}) == 3


def test_what_starts_from_weights_is_fine_tuned_unless_the_user_chose(tmp_path):
    (hetconv,) = operators(["hetconv(p=2)"])
    base = ("model=resnet20_cifar", "data=cifar10")
    table = Comparison(base, (hetconv,), (0, 1), from_dense=True).write(tmp_path)
    assert load_table(table.name, tmp_path) == table
    dense, row = table.rows
    assert dense.overrides == ("conv=standard",)
    assert (row.overrides, row.weights_from) == (("conv=hetconv", "conv.p=2", "recipe=finetune"), "dense")
    given = Comparison((*base, "weights=a.ckpt"), (hetconv,), (0,)).write(tmp_path)
    assert [row.overrides[-1] for row in given.rows] == ["recipe=finetune", "recipe=finetune"]
    chosen = Comparison((*base, "weights=a.ckpt", "recipe=resnext"), (hetconv,), (0,)).write(tmp_path)
    assert all("recipe=finetune" not in row.overrides for row in chosen.rows)


def test_the_front_is_of_what_nothing_dominates():
    found = [
        Line(str(n), {"macs": macs}, top1=(top1,)) for n, (macs, top1) in enumerate([(1, 5), (2, 5), (2, 7), (3, 6)])
    ]
    front = [one.title for one in found if not any(_dominates(other, one, "macs") for other in found)]
    assert front == ["0", "2"]
    untrained = Line("x", {"macs": 0})
    assert not _dominates(untrained, found[0], "macs")


@pytest.mark.unit
def test_a_reason_that_several_networks_share_is_told_once():
    found = [Line(name, {"macs": 1}, reason="no onnx") for name in ("a", "b")]
    found += [Line("c", {"macs": 1}), Line("d", reason="no onnx"), Line("e", {"macs": 1}, reason="no file")]
    assert notes(found) == ["a, b: no onnx", "d, refused: no onnx", "e: no file"]


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("model", "override"),
    [("resnet20_cifar", "model_args.widths=["), ("mobilenet_v1_cifar", "model_args.width=0.")],
)
def test_a_thin_network_has_the_macs_that_are_asked_for(model, override):
    words = [f"model={model}", "data=cifar10"]
    cfg = compose_config(words)
    whole = int(count(cfg)[0].total("macs"))
    knob, title = thinned(cfg, whole // 3)
    assert knob.startswith(override)
    assert title.startswith("dense, width")
    thin = int(count(compose_config([*words, knob]))[0].total("macs"))
    assert thin == pytest.approx(whole / 3, rel=0.05)
    with pytest.raises(ConvReproError, match="are not below the"):
        thinned(cfg, whole)


@pytest.mark.heavy
def test_a_network_without_a_width_says_so():
    with pytest.raises(ConvReproError, match="squeezenet1_0 has no argument for its width, such as width, widths"):
        thinned(compose_config(["model=squeezenet1_0", "data=cifar10"]), 1)


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """A comparison with operators that fit and one that does not, from the dense network's weights, two seeds."""
    folder = tmp_path_factory.mktemp("compared")
    words = ["compare", *NETWORK, "--convs", "hetconv(p=2,3)", "low_rank(rank=0.5)", "--seeds", "0,1", "--from-dense"]
    return folder, words, convrepro(*words, *QUICK, cwd=folder)


def test_a_comparison_is_trained_measured_and_shown(compared):
    folder, _, done = compared
    assert done.returncode == 0, done.stderr
    (path,) = (folder / "comparisons/deepshift_mnist_conv").glob("*.yaml")
    table = load_table(f"deepshift_mnist_conv/{path.stem}", folder / "comparisons")
    assert [row.label for row in table.rows] == ["dense", "hetconv(p=2)", "low_rank(rank=0.5)"]
    assert "refused: hetconv(p=3): layer 'features.3': p=3 must divide" in done.stdout
    lines = {line["title"]: line for line in json.loads(path.with_suffix(".json").read_text())["lines"]}
    for title in ("hetconv(p=2)", "low_rank(rank=0.5)"):
        line = lines[title]
        assert set(line["ratios"]) == {"train", "inference", "exported"}
        assert line["exported_bytes"] > 1_000_000
        assert len(line["top1"]) == len(line["converted"]) == 2
        assert line["costs"]["macs"] < lines["dense"]["costs"]["macs"]
    assert not lines["hetconv(p=3)"]["costs"]
    results = [json.loads(one.read_text()) for one in folder.glob("runs/**/dense/*/result.json")]
    assert sorted(r["metrics"]["last"]["top1"] for r in results) == sorted(lines["dense"]["top1"])
    front = [line for line in lines.values() if line["front"]]
    best = max(lines.values(), key=lambda line: sum(line["top1"]) if line["top1"] else -1)
    assert best in front
    rows = list(csv.reader(path.with_suffix(".csv").open()))
    assert [row[1] for row in rows[1:]] == [line["title"] for line in lines.values() if line["costs"]]
    page, markdown = (path.with_suffix(s).read_text() for s in (".html", ".md"))
    for text in (page, markdown, done.stdout):
        assert "hetconv(p=2)" in text
        assert "must divide" in text
    assert "a proxy" in page


def test_the_same_command_again_trains_and_measures_nothing(compared):
    folder, words, _ = compared
    record = next((folder / "comparisons").rglob("compared/*.json"))
    page = next((folder / "comparisons").rglob("*.md"))
    before, said = json.loads(record.read_text())["rows"], page.read_text()
    assert all(row["time"] for row in before.values())
    done = convrepro(*words, *QUICK, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "epoch 1/" not in done.stdout
    assert json.loads(record.read_text())["rows"] == before
    assert page.read_text() == said, "when and at which commit it was measured does not change"


def test_what_was_measured_on_another_machine_is_measured_anew(tmp_path):
    from convrepro.evidence.comparison import Notes
    from convrepro.evidence.speed import Setting

    table = Comparison(("model=deepshift_mnist_conv", "data=mnist"), tuple(operators(["shift"])), (0,)).write(tmp_path)
    dense = {
        "overrides": list(table.overrides(table.row("dense"))),
        "exported_bytes": 7,
        "macs_ratio": 1.0,
        "ratios": {},
    }

    def kept(setting: Setting) -> set[str]:
        return set(Notes(table, tmp_path, setting, {}).record["rows"])

    path = record_path(table.name, tmp_path)

    def on_record(**changed: object) -> None:
        assert kept(Setting()) == set()
        record = json.loads(path.read_text())
        record["environment"] |= changed
        path.write_text(json.dumps(record | {"rows": {"dense": dense}}))

    on_record()
    assert kept(Setting(modes=("train",))) == {"dense"}
    assert kept(Setting(batch_size=2)) == set()
    on_record(device="another")
    assert kept(Setting()) == set()


def test_its_table_is_one_for_other_commands(compared):
    folder, _, _ = compared
    (path,) = (folder / "comparisons/deepshift_mnist_conv").glob("*.yaml")
    name = f"deepshift_mnist_conv/{path.stem}"
    tables = {**os.environ, "CONVREPRO_TABLES": "comparisons", "CONVREPRO_SLURM_SITE": ""}
    assert "hetconv(p=2)" in convrepro("show", name, cwd=folder, env=tables).stdout
    status = convrepro("status", name, "--budget", "smoke", "trainer=cpu", "logger=none", cwd=folder, env=tables)
    assert "6 done" in status.stdout, status.stdout + status.stderr
    assert record_path(name, folder / "comparisons").exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--convs", "hetconv(p=3)"], "no operator fits: layer 'features.3': p=3"),
        (["--convs", "igcv9"], "no operator fits"),
        (["--convs", "shift", "--cost", "money"], "--cost 'money' is unknown; valid: macs"),
        (["--convs", "shift", "conv=shift"], "conv=shift has no effect on a comparison"),
        (["--convs", "shift", "--modes", "fast"], "mode 'fast' is unknown"),
        (["--convs", "shift", "--seeds", "x"], "--seeds 'x' must be whole numbers"),
        (["--convs", "shift", "--budget", "none"], "budget"),
    ],
    ids=lambda words: " ".join(words) if isinstance(words, list) else "",
)
def test_a_mistake_is_a_sentence_before_anything_is_written(words, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        main(["compare", *NETWORK, *words])
    assert end.value.code == 2
    assert says in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
