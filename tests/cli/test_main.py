"""What a user types, and what a mistake says: one sentence, exit code 2, no traceback, before any training."""

import re

import pytest

from convrepro import __version__ as convrepro_version
from convrepro.cli.command import parse, parser
from convrepro.cli.main import main
from convrepro.errors import ConvReproError
from support.command import Python, convrepro

VERBS = list(next(action.choices for action in parser()._actions if action.dest == "verb"))


def test_list_and_show():
    listed = convrepro("list")
    assert "hetconv/table1" in listed.stdout
    assert "deepshift/mnist_v1" in listed.stdout
    shown = convrepro("show", "hetconv/table1")
    assert "313.74" in shown.stdout
    assert "93.93" in shown.stdout
    assert "static-ok" in shown.stdout


def test_list_names_the_zoo_and_the_operators():
    assert "vgg16_cifar" in convrepro("list", "models", "*_cifar").stdout.split()
    assert {line.split()[0] for line in convrepro("list", "convs").stdout.splitlines()} >= {"hetconv", "shift"}


def test_count_of_any_model_and_operator():
    done = convrepro("count", "model=resnet18", "conv=hetconv", "data=cifar10", "conv.p=4")
    assert done.returncode == 0, done.stderr
    assert "layer1.0.conv1" in done.stdout
    assert re.search(r"\n[\d,]{9,} MACs \([\d.]+ M\), .* parameters .* at 3x32x32\nfvcore's own total", done.stdout)
    assert re.search(r"of conv=standard: 0\.\d{3} of the MACs, 0\.\d{3} of the parameters", done.stdout)


def test_an_operator_that_costs_more_than_what_it_replaces_says_so():
    done = convrepro("count", "model=mobilenetv3_small_100", "conv=igcv3", "conv.where=dw_pw_pair", "data=cifar10")
    assert done.returncode == 0, done.stderr
    assert "of the MACs (more than conv=standard)" in done.stdout


def test_without_words_the_help_is_shown(capsys):
    for words in ([], ["--help"]):
        with pytest.raises(SystemExit) as stop:
            main(words)
        assert stop.value.code == 0
    help_of_nothing, help_asked_for = capsys.readouterr().out.split("usage: ")[1:]
    assert help_of_nothing == help_asked_for
    assert "train one network" in help_of_nothing


def test_the_version_is_told(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"convrepro {convrepro_version}\n"


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("words", [(), ("--",), ("--cfg",), ("--no-such-option",)], ids=repr)
def test_a_verb_with_too_few_words_or_odd_ones_is_understood_or_told(verb, words, capsys):
    code, understood = 0, None
    try:
        understood = parse([verb, *words]).verb
    except SystemExit as stop:
        code = stop.code
    told = capsys.readouterr().err.startswith("convrepro: ")
    assert (code, understood, told) in {(0, verb, False), (2, None, True)}


@pytest.mark.parametrize("value", ["", " ", ",", " , "], ids=repr)
@pytest.mark.parametrize("option", ["", "--rows", "--seeds", "--rows=", "--budget="])
def test_an_empty_value_does_not_select_everything(option, value):
    """As of a variable in quotes that a shell does not have."""
    words = [f"{option}{value}"] if option.endswith("=") else [*filter(None, [option]), value]
    with pytest.raises(ConvReproError, match="empty; leave it out"):
        parse(["run", "common/sample", *words])
    assert parse(["submit", "common/sample", "--", "--comment", value]).flags == ["--comment", value]


@pytest.mark.parametrize("verb", ["run", "submit", "status", "cancel", "sync", "show"])
def test_of_missing_arguments_only_those_are_named_that_must_be_given(verb, capsys):
    with pytest.raises(SystemExit):
        parse([verb])
    assert re.match(r"convrepro: the following arguments are required: tables?; `", capsys.readouterr().err)


def test_an_option_may_be_given_twice():
    assert parse(["run", "common/sample", "--dry-run", "--dry-run"]).dry_run


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["train", "conv.grup=2"], ["'grup'"]),
        (["train", "conv=hetconv", "conv.p=3"], ["layer1.0.conv1", "p=3", "64", "1, 2, 4"]),
        (["train", "model=resnet81"], ["resnet81", "resnet18"]),
        (["train", "model=mobilenetv2_100", "conv=hetconv"], ["dense_kxk", "dw_pw_pair"]),
        (
            ["train", "data=mnist", "data_root=nowhere", "data.download=false"],
            ["nowhere", "data.root", "data.download=true"],
        ),
        (["train", "recipe.optimizer.name=sdg"], ["sdg", "sgd"]),
        (["train", "model=inception_v3"], ["inception_v3", "1x28x28", "data.image_size=28", "3x299x299"]),
        (["train", "model=vit_tiny_patch16_224"], ["vit_tiny_patch16_224", "28", "made for 3x224x224"]),
        (["train", "recipe.schedule.name=Cosine"], ["Cosine", "constant"]),
        (["train", "recipe.batch_size=100", "trainer.accumulate=3"], ["100", "3"]),
        (["train", "train=false"], ["weights"]),
        (["train", "weights=nowhere.ckpt"], ["nowhere.ckpt"]),
        (["show", "hetconv/table9"], ["hetconv/table9", "hetconv/table6"]),
        (["run", "hetconv/table1", "--rows", "p5"], ["p5", "p4"]),
        (["run", "hetconv/table1", "budget=smoke"], ["budget=smoke has no effect", "--budget"]),
        (["submit", "hetconv/table1", "seed=5"], ["seed=5 has no effect", "--seeds"]),
        (["run", "hetconv/table1", "--budget", "smoke", "--seeds", "a"], ["seeds", "a"]),
    ],
)
def test_a_mistake_ends_in_one_sentence(words, expected, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main([*words, *([] if words[0] == "show" else [f"runs={tmp_path}"])])
    assert stop.value.code == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert message.startswith("convrepro: ")
    assert all(word in message for word in expected), message
    assert not list(tmp_path.rglob("*.ckpt"))


def test_a_mistake_shows_no_traceback_in_a_real_process():
    done = convrepro("train", "conv=hetconv", "conv.p=3")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("convrepro: layer 'layer1.0.conv1': p=3")


def test_dry_run_prints_the_lines_it_would_execute(tmp_path):
    done = convrepro("run", "deepshift/mnist_v1", "--dry-run", "--budget", "smoke", f"runs={tmp_path}")
    lines = done.stdout.strip().splitlines()
    assert all(line.startswith("convrepro train ") for line in lines)
    assert not list(tmp_path.iterdir())


def test_a_sweep_runs_every_value(tmp_path):
    words = ["model=deepshift_mnist_fc", "conv=shift", "conv.bits=3,4", "budget=smoke", "budget.train_examples=64"]
    done = convrepro("train", "-m", *words, "budget.test_examples=50", "logger=none", f"runs={tmp_path}")
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.rglob("result.json"))) == 2


def test_at_its_end_a_command_looks_at_no_object_of_the_libraries():
    """A collection of all that torch and Lightning import takes longer than many a command."""
    code = "import atexit, gc; atexit.register(lambda: print('frozen', gc.get_freeze_count(), len(gc.get_objects())))\n"
    code += "from convrepro.cli.main import main; main()"
    with Python(["-c", code, "list", "convs"], stdout=-1, text=True) as process:
        out, _ = process.communicate()
    frozen, left = map(int, re.search(r"frozen (\d+) (\d+)", out).groups())
    assert frozen > 100_000
    assert left < frozen / 100
