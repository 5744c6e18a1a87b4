"""`convrepro search`: mistakes are sentences before anything is built or written, and a missing Optuna is one, too."""

import sys

import pytest

from convrepro.cli.command import parse
from convrepro.cli.main import main
from convrepro.cli.search import WORKERS

NETWORK = ["model=resnet8_cifar", "data=fashion_sample", "trainer=cpu", "logger=none"]
SMALL = ["--budget", "smoke", "--space", "stages"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--space", "none"], "--space 'none' does not exist; valid: operators, pairs, stages"),
        (["--sampler", "grid"], "--sampler 'grid' is unknown; valid: nsga2, tpe, random, controller"),
        (["--trials", "0"], "--trials 0 must be at least 1"),
        (["--trials", "-3"], "'-3' must be a whole number"),
        (["--finalists", "0"], "--finalists 0 must be at least 1"),
        (["--submit", "0"], "--submit 0 must be at least 1"),
        (["--holdout", "1"], "--holdout 1 must be above 0 and below 1"),
        (["--holdout", "0"], "--holdout 0 must be above 0 and below 1"),
        (["--holdout", "0.00001"], "budget.holdout=1e-05 holds out 0 of"),
        (["--max-macs", "-0.4"], "--max-macs -0.4 must be above 0"),
        (["--max-macs", "nan"], "'nan' must be a number"),
        (["--max-macs", "0.01"], "which no network of the space reaches; the smallest has"),
        (["--max-params", "10"], "--max-params 10 is 10, which no network of the space reaches"),
        (
            ["--max-latency", "1.5"],
            "--max-latency 1.5 must be above 0 and at most 1: a share of the dense network's time",
        ),
        (["--max-latency", "0"], "--max-latency 0 must be above 0"),
        (["--latency-mode", "train"], "--latency-mode 'train' is unknown; valid: inference, exported"),
        (["--latency-batch", "1"], "--latency-mode and --latency-batch have no effect without --max-latency"),
        (["--latency-mode", "exported"], "have no effect without --max-latency; give it, too"),
        (["--max-latency", "0.5", "--latency-batch", "0"], "--latency-batch 0 must be at least 1"),
        (["--name", "a/b"], "--name 'a/b' must be letters, digits, _ and - alone"),
        (["--seeds", "x"], "--seeds 'x' must be whole numbers"),
        (["--budget", "none"], "budget=none does not exist"),
        (["conv=shift"], "conv=shift has no effect on a search; the space has the operators; choose it by --space"),
        (["conv.p=2"], "conv.p=2 has no effect on a search"),
        (["budget=smoke"], "budget=smoke has no effect on a search; use --budget"),
        (["budget.holdout=0.1"], "budget.holdout=0.1 has no effect on a search; use --holdout"),
        (["weights=a.ckpt"], "weights=a.ckpt has no effect on a search; networks of a search start from scratch"),
        (
            ["model=mobilenet_v1_cifar"],
            "mobilenet_v1_cifar has no layer that an operator of",
        ),
        (
            ["model=deepshift_mnist_fc"],
            "deepshift_mnist_fc has no layer that an operator of",
        ),
        (
            ["--budget", "proxy", "data=cifar10_jpeg", "data_root=nowhere"],
            "nowhere/cifar-10-batches-py/data_batch_1 is mi",
        ),
        (["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2"], "the trainer asks for 2 processes"),
        (["--", "--time=3"], "--time=3 is a flag of sbatch, which has no effect without --submit"),
    ],
    ids=lambda words: " ".join(words) if isinstance(words, list) else "",
)
def test_a_mistake_is_a_sentence_before_anything_is_written(words, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        main(["search", *NETWORK, *SMALL, *words])
    assert end.value.code == 2
    errors = capsys.readouterr().err
    assert says in errors
    assert len(errors.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_a_missing_optuna_is_a_sentence(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(SystemExit) as end:
        main(["search", *NETWORK])
    assert end.value.code == 2
    assert "search needs optuna; `pip install 'convrepro[search]'`" in capsys.readouterr().err


def test_a_worker_of_a_cluster_gets_every_option_that_a_search_has():
    options = vars(parse(["search"])).keys() - {"verb", "overrides", "execute", "flags", "plugin", "config_dir"}
    assert {option.replace("-", "_") for option in WORKERS} == options - {"submit", "compare"}
